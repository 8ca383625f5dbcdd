//! Tasks that wait for each other: none of them will ever go on by itself.
//!
//! It is said only of what stood through both looks: every task on the circle waited for
//! the same thing in both, without running in between, and every holder was found on the
//! same evidence. Each of these waits needs *all* holders of its lock to let go, and a
//! daemon's client is counted only where it is certain that one thread alone can have its
//! request; so a circle of them cannot open by itself. A fatal signal or an aborted connection
//! can open it. A wait for a PI futex may have a time limit, which is not read: a circle
//! through one is none that is told.

use rustc_hash::FxHashSet;

use super::{Detector, Finding, Scene, Severity};
use crate::{
    daemon::{Client, Daemon, DaemonThread},
    figures::{Count, Span},
    graph::chain::{Chain, Step},
    lock::{Confidence, Holder, Lock, LockAddr, LockKind, LockMode, Waiter},
    task::{Nanos, TaskKey, TaskName, TaskState, Tid},
};

/// Members of a circle that its sentence names.
const NAMED_MAX: usize = 4;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Deadlock;

impl Detector for Deadlock {
    fn name(&self) -> &'static str {
        "deadlock"
    }

    fn check(&self, scene: &Scene<'_>) -> Vec<Finding> {
        if scene.looks < 2 {
            return Vec::new();
        }
        let cycles = scene.chains.iter().filter(|chain| chain.cycle);
        cycles
            .filter_map(|chain| finding(self.name(), scene, chain))
            .collect()
    }
}

