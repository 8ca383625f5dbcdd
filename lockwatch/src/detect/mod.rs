//! Detectors: each looks at the locks and their chains and says one kind of thing.
//!
//! A detector is pure: the same scene gives the same findings. What it says must follow
//! from what was read; a guess is not a finding.

mod convoy;
mod deadlock;
mod explain;
mod inconsistent_lock;
mod long_hold;
mod long_wait;
mod off_cpu_holder;
mod writer_starvation;

pub use convoy::Convoy;
pub use deadlock::Deadlock;
pub use explain::{FaultUnderMmapLock, ForkOfHugeProcess, LostWakeup, SlowFileSystem, UmountWaits};
pub use inconsistent_lock::InconsistentLock;
pub use long_hold::LongHold;
pub use long_wait::LongWait;
pub use off_cpu_holder::OffCpuHolder;
use serde::Serialize;
pub use writer_starvation::WriterStarvation;

use crate::{
    daemon::Daemon,
    graph::chain::{Chain, Step},
    lock::{Lock, LockAddr, Stacks},
    survey::Survey,
    task::{Nanos, Tid},
};

/// What detectors look at.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// Locks with waiters.
    pub locks: &'a [Lock],
    /// Daemons with clients.
    pub daemons: &'a [Daemon],
    /// The stacks they refer to.
    pub stacks: &'a Stacks,
    /// Looks that agree on all that.
    pub looks: u32,
    /// The chains.
    pub chains: &'a [Chain],
    /// A wait this long or longer is a stall.
    pub threshold: Nanos,
}

impl<'a> Scene<'a> {
    /// What a survey found, with its chains.
    pub fn new(survey: &'a Survey, chains: &'a [Chain], threshold: Nanos) -> Self {
        Self {
            locks: &survey.locks,
            daemons: &survey.daemons,
            stacks: &survey.stacks,
            looks: survey.looks,
            chains,
            threshold,
        }
    }
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
    /// The path it is about; empty if it is about none.
    pub path: Vec<Step>,
    /// For each link of the path, in words, what it rests on.
    pub evidence: Vec<String>,
}

/// One kind of trouble.
pub trait Detector: Sync {
    /// Its name in reports and on the command line, in kebab case.
    fn name(&self) -> &'static str;

    /// What it finds in this scene.
    fn check(&self, scene: &Scene<'_>) -> Vec<Finding>;
}

/// Every detector.
pub const ALL: &[&dyn Detector] = &[
    &Deadlock,
    &InconsistentLock,
    &LongWait,
    &Convoy,
    &LongHold,
    &OffCpuHolder,
    &WriterStarvation,
    &FaultUnderMmapLock,
    &SlowFileSystem,
    &UmountWaits,
    &ForkOfHugeProcess,
    &LostWakeup,
];

/// The detectors that are asked.
#[derive(Clone)]
pub struct Detectors(Vec<&'static dyn Detector>);

impl Default for Detectors {
    fn default() -> Self {
        Self(ALL.to_vec())
    }
}

impl Detectors {
    /// Those of these names, without those of the others; all but these if `only` is empty.
    pub fn selected(only: &[&str], without: &[&str]) -> Self {
        let is_asked = |detector: &&&dyn Detector| {
            (only.is_empty() || only.contains(&detector.name()))
                && !without.contains(&detector.name())
        };
        Self(ALL.iter().filter(is_asked).copied().collect())
    }

    /// What they find, the most severe first; of equal severity, circles first, then what
    /// concerns most tasks.
    pub fn check(&self, scene: &Scene<'_>) -> Vec<Finding> {
        let mut findings: Vec<Finding> = self
            .0
            .iter()
            .flat_map(|detector| detector.check(scene))
            .collect();
        findings.sort_by(|a, b| {
            b.severity
                .cmp(&a.severity)
                .then_with(|| a.path.is_empty().cmp(&b.path.is_empty()))
                .then_with(|| b.tasks.len().cmp(&a.tasks.len()))
                .then_with(|| a.locks.cmp(&b.locks))
                .then_with(|| a.detector.cmp(b.detector))
        });
        findings
    }
}

impl std::fmt::Debug for Detectors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = self.0.iter().map(|detector| detector.name());
        f.debug_list().entries(names).finish()
    }
}

/// True if a task has waited for this lock for the threshold or longer.
pub fn is_stalled(lock: &Lock, threshold: Nanos) -> bool {
    lock.waiters.iter().any(|waiter| waiter.wait >= threshold)
}

#[cfg(test)]
mod tests;
