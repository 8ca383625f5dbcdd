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
    let mut clients: Vec<Client> = requests
        .iter()
        .filter_map(|request| client(request, first, last, merger))
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

/// A task that waits; `None` for one that did not wait for this request before.
fn client(
    request: &Request,
    first: Option<Sight<'_>>,
    last: Sight<'_>,
    merger: &mut Merger<'_, '_>,
) -> Option<Client> {
    let task = &last.look.tasks[request.task];
    let before = first.map(|first| {
        first.fuse.requests.iter().find_map(|then| {
            let earlier = &first.look.tasks[then.task];
            let is_same = (then.address, then.connection, earlier.name.key)
                == (request.address, request.connection, task.name.key);
            is_same.then_some(earlier)
        })
    });
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
    let waits = |task: &usize| requests.iter().any(|request| request.task == *task);
    let mut others: Vec<usize> = have_it
        .iter()
        .copied()
        .filter(|task| !waits(task))
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
    let mut oldest = None;
    for client in clients.iter().filter(|it| it.stood && it.is_sent) {
        let mut asking = requests.iter().map(|it| &last.look.tasks[it.task]);
        let task = asking.find(|task| task.name.key == client.task.key)?;
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
mod tests {
    use super::*;
    use crate::{
        kernel::symbols::Symbols,
        lock::{Confidence, Stacks},
        survey::{
            clock::Clocks,
            fuse::{Connection, Device},
            image::{ASLEEP, Image, STUCK, Sleeper},
        },
    };

    const CONNECTION: u64 = 0xffff_8883_0002_0000;
    const REQUEST: u64 = 0xffff_8883_0000_0000;
    const TABLE: u64 = 0xffff_8884_0000_0000;
    const OTHER_TABLE: u64 = 0xffff_8884_0001_0000;

    const SECOND: u64 = 1_000_000_000;
    const NOW: u64 = 1_000 * SECOND;

    /// Where a task sleeps, in which state.
    const CLIENT: (u64, u32) = (0xffff_ffff_8101_0050, ASLEEP);
    const IDLE: (u64, u32) = (0xffff_ffff_8102_0050, ASLEEP);
    const FUTEX: (u64, u32) = (0xffff_ffff_8103_0050, ASLEEP);
    const DISK: (u64, u32) = (0xffff_ffff_8104_0050, STUCK);

    /// A task: where it is, its table of files, and how often it ran.
    #[derive(Clone, Copy)]
    struct Is((u64, u32), u64, u64);

    /// The look at task 1, which waits for an answer, and at these from 2 on.
    fn look(tasks: &[Is]) -> Look {
        let mut image = Image::default();
        let client = Is(CLIENT, OTHER_TABLE, 0);
        let all = std::iter::once(&client).chain(tasks);
        for (n, &Is((function, state), files, switches)) in (1..).zip(all) {
            let sleeper = Sleeper {
                state,
                files,
                switches,
                frames: vec![(function, vec![0]), (0xffff_ffff_8105_0050, vec![0])],
            };
            image.sleep(n, &[0], sleeper);
        }
        let mut look = image.look(tasks.len() as u64 + 1);
        for (index, task) in look.tasks.iter_mut().enumerate() {
            task.record.taken_at_ns = NOW;
            let seconds = match all_of(tasks, index) {
                CLIENT => 10,
                DISK => 9,
                // Since it was mounted.
                _ => 60,
            };
            task.record.last_arrival_ns = NOW - seconds * SECOND;
        }
        look
    }

    fn all_of(tasks: &[Is], index: usize) -> (u64, u32) {
        index.checked_sub(1).map_or(CLIENT, |index| tasks[index].0)
    }

    fn seen(clients: &[usize], is_sent: bool) -> SeenFuse {
        let requests = clients.iter().map(|&task| Request {
            task,
            address: REQUEST + 0x100 * task as u64,
            connection: CONNECTION,
            is_sent,
        });
        let name = Connection {
            number: Some(45),
            name: "FUSE connection 45".to_owned(),
        };
        SeenFuse {
            requests: requests.collect(),
            devices: vec![Device {
                files: TABLE,
                connection: CONNECTION,
            }],
            connections: [(CONNECTION, name)].into_iter().collect(),
            ..SeenFuse::default()
        }
    }

    fn conclude(first: Option<(&Look, &SeenFuse)>, last: (&Look, &SeenFuse)) -> Vec<Daemon> {
        let text = "ffffffff81010000 t request_wait_answer\n\
            ffffffff81020000 t fuse_dev_do_read\n\
            ffffffff81030000 t futex_do_wait\n\
            ffffffff81040000 t folio_wait_bit_common\n\
            ffffffff81050000 t outside\n";
        let symbols = Symbols::parse(text.to_owned()).unwrap();
        let mut functions = Functions::new(&symbols);
        let mut stacks = Stacks::default();
        let mut merger = Merger {
            functions: &mut functions,
            clocks: Clocks {
                scheduler_offset_ns: Some(0),
                hz: None,
            },
            stacks: &mut stacks,
        };
        let sight = |(look, fuse)| Sight { look, fuse };
        daemons(first.map(sight), sight(last), 0, &mut merger)
    }

    /// Who is said to serve, and why, where these tasks were so in both looks.
    fn served(
        then: &[Is],
        now: &[Is],
        is_sent: bool,
    ) -> Vec<(u32, ServesEvidence, Option<Confidence>)> {
        let (first, last) = (look(then), look(now));
        let fuse = seen(&[0], is_sent);
        let daemons = conclude(Some((&first, &fuse)), (&last, &fuse));
        let [daemon] = daemons.as_slice() else {
            panic!("{daemons:?}");
        };
        assert!(daemon.clients[0].stood && daemon.clients[0].is_sent == is_sent);
        let threads = daemon.threads.iter();
        threads
            .map(|thread| (thread.task.key.tid.0, thread.evidence, thread.serves))
            .collect()
    }

    fn stand(tasks: &[Is]) -> Vec<(u32, ServesEvidence, Option<Confidence>)> {
        served(tasks, tasks, true)
    }

    use Confidence::{Certain, Likely, Possible};
    use ServesEvidence::{Idle, OneOfSeveral, OnlyThread, OthersIdle, OthersParked};

    #[test]
    fn only_who_has_the_device_serves() {
        let in_same_process = Is(DISK, OTHER_TABLE, 0);
        let found = stand(&[Is(DISK, TABLE, 0), in_same_process]);
        assert_eq!(found, [(2, OnlyThread, Some(Certain))]);
    }

    #[test]
    fn the_one_that_is_not_idle_has_the_request() {
        let [busy, idle] = [Is(DISK, TABLE, 0), Is(IDLE, TABLE, 0)];
        let found = stand(&[busy, idle]);
        let expected = [(2, OthersIdle, Some(Certain)), (3, Idle, None)];
        assert_eq!(found, expected);
        // Nobody has read it: the idle one will.
        let found = served(&[busy, idle], &[busy, idle], false);
        let expected = [(2, OthersIdle, Some(Possible)), (3, Idle, None)];
        assert_eq!(found, expected);
        // It was not idle before: it may have given the request to the other since.
        let found = served(&[busy, busy], &[busy, idle], true);
        let expected = [(2, OneOfSeveral, Some(Possible)), (3, Idle, None)];
        assert_eq!(found, expected);
        // It became busy: who read the request before is gone, or idle.
        let found = served(&[idle, idle], &[busy, idle], true);
        let expected = [(2, OneOfSeveral, Some(Possible)), (3, Idle, None)];
        assert_eq!(found, expected);
    }

    #[test]
    fn parked_threads_leave_a_doubt() {
        let [busy, parked] = [Is(DISK, TABLE, 0), Is(FUTEX, TABLE, 0)];
        let found = stand(&[busy, parked]);
        let expected = [
            (2, OthersParked, Some(Certain)),
            (3, OneOfSeveral, Some(Possible)),
        ];
        assert_eq!(found, expected);
        let found = stand(&[parked, parked]);
        let expected = [
            (2, OneOfSeveral, Some(Possible)),
            (3, OneOfSeveral, Some(Possible)),
        ];
        assert_eq!(found, expected);
        let ran = Is(DISK, TABLE, 1);
        let found = served(&[busy, parked], &[ran, parked], true);
        assert_eq!(found[0], (2, OthersParked, Some(Possible)));
    }

    /// As `stand`, where task `n` got its CPU so many seconds ago; the client 10 s ago.
    fn stand_since(tasks: &[Is], n: usize, seconds: u64) -> Option<Confidence> {
        let mut sight = look(tasks);
        sight.tasks[n - 1].record.last_arrival_ns = NOW - seconds * SECOND;
        let fuse = seen(&[0], true);
        let daemons = conclude(Some((&sight, &fuse)), (&sight, &fuse));
        daemons[0].threads[0].serves
    }

    #[test]
    fn who_ran_since_the_request_may_have_it() {
        let [busy, parked, idle] = [Is(DISK, TABLE, 0), Is(FUTEX, TABLE, 0), Is(IDLE, TABLE, 0)];
        // It sleeps as it serves, and will answer.
        assert_eq!(stand_since(&[busy, parked], 3, 9), Some(Possible));
        assert_eq!(stand_since(&[busy, parked], 3, 60), Some(Certain));
        // It answered a request before, and read this one before it slept.
        let closely = stand_since(&[busy, parked], 3, 10);
        assert_eq!(closely, Some(Possible));
        // It may have read this one, and put the answer off.
        assert_eq!(stand_since(&[busy, idle], 3, 9), Some(Likely));
        assert_eq!(stand_since(&[busy, idle], 3, 10), Some(Certain));
        // The busy one slept before there was a request.
        assert_eq!(stand_since(&[busy, idle], 2, 20), Some(Possible));
        assert_eq!(stand_since(&[busy], 2, 20), Some(Certain), "only thread");
    }

    #[test]
    fn how_old_the_request_of_an_interrupted_client_is_is_unknown() {
        let mut sight = look(&[Is(DISK, TABLE, 0), Is(FUTEX, TABLE, 0)]);
        let fuse = seen(&[0], true);
        sight.tasks[0].state = TaskState::Killable;
        let daemons = conclude(Some((&sight, &fuse)), (&sight, &fuse));
        assert_eq!(daemons[0].threads[0].serves, Some(Possible));
    }

    #[test]
    fn who_started_idle_threads_is_not_blamed_for_what_they_lost() {
        let found = stand(&[Is(FUTEX, TABLE, 0), Is(IDLE, TABLE, 0)]);
        let expected = [(2, OthersIdle, Some(Possible)), (3, Idle, None)];
        assert_eq!(found, expected);
    }

    #[test]
    fn an_idle_daemon_owes_an_answer_and_nobody_is_blamed() {
        let tasks = [Is(IDLE, TABLE, 0), Is(IDLE, TABLE, 0)];
        let sight = look(&tasks);
        let owes = |is_sent| {
            let fuse = seen(&[0], is_sent);
            let daemons = conclude(Some((&sight, &fuse)), (&sight, &fuse));
            assert!(daemons[0].threads.iter().all(|t| t.serves.is_none()));
            daemons[0].owes_while_idle()
        };
        assert!(owes(true));
        assert!(!owes(false), "it has read nothing");
    }

    #[test]
    fn clients_are_no_servers_unless_nobody_else_is() {
        let itself = Is(CLIENT, TABLE, 0);
        let fuse = seen(&[0, 1], true);
        let both = look(&[itself, Is(DISK, TABLE, 0)]);
        let daemons = conclude(Some((&both, &fuse)), (&both, &fuse));
        let [thread] = daemons[0].threads.as_slice() else {
            panic!("{daemons:?}");
        };
        assert_eq!((thread.task.key.tid.0, thread.evidence), (3, OnlyThread));
        let alone = look(&[itself]);
        let daemons = conclude(Some((&alone, &fuse)), (&alone, &fuse));
        let [thread] = daemons[0].threads.as_slice() else {
            panic!("{daemons:?}");
        };
        assert_eq!((thread.task.key.tid.0, thread.serves), (2, Some(Certain)));
    }

    #[test]
    fn one_look_is_sure_of_nothing_and_what_is_new_does_not_stand() {
        let sight = look(&[Is(DISK, TABLE, 0)]);
        let fuse = seen(&[0], true);
        let daemons = conclude(None, (&sight, &fuse));
        assert!(!daemons[0].clients[0].stood);
        assert_eq!(daemons[0].threads[0].serves, Some(Possible));
        let nobody = seen(&[], true);
        assert_eq!(conclude(Some((&sight, &nobody)), (&sight, &fuse)), []);
    }
}