/// One link of a circle with what it rests on.
enum Link<'a> {
    /// The task waits for the lock.
    Waits(&'a TaskName, &'a Lock, &'a Waiter),
    /// The task holds the lock.
    Holds(&'a Lock, &'a Holder),
    /// The first waits for the second's answer.
    Served(&'a Daemon, &'a Client, &'a DaemonThread),
}

fn finding(detector: &'static str, scene: &Scene<'_>, chain: &Chain) -> Option<Finding> {
    let links: Vec<Link<'_>> = chain
        .path
        .windows(2)
        .map(|pair| link(scene, &pair[0], &pair[1]))
        .collect::<Option<_>>()?;
    let stays = links.iter().all(|link| match link {
        // A survey of two looks has only waits that stood.
        Link::Waits(_, lock, waiter) => !may_time_out(lock, waiter),
        Link::Holds(_, holder) => holder.stood,
        Link::Served(_, client, thread) => {
            client.stood && thread.stood && thread.serves == Some(Confidence::Certain)
        }
    });
    let longest = links.iter().map(Link::wait).max()?;
    if !stays || longest < scene.thresholds.wait {
        return None;
    }
    let members: Vec<Tid> = chain.path[1..].iter().filter_map(member).collect();
    let blocked = Count::from(chain.blocked_tasks).nouns("task", "tasks");
    // More than its locks count: clients of a daemon that wait for no lock.
    let with_clients = if chain.blocked_tasks as usize > queued_behind(scene, chain) {
        ", with those that wait for the daemon"
    } else {
        ""
    };
    Some(Finding {
        detector,
        severity: Severity::Critical,
        sentence: format!(
            "{}, {blocked} blocked for {}{with_clients}",
            circle(&chain.path[1..]),
            Span(longest)
        ),
        locks: chain
            .path
            .iter()
            .filter_map(|step| match step {
                Step::Lock(address) => Some(*address),
                Step::Task(_) | Step::Daemon(_) => None,
            })
            .collect(),
        tasks: members,
        path: chain.path.clone(),
        evidence: links.iter().map(Link::words).collect(),
        ..Finding::EMPTY
    })
}

/// Distinct tasks that are queued on the locks behind the circle.
fn queued_behind(scene: &Scene<'_>, chain: &Chain) -> usize {
    let behind: FxHashSet<LockAddr> = chain.locks().collect();
    let locks = scene.locks.iter();
    let waiters = locks
        .filter(|lock| behind.contains(&lock.address))
        .flat_map(|lock| &lock.waiters)
        .filter(|waiter| !waiter.granted);
    let queued: FxHashSet<TaskKey> = waiters.map(|waiter| waiter.task.key).collect();
    queued.len()
}

/// Waits for rt_mutexes that a signal ends are those for PI futexes (kernel/futex/pi.c), and
/// those may have a time limit.
fn may_time_out(lock: &Lock, waiter: &Waiter) -> bool {
    lock.kind == LockKind::RtMutex && waiter.state == TaskState::Interruptible
}

/// `a[1], b[2] and c[3] wait for each other`
fn circle(path: &[Step]) -> String {
    let mut names: Vec<String> = path
        .iter()
        .filter_map(|step| match step {
            Step::Task(task) | Step::Daemon(task) => Some(task.to_string()),
            Step::Lock(_) => None,
        })
        .collect();
    match names.as_slice() {
        [only] => format!("{only} waits for itself"),
        [_, _, ..] if names.len() <= NAMED_MAX => {
            let last = names.pop().unwrap_or_default();
            format!("{} and {last} wait for each other", names.join(", "))
        }
        _ => format!(
            "{} and {} more tasks wait for each other",
            names[..NAMED_MAX - 1].join(", "),
            names.len() + 1 - NAMED_MAX
        ),
    }
}

fn member(step: &Step) -> Option<Tid> {
    match step {
        Step::Task(task) | Step::Daemon(task) => Some(task.key.tid),
        Step::Lock(_) => None,
    }
}

fn link<'a>(scene: &Scene<'a>, from: &'a Step, to: &'a Step) -> Option<Link<'a>> {
    let lock = |address| scene.locks.iter().find(|lock| lock.address == address);
    match (from, to) {
        (Step::Task(task) | Step::Daemon(task), Step::Lock(address)) => {
            let lock = lock(*address)?;
            let mut waiters = lock.waiters.iter();
            let waiter = waiters.find(|it| it.task.key == task.key && !it.granted)?;
            Some(Link::Waits(task, lock, waiter))
        }
        (Step::Lock(address), Step::Task(task)) => {
            let lock = lock(*address)?;
            let holder = lock.holders.iter().find(|it| it.task.key == task.key)?;
            Some(Link::Holds(lock, holder))
        }
        (Step::Task(task) | Step::Daemon(task), Step::Daemon(thread)) => {
            scene.daemons.iter().find_map(|daemon| {
                let client = daemon.clients.iter().find(|it| it.task.key == task.key)?;
                let thread = daemon.serving().find(|it| it.task.key == thread.key)?;
                Some(Link::Served(daemon, client, thread))
            })
        }
        (Step::Lock(_), Step::Lock(_) | Step::Daemon(_))
        | (Step::Task(_) | Step::Daemon(_), Step::Task(_)) => None,
    }
}

impl Link<'_> {
    fn wait(&self) -> Nanos {
        match self {
            Self::Waits(_, _, waiter) => waiter.wait,
            Self::Served(_, client, _) => client.wait,
            Self::Holds(..) => Nanos(0),
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Waits(task, lock, waiter) => {
                let behind = lock
                    .waiters
                    .iter()
                    .take_while(|it| it.task.key != waiter.task.key)
                    .find(|it| !it.granted && it.mode == LockMode::Write);
                // A reader waits although readers hold the lock: it has to be said why.
                let behind = match (waiter.mode, behind) {
                    (LockMode::Read, Some(writer)) => format!(" behind writer {}", writer.task),
                    _ => String::new(),
                };
                format!(
                    "{task} has waited {} for {}{behind}",
                    Span(waiter.wait),
                    lock.name
                )
            }
            Self::Holds(lock, holder) => {
                let reason = holder.evidence.first();
                let reason = reason.map_or_else(String::new, |it| format!(" ({})", it.words()));
                format!("{} holds {}{reason}", holder.task, lock.name)
            }
            Self::Served(daemon, client, thread) => format!(
                "{} has waited {} for an answer of {}, served by {} ({})",
                client.task,
                Span(client.wait),
                daemon.name,
                thread.task,
                thread.evidence.words()
            ),
        }
    }
}
