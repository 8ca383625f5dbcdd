//! Sleepers: tasks in uninterruptible sleep, how long, and what they wait for.
//!
//! Two questions, two files: `asleep` says for how long a task has slept at least, from
//! one look; `awaited` what it sleeps for, once the looks agree. `queues` finds wait queues
//! and completions for it, `server` network file systems.

mod asleep;
mod awaited;
mod queues;
mod server;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;

use rustc_hash::FxHashMap;

pub(super) use self::{
    asleep::{Asleep, History, seen},
    awaited::describe,
};
use crate::{
    daemon::Daemon,
    lock::Lock,
    sleeper::{Awaited, Sleeper},
    survey::{functions::Functions, look::Look, merge::Merger, names::is_caller, stuck},
    task::{StuckClass, TaskKey, TaskState},
};

/// The tasks that slept in both looks and did not run in between, or that the only look
/// says have slept; the longest first. What they wait for is known as far as the locks
/// and daemons tell.
pub(super) fn standing(
    first: Option<&Look>,
    last: &Look,
    asleep: &[Asleep],
    locks: &[Lock],
    daemons: &[Daemon],
    merger: &mut Merger<'_, '_>,
) -> Vec<Sleeper> {
    if asleep.is_empty() {
        return Vec::new();
    }
    let known = known(locks, daemons);
    let mut sleepers = Vec::with_capacity(asleep.len());
    for seen in asleep {
        let task = &last.tasks[seen.task];
        let stood = first.is_none_or(|first| {
            let then = first.task_at(task.record.task);
            then.is_some_and(|then| task.stood_still_since(&first.tasks[then]))
        });
        if !stood {
            continue;
        }
        let stuck = stuck::of_task(merger.functions, last, task, Some(seen.at_least));
        let awaits = match known.get(&task.name.key) {
            Some(awaits) => awaits.clone(),
            // A lock whose queue could not be read: its function is all there is.
            None => match (stuck.class, &stuck.frame) {
                (StuckClass::Lock, Some(frame)) => Awaited::Function(frame.clone()),
                _ => sleeps_in(merger.functions, last, seen.task),
            },
        };
        sleepers.push(Sleeper {
            task: task.name.clone(),
            killable: task.state == TaskState::Killable,
            io_wait: seen.io_wait,
            asleep: seen.at_least,
            awaits,
            stuck,
            stack: merger.stack(last, task),
        });
    }
    sleepers.sort_by_key(|sleeper| (Reverse(sleeper.asleep), sleeper.task.key));
    sleepers
}

/// What tasks wait for, by the queues of locks and the requests of daemons.
fn known(locks: &[Lock], daemons: &[Daemon]) -> FxHashMap<TaskKey, Awaited> {
    let clients = daemons.iter().flat_map(|daemon| {
        let clients = daemon.clients.iter();
        clients.map(|client| (client.task.key, Awaited::Fuse(daemon.connection)))
    });
    let waiters = locks.iter().flat_map(|lock| {
        let blocked = lock.waiters.iter().filter(|waiter| !waiter.granted);
        blocked.map(|waiter| (waiter.task.key, Awaited::Lock(lock.address)))
    });
    clients.chain(waiters).collect()
}

/// The innermost function outside of the scheduler that a task sleeps in.
fn sleeps_in(functions: &mut Functions<'_>, look: &Look, task: usize) -> Awaited {
    let stems = functions.stems(&look.tasks[task]);
    match stems.iter().copied().find(|stem| is_caller(stem)) {
        Some(function) => Awaited::Function(function.to_owned()),
        None => Awaited::Unknown,
    }
}
