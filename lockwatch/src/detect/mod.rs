//! Detectors: each looks at the locks and their chains and says one kind of thing.
//!
//! A detector is pure: the same scene gives the same findings. What it says must follow
//! from what was read; a guess is not a finding.

mod convoy;
mod deadlock;
mod explain;
mod hard_lockup;
mod hung_task;
mod inconsistent_lock;
mod locked_cpu;
mod long_hold;
mod long_wait;
mod off_cpu_holder;
pub mod second_opinion;
mod soft_lockup;
mod writer_starvation;

pub use convoy::Convoy;
pub use deadlock::Deadlock;
pub use explain::{FaultUnderMmapLock, ForkOfHugeProcess, LostWakeup, SlowFileSystem, UmountWaits};
pub use hard_lockup::HardLockup;
pub use hung_task::{HungTask, awaited_name};
pub use inconsistent_lock::InconsistentLock;
pub use long_hold::LongHold;
pub use long_wait::LongWait;
pub use off_cpu_holder::OffCpuHolder;
use serde::{Deserialize, Serialize};
pub use soft_lockup::SoftLockup;
pub use writer_starvation::WriterStarvation;

use crate::{
    daemon::Daemon,
    graph::chain::{Chain, Step},
    kernel_log::KernelLog,
    lock::{Lock, LockAddr, Stacks},
    lockup::Lockup,
    sleeper::{Awaited, Sleeper},
    survey::Survey,
    task::{Nanos, Tid},
};

/// What detectors look at.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// When it was seen, `CLOCK_MONOTONIC` ns.
    pub at_ns: u64,
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
    /// Tasks in uninterruptible sleep.
    pub sleepers: &'a [Sleeper],
    /// CPUs that do not go on.
    pub lockups: &'a [Lockup],
    /// What the kernel's own detectors said.
    pub kernel_log: &'a KernelLog,
    /// From when on something counts.
    pub thresholds: Thresholds,
}

impl<'a> Scene<'a> {
    /// What a survey found, with its chains.
    pub fn new(survey: &'a Survey, chains: &'a [Chain], thresholds: Thresholds) -> Self {
        Self {
            at_ns: survey.taken_at_ns,
            sleepers: &survey.sleepers,
            lockups: &survey.lockups,
            kernel_log: &survey.kernel_log,
            locks: &survey.locks,
            daemons: &survey.daemons,
            stacks: &survey.stacks,
            looks: survey.looks,
            chains,
            thresholds,
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
    /// What it is about where that is no lock: the same in the next survey is the same
    /// trouble.
    pub subject: Option<Subject>,
    /// In words, what the kernel's own detector said of the same, or why it did not.
    pub second_opinion: Option<String>,
}

impl Finding {
    /// Says nothing of nothing: what the fields begin as.
    pub const EMPTY: Self = Self {
        detector: "",
        severity: Severity::Info,
        sentence: String::new(),
        locks: Vec::new(),
        tasks: Vec::new(),
        path: Vec::new(),
        evidence: Vec::new(),
        subject: None,
        second_opinion: None,
    };
}

/// What a finding is about that is about no lock alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// Tasks in uninterruptible sleep that wait for this.
    Awaited(Awaited),
    /// A CPU, by its number.
    Cpu(u32),
}

/// From when on something counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thresholds {
    /// A wait for a lock this long or longer is a stall.
    pub wait: Nanos,
    /// A task this long in uninterruptible sleep hangs; `None`: none does.
    pub hung_task: Option<Nanos>,
    /// A CPU this long in the kernel with a reschedule pending is locked up.
    pub soft_lockup: Option<Nanos>,
    /// A CPU this long without a timer interrupt is locked up.
    pub hard_lockup: Option<Nanos>,
}

impl Thresholds {
    /// Nothing is ever found.
    pub const NONE: Self = Self {
        wait: Nanos(u64::MAX),
        hung_task: None,
        soft_lockup: None,
        hard_lockup: None,
    };

    /// Of lock waits this one, of everything else those that the kernel begins with
    /// (kernel/hung_task.c, kernel/watchdog.c: 120 s, 2 × 10 s, 10 s).
    pub const fn of_waits(wait: Nanos) -> Self {
        const SECOND: u64 = 1_000_000_000;
        Self {
            wait,
            hung_task: Some(Nanos(120 * SECOND)),
            soft_lockup: Some(Nanos(20 * SECOND)),
            hard_lockup: Some(Nanos(10 * SECOND)),
        }
    }
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
    &HardLockup,
    &SoftLockup,
    &HungTask,
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

    /// Those of them that have one of these names.
    #[must_use]
    pub fn among(&self, names: &[&str]) -> Self {
        let asked = self.0.iter().copied();
        Self(asked.filter(|it| names.contains(&it.name())).collect())
    }

    /// Whether the one of this name is among them.
    pub fn asks(&self, name: &str) -> bool {
        self.0.iter().any(|detector| detector.name() == name)
    }

    /// These thresholds, off where nobody asks.
    pub fn asked(&self, thresholds: Thresholds) -> Thresholds {
        let asked = |detector: &dyn Detector, threshold: Option<Nanos>| {
            threshold.filter(|_| self.asks(detector.name()))
        };
        Thresholds {
            wait: thresholds.wait,
            hung_task: asked(&HungTask, thresholds.hung_task),
            soft_lockup: asked(&SoftLockup, thresholds.soft_lockup),
            hard_lockup: asked(&HardLockup, thresholds.hard_lockup),
        }
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
