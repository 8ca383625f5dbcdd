//! The second opinion: what the kernel's own detectors said of the same tasks or CPU, or why
//! they said nothing.
//!
//! The kernel's word is laid beside ours, never mixed into it: a finding stands or falls
//! without it. A message counts only if it was printed within the trouble that the finding is
//! about, for thread ids are used again and CPUs lock up more than once.

mod hung_task;
mod lockup;

pub use hung_task::of_hung_tasks;
pub use lockup::of_lockup;

use super::Scene;
use crate::{kernel_log::LoggedTask, task::Nanos};

/// Of anything that happened so long ago, a message's time may be off by this much: two
/// readings of clocks, and 1/1000 of the time between, in which `CLOCK_MONOTONIC` is disciplined
/// and the log's clock is not (`local_clock`; the kernel allows 500 ppm).
fn slack(ago: Nanos) -> u64 {
    const READING: u64 = 1_000_000_000;
    READING + ago.0 / 1_000
}

/// Whether something printed then was printed within the last `lasted`.
fn is_within(scene: &Scene<'_>, at_ns: u64, lasted: Nanos) -> bool {
    at_ns.saturating_add(slack(lasted)) >= scene.at_ns.saturating_sub(lasted.0)
}

/// How long ago that was.
fn ago(scene: &Scene<'_>, at_ns: u64) -> Nanos {
    Nanos::between(at_ns, scene.at_ns)
}

/// A task of the log, as reports name tasks.
fn named(task: &LoggedTask) -> String {
    format!("{}[{}]", task.comm, task.tid)
}

#[cfg(test)]
mod tests;
