//! What both looks say of the daemons that tasks wait for.

use std::cmp::Reverse;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    daemon::{Client, ConnectionAddr, Daemon, DaemonThread, ServesEvidence},
    kernel::{fuse::NEXT_REQUEST_WAITS, parked_frames::is_parked},
    survey::{
        confidence::{OthersSlept, Service, serves},
        functions::Functions,
        fuse::{Request, SeenFuse},
        look::{Look, TaskLook},
        merge::Merger,
        stuck,
    },
    task::{Nanos, TaskKey, TaskState},
};

/// One look, and what it says of FUSE.
#[derive(Clone, Copy)]
pub(super) struct Sight<'a> {
    /// The look.
    pub(super) look: &'a Look,
    /// What was found in it.
    pub(super) fuse: &'a SeenFuse,
}

/// What a thread does, as far as it tells whether it has a request: the later, the likelier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Activity {
    /// Waits in the kernel for the next request.
    Idle,
    /// Asleep in a call that waits for user space or a timer.
    Parked,
    /// Anything else.
    Busy,
}

/// The daemons that tasks waited for in both looks, or in the only one.
pub(super) fn daemons(
    first: Option<Sight<'_>>,
    last: Sight<'_>,
    own_tgid: u32,
    merger: &mut Merger<'_, '_>,
) -> Vec<Daemon> {
    let mut connections: Vec<u64> = last
        .fuse
        .requests
        .iter()
        .map(|request| request.connection)
        .collect();
    connections.sort_unstable();
    connections.dedup();
    connections
        .into_iter()
        .filter_map(|connection| daemon(connection, first, last, own_tgid, merger))
        .collect()
}

/// Tasks that wait for a daemon that could not be told, in both looks.
pub(super) fn unresolved(first: Option<Sight<'_>>, last: Sight<'_>) -> u32 {
    let tasks = |sight: Sight<'_>| -> FxHashSet<TaskKey> {
        let tasks = sight.fuse.unresolved.iter();
        tasks.map(|&task| sight.look.tasks[task].name.key).collect()
    };
    let now = tasks(last);
    let standing = match first {
        Some(first) => now.intersection(&tasks(first)).count(),
        None => now.len(),
    };
    u32::try_from(standing).unwrap_or(u32::MAX)
}

fn daemon(
    connection: u64,
    first: Option<Sight<'_>>,
    last: Sight<'_>,
    own_tgid: u32,
    merger: &mut Merger<'_, '_>,
) -> Option<Daemon> {
    let requests: Vec<&Request> = last
        .fuse
        .requests
        .iter()
        .filter(|request| request.connection == connection)
        .collect();
    let earlier: Option<Earlier<'_>> = first.map(|first| {
        let then = first.fuse.requests.iter();
        then.filter(|request| request.connection == connection)
            .map(|request| {
                let task = &first.look.tasks[request.task];
                ((request.address, task.name.key), task)
            })
            .collect()
    });
    let mut clients: Vec<Client> = requests
        .iter()
        .filter_map(|request| client(request, earlier.as_ref(), last, merger))
        .collect();
    if clients.is_empty() {
        return None;
    }
    clients.sort_by_key(|client| (Reverse(client.wait), client.task.key));
    let named = last.fuse.connections.get(&connection);
    let threads = threads(
        connection, &requests, &clients, first, last, own_tgid, merger,
    );
    Some(Daemon {
        connection: ConnectionAddr(connection),
        number: named.and_then(|named| named.number),
        name: named.map_or_else(
            || format!("FUSE connection at {connection:#x}"),
            |named| named.name.clone(),
        ),
        clients,
        threads,
    })
}

/// The tasks that waited in the first look, by the address of their request.
type Earlier<'a> = FxHashMap<(u64, TaskKey), &'a TaskLook>;

