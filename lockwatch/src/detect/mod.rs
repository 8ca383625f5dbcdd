//! Detectors: each looks at the locks and their chains and says one kind of thing.
//!
//! A detector is pure: the same scene gives the same findings. What it says must follow
//! from what was read; a guess is not a finding.

mod convoy;
mod inconsistent_lock;
mod long_wait;

pub use convoy::Convoy;
pub use inconsistent_lock::InconsistentLock;
pub use long_wait::LongWait;
use serde::Serialize;

use crate::{
    graph::chain::Chain,
    lock::{Lock, LockAddr},
    task::{Nanos, Tid},
};

/// What detectors look at.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// Locks with waiters.
    pub locks: &'a [Lock],
    /// Their chains.
    pub chains: &'a [Chain],
    /// A wait this long or longer is a stall.
    pub threshold: Nanos,
}

/// How much a finding matters.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Explains.
    Info,
    /// Hurts.
    Warning,
    /// Will not get better by itself, or hurts so long that the kernel would complain.
    Critical,
}

/// What a detector says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Name of the detector.
    pub detector: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// In words, without a full stop.
    pub sentence: String,
    /// The locks it is about.
    pub locks: Vec<LockAddr>,
    /// The tasks it is about, those that suffer and those that cause.
    pub tasks: Vec<Tid>,
}

/// One kind of trouble.
pub trait Detector {
    /// Its name in reports, in kebab case.
    fn name(&self) -> &'static str;

    /// What it finds in this scene.
    fn check(&self, scene: &Scene<'_>) -> Vec<Finding>;
}

/// Every detector.
pub const ALL: &[&dyn Detector] = &[&InconsistentLock, &Convoy, &LongWait];

/// What all detectors find, the most severe first; of equal severity, what concerns
/// most tasks first.
pub fn check(scene: &Scene<'_>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = ALL
        .iter()
        .flat_map(|detector| detector.check(scene))
        .collect();
    findings.sort_by(|a, b| {
        b.severity
            .cmp(&a.severity)
            .then_with(|| b.tasks.len().cmp(&a.tasks.len()))
            .then_with(|| a.locks.cmp(&b.locks))
            .then_with(|| a.detector.cmp(b.detector))
    });
    findings
}

/// True if a task has waited for this lock for the threshold or longer.
pub fn is_stalled(lock: &Lock, threshold: Nanos) -> bool {
    lock.waiters.iter().any(|waiter| waiter.wait >= threshold)
}

#[cfg(test)]
mod tests;
