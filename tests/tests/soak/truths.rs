//! What was made in a soak, and when.

use std::collections::BTreeSet;

use lockwatch_tests::truth::{Hung, LockedUp, Ready, Tid};

/// Something that a lab has made.
pub(crate) struct Made {
    pub(crate) what: What,
    /// Before its lab was started, `CLOCK_MONOTONIC`.
    pub(crate) since_ns: u64,
    /// When its lab had ended, `CLOCK_MONOTONIC`.
    pub(crate) until_ns: u64,
}

/// What it was.
#[derive(Debug)]
pub(crate) enum What {
    Deadlock(Box<Ready>),
    Lockup(Box<LockedUp>),
    Hang(Box<Hung>),
}

/// A finding is told this long after the end of what it is about, at most.
const LATE_NS: u64 = 1_500_000_000;

impl Made {
    /// Whether tasks that hang were made to: `asleep_since_ns` until `told_ns`.
    pub(crate) fn explains(&self, tasks: &[Tid], asleep_since_ns: u64, told_ns: u64) -> bool {
        let is_then =
            asleep_since_ns >= self.since_ns && told_ns <= self.until_ns.saturating_add(LATE_NS);
        let whose = match &self.what {
            What::Deadlock(truth) => of_deadlock(truth),
            // Whoever needs that CPU hangs, and who that is nobody can say beforehand.
            What::Lockup(_) => return is_then,
            What::Hang(truth) => truth.tasks.iter().map(|task| task.tid).collect(),
        };
        is_then && !tasks.is_empty() && tasks.iter().all(|tid| whose.contains(tid))
    }
}

/// Everybody who waits in it.
fn of_deadlock(truth: &Ready) -> BTreeSet<Tid> {
    let mut tids: BTreeSet<Tid> = truth.waiters.iter().map(|waiter| waiter.tid).collect();
    tids.extend(truth.holders.iter().map(|holder| holder.tid));
    tids.extend(truth.decoys.iter().map(|decoy| decoy.tid));
    if let Some(next) = &truth.next {
        tids.insert(next.waiter.tid);
        tids.extend(next.holders.iter().map(|holder| holder.tid));
    }
    if let Some(cycle) = &truth.cycle {
        tids.extend(cycle.tasks.iter().map(|member| member.tid));
        tids.extend(&cycle.between);
    }
    tids
}
