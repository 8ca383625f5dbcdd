//! What lockwatch sees, in the forms in which other systems take it in: one module a form,
//! each a pure function of a [`State`].

mod callers;
pub mod hdr_log;
pub mod http;
pub mod open_metrics;
pub mod otlp;
mod percent;
mod roots;

use std::{collections::BTreeMap, time::Duration};

pub use self::callers::{CALLERS_DEFAULT, Callers, ROOM};

use crate::{latency::Snapshot, lock::LockClass, task::Nanos};

/// All that is exported, as it was at one time. Counts are from the start of the run on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// When that was.
    pub at: jiff::Timestamp,
    /// When the run began.
    pub since: jiff::Timestamp,
    /// How long tasks waited for locks and held them.
    pub latency: Snapshot,
    /// Waits past the threshold.
    pub stalls: Stalls,
    /// Tasks that wait in the stalls that stand.
    pub blocked_tasks: u64,
    /// What the stalls that stand lead back to, the one that blocks most first.
    pub roots: Vec<Root>,
    /// Findings of what hangs by detector (`hung-task`, `soft-lockup`, `hard-lockup`): how
    /// many there were, and how many stand.
    pub hangs: Vec<Hang>,
    /// What could not be sent, kept or read, by kind.
    pub lost: Vec<(&'static str, u64)>,
    /// What lockwatch itself costs.
    pub cost: Cost,
}

/// Locks that tasks wait for longer than the threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stalls {
    /// How long a wait has to be.
    pub threshold: Nanos,
    /// How many there were; those that stand are counted, too.
    pub total: u64,
    /// How many stand.
    pub standing: u64,
    /// The longest wait in those that stand, so far; 0 if none does.
    pub longest_standing: Nanos,
    /// The longest wait in any.
    pub longest: Nanos,
}

/// What stalled tasks wait for in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// The class of the lock that it holds.
    pub class: LockClass,
    /// Name of the task.
    pub comm: String,
    /// Why it does not go on, one word of the report's contract (`block-io`, `fuse`, …).
    pub stuck: String,
    /// Tasks that wait for it, through any number of locks.
    pub blocked_tasks: u64,
}

/// What one detector of hanging tasks or CPUs has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hang {
    /// The detector's name.
    pub detector: &'static str,
    /// Findings so far.
    pub total: u64,
    /// Findings that stand.
    pub standing: u64,
}

/// What lockwatch itself costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// CPU time of the process.
    pub cpu: Duration,
    /// Resident memory of the process in bytes.
    pub resident_bytes: u64,
    /// Memory of its maps in the kernel in bytes.
    pub map_bytes: u64,
}

/// The value of a label for all that is not told apart.
const OTHER: &str = "other";

/// What has the same name would be refused as a duplicate: it is added up.
fn sums<'a>(values: impl IntoIterator<Item = (&'a str, u64)>) -> BTreeMap<&'a str, u64> {
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, value) in values {
        *sums.entry(name).or_default() += value;
    }
    sums
}