/// A task that waits; `None` for one that did not wait for this request before.
fn client(
    request: &Request,
    earlier: Option<&Earlier<'_>>,
    last: Sight<'_>,
    merger: &mut Merger<'_, '_>,
) -> Option<Client> {
    let task = &last.look.tasks[request.task];
    let before = earlier.map(|earlier| earlier.get(&(request.address, task.name.key)));
    let stood = match before {
        None => false,
        Some(None) => return None,
        Some(Some(earlier)) => task.stood_still_since(earlier),
    };
    Some(Client {
        task: task.name.clone(),
        wait: merger.off_cpu(task).unwrap_or(Nanos(0)),
        is_sent: request.is_sent,
        killable: matches!(task.state, TaskState::Killable | TaskState::Interruptible),
        stood,
        stack: merger.stack(last.look, task),
    })
}

/// The threads that have the connection's device among their open files.
fn threads(
    connection: u64,
    requests: &[&Request],
    clients: &[Client],
    first: Option<Sight<'_>>,
    last: Sight<'_>,
    own_tgid: u32,
    merger: &mut Merger<'_, '_>,
) -> Vec<DaemonThread> {
    let tables: FxHashSet<u64> = last
        .fuse
        .devices
        .iter()
        .filter(|device| device.connection == connection)
        .map(|device| device.files)
        .collect();
    let have_it: Vec<usize> = (0..last.look.tasks.len())
        .filter(|&index| {
            let record = &last.look.tasks[index].record;
            record.files != 0 && tables.contains(&record.files) && record.tgid != own_tgid
        })
        .collect();
    let waiting: FxHashSet<usize> = requests.iter().map(|request| request.task).collect();
    let mut others: Vec<usize> = have_it
        .iter()
        .copied()
        .filter(|task| !waiting.contains(task))
        .collect();
    // Nobody else can answer: the daemon waits for itself.
    if others.is_empty() {
        others = have_it;
    }
    let earlier: FxHashMap<TaskKey, &TaskLook> = match first {
        Some(first) => {
            let tasks = first.look.tasks.iter();
            tasks.map(|task| (task.name.key, task)).collect()
        }
        None => FxHashMap::default(),
    };
    let seen: Vec<Seen> = others
        .into_iter()
        .map(|index| {
            let task = &last.look.tasks[index];
            let now = activity(merger.functions, task);
            let then = match (first, earlier.get(&task.name.key)) {
                (Some(_), Some(earlier)) => activity(merger.functions, earlier),
                // It is new: it has taken what it has since.
                (Some(_), None) => Activity::Busy,
                (None, _) => now,
            };
            Seen {
                index,
                looks: [then, now],
                asleep_for: merger.off_cpu(task).filter(|_| task.state.is_asleep()),
            }
        })
        .collect();
    let asked = asked(requests, clients, last);
    let standing = |client: &&Client| client.stood;
    let is_sent = clients.iter().filter(standing).any(|client| client.is_sent);
    let client_stood = clients.iter().any(|client| client.stood);
    let mut threads: Vec<DaemonThread> = seen
        .iter()
        .map(|thread| {
            let task = &last.look.tasks[thread.index];
            let evidence = evidence(thread, &seen);
            let stood = earlier
                .get(&task.name.key)
                .is_some_and(|earlier| task.stood_still_since(earlier));
            let service = Service {
                in_both_looks: client_stood && earlier.contains_key(&task.name.key),
                stood,
                is_parked: thread.looks.contains(&Activity::Parked),
                is_sent,
                ran: !thread.slept_since(asked, AWAKE_MAX),
                others_slept: others_slept(thread, &seen, asked),
            };
            let off_cpu = merger.off_cpu(task);
            DaemonThread {
                task: task.name.clone(),
                serves: serves(evidence, service),
                evidence,
                state: task.state,
                stuck: stuck::of_task(merger.functions, last.look, task, off_cpu),
                stood,
                stack: merger.stack(last.look, task),
            }
        })
        .collect();
    threads.sort_by_key(|thread| (Reverse(thread.serves), thread.task.key));
    threads
}

