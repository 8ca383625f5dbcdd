//! Ways out of a stall, each with its risk. lockwatch never takes one.

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;
use schemars::JsonSchema;
use serde::Serialize;

use super::{HungTask, Lock, Report, Step, next::Queue};
use crate::{
    daemon::Daemon,
    figures::Count,
    lock::{LockKind, LockMode},
    task::Tid,
};

/// What a person could do about a stall.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct WayOut {
    /// Which kind.
    pub way: Way,
    /// What can be done and what follows, in words, without a full stop.
    pub sentence: String,
    /// What it may cost, in words, without a full stop.
    pub risk: String,
    /// Thread ids of the tasks that it is done to. Empty if it is done to none, or to the
    /// clients of a daemon.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub tids: Vec<Tid>,
}

/// Kinds of ways out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Abort the FUSE connection that the root waits for.
    AbortConnection,
    /// Thaw the file system.
    Thaw,
    /// Kill waiters, or tasks that hang: those that a fatal signal wakes.
    KillWaiters,
}

const KILL_RISK: &str = "a killed process loses what it was doing";

/// Which daemons tasks wait for.
pub(super) struct Awaited<'a> {
    daemons: &'a [Daemon],
    /// For each client the indexes of its daemons.
    by: FxHashMap<Tid, Vec<usize>>,
}

impl<'a> Awaited<'a> {
    pub(super) fn new(daemons: &'a [Daemon]) -> Self {
        let mut by: FxHashMap<Tid, Vec<usize>> = FxHashMap::default();
        for (index, daemon) in daemons.iter().enumerate() {
            for client in &daemon.clients {
                by.entry(client.task.key.tid).or_default().push(index);
            }
        }
        Self { daemons, by }
    }
}

/// The ways out of the stall of this lock, the most effective first.
pub(super) fn of(report: &Report, awaited: &Awaited<'_>, lock: &Lock) -> Vec<WayOut> {
    let aborts = connections(report, awaited, lock).into_iter().map(abort);
    let thaw = thaw(lock).into_iter();
    aborts.chain(thaw).chain(kill(lock)).collect()
}

/// The connections whose clients this lock's waiters wait for in the end.
fn connections<'a>(report: &Report, awaited: &Awaited<'a>, lock: &Lock) -> Vec<&'a Daemon> {
    let mut found: Vec<usize> = Vec::new();
    let mut known: BTreeSet<usize> = BTreeSet::new();
    for chain in report.chains_of(lock) {
        let Some(route) = chain.graph.route(lock.at) else {
            continue;
        };
        // In a circle every connection on it opens it.
        let around = chain.path.iter().filter(|_| chain.cycle);
        let steps = route.iter().map(Step::from).chain(around.cloned());
        let clients = steps.filter_map(|step| step.tid());
        let on_the_way: BTreeSet<usize> = clients
            .filter_map(|tid| awaited.by.get(&tid))
            .flatten()
            .copied()
            .collect();
        found.extend(on_the_way.into_iter().filter(|&index| known.insert(index)));
    }
    found
        .into_iter()
        .map(|index| &awaited.daemons[index])
        .collect()
}

fn abort(daemon: &Daemon) -> WayOut {
    let clients = Count::of(daemon.clients.len()).nouns("wait", "waits");
    let how = daemon.number.map_or_else(String::new, |number| {
        format!(" (echo 1 > /sys/fs/fuse/connections/{number}/abort)")
    });
    WayOut {
        way: Way::AbortConnection,
        sentence: format!(
            "{} can be aborted{how}: that ends {clients} for its daemon with an error",
            daemon.name
        ),
        risk: "the mount is dead from then on, and what was not written back is lost".to_owned(),
        // They are the clients of the report's daemon: thousands, for each lock again.
        tids: Vec::new(),
    }
}

/// The ways out for tasks that hang on no lock; `daemon` is what they wait for, if one.
pub(super) fn of_hung(daemon: Option<&Daemon>, tasks: &[HungTask]) -> Vec<WayOut> {
    let killable: Vec<Tid> = tasks
        .iter()
        .filter(|task| task.killable)
        .map(|task| task.tid)
        .collect();
    let words = match (killable.len(), tasks.len()) {
        (0, _) => None,
        (_, 1) => Some("it is killable".to_owned()),
        (killable, all) if killable == all => {
            Some(format!("all {} tasks are killable", Count::of(all)))
        }
        (killable, all) => Some(format!(
            "{} of {} tasks {} killable",
            Count::of(killable),
            Count::of(all),
            if killable == 1 { "is" } else { "are" }
        )),
    };
    let kill = words.map(|sentence| WayOut {
        way: Way::KillWaiters,
        sentence,
        risk: KILL_RISK.to_owned(),
        tids: killable,
    });
    daemon.map(abort).into_iter().chain(kill).collect()
}

fn thaw(lock: &Lock) -> Option<WayOut> {
    // Only a freeze leaves a lock write-held that no task holds.
    let is_frozen = lock.class == "s_writers" && lock.note.is_some();
    is_frozen.then(|| WayOut {
        way: Way::Thaw,
        sentence: "whoever froze the file system can thaw it (fsfreeze --unfreeze)".to_owned(),
        risk: "a snapshot or backup that is being made of it becomes inconsistent".to_owned(),
        tids: Vec::new(),
    })
}

fn kill(lock: &Lock) -> Option<WayOut> {
    let waiters = lock.blocked().count();
    let killable: Vec<Tid> = lock
        .blocked()
        .filter(|waiter| waiter.killable)
        .map(|waiter| waiter.tid)
        .collect();
    let mut words = match (killable.len(), waiters) {
        (0, _) => return None,
        (_, 1) => "the only waiter is killable".to_owned(),
        (killable, waiters) if killable == waiters => {
            format!("all {} waiters are killable", Count::of(waiters))
        }
        (killable, waiters) => format!(
            "{} of {} waiters {} killable",
            Count::of(killable),
            Count::of(waiters),
            if killable == 1 { "is" } else { "are" }
        ),
    };
    let frees_readers = lock.kind == LockKind::Rwsem
        && !lock.by_priority
        && Queue::of(lock).is_some_and(|queue| {
            let second = queue.second.map(|second| second.mode);
            queue.is_convoy(lock) && queue.first.killable && second == Some(LockMode::Read)
        });
    if frees_readers {
        words.push_str(", writer #1 too: without it the readers behind it get the lock");
    }
    Some(WayOut {
        way: Way::KillWaiters,
        sentence: words,
        risk: KILL_RISK.to_owned(),
        tids: killable,
    })
}