/// A thread that has the device.
#[derive(Clone, Copy)]
struct Seen {
    /// Index into [`Look::tasks`].
    index: usize,
    /// What it did in each look.
    looks: [Activity; 2],
    /// Since it last got a CPU, if it is asleep.
    asleep_for: Option<Nanos>,
}

impl Seen {
    /// It has been asleep since before a request that was made at most so long ago, where it
    /// ran at most `awake` on end before it fell asleep: then it cannot have read it.
    fn slept_since(&self, asked: Option<Nanos>, awake: Nanos) -> bool {
        match (self.asleep_for, asked) {
            (Some(asleep), Some(asked)) => asleep.0 >= asked.0.saturating_add(awake.0),
            _ => false,
        }
    }
}

/// Threads of daemons seldom run longer than this without falling asleep. What is known is
/// when a thread last got a CPU, not when it left it: one that answered a request may read
/// the next before it sleeps.
const AWAKE_MAX: Nanos = Nanos(1_000_000_000);

/// At most how long ago the oldest request was made that a daemon has read, of those that
/// stand. `None` if that is unknown: a client that a signal has woken in between, which is
/// killable from then on, has been off the CPU for less long than it has waited.
fn asked(requests: &[&Request], clients: &[Client], last: Sight<'_>) -> Option<Nanos> {
    let tasks = requests.iter().map(|it| &last.look.tasks[it.task]);
    let asking: FxHashMap<TaskKey, &TaskLook> = tasks.map(|task| (task.name.key, task)).collect();
    let mut oldest = None;
    for client in clients.iter().filter(|it| it.stood && it.is_sent) {
        let task = asking.get(&client.task.key)?;
        if task.state != TaskState::Interruptible || client.wait == Nanos(0) {
            return None;
        }
        oldest = oldest.max(Some(client.wait));
    }
    oldest
}

/// Which of the other threads have been asleep since before the requests.
fn others_slept(thread: &Seen, all: &[Seen], asked: Option<Nanos>) -> OthersSlept {
    let others = || all.iter().filter(|other| other.index != thread.index);
    let is_idle = |other: &Seen| other.looks == [Activity::Idle; 2];
    if !others().all(|other| is_idle(other) || other.slept_since(asked, AWAKE_MAX)) {
        OthersSlept::Unknown
    } else if others().all(|other| other.slept_since(asked, Nanos(0))) {
        OthersSlept::All
    } else {
        OthersSlept::ButIdle
    }
}

/// What is known of one thread by what it and all others do in both looks.
fn evidence(thread: &Seen, all: &[Seen]) -> ServesEvidence {
    let [then, now] = thread.looks;
    if now == Activity::Idle {
        return ServesEvidence::Idle;
    }
    let others = all.iter().filter(|other| other.index != thread.index);
    match others.map(|other| other.looks[0].max(other.looks[1])).max() {
        None => ServesEvidence::OnlyThread,
        // It has read what it has after the first look, or nothing.
        _ if then == Activity::Idle => ServesEvidence::OneOfSeveral,
        Some(Activity::Idle) => ServesEvidence::OthersIdle,
        Some(Activity::Parked) if then.min(now) == Activity::Busy => ServesEvidence::OthersParked,
        Some(_) => ServesEvidence::OneOfSeveral,
    }
}

fn activity(functions: &mut Functions<'_>, task: &TaskLook) -> Activity {
    if task.state != TaskState::Interruptible || task.record.moved != 0 {
        return Activity::Busy;
    }
    let stems = functions.stems(task);
    match stems.first() {
        Some(first) if NEXT_REQUEST_WAITS.contains(first) => Activity::Idle,
        _ if is_parked(&stems) => Activity::Parked,
        _ => Activity::Busy,
    }
}

#[cfg(test)]
mod tests;
