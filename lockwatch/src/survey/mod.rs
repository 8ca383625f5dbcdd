//! The survey: the state of the host at one instant, read without attaching
//! anything, so that it also explains a host that hung before it was started.

mod areas;
mod asking;
mod cgroup;
mod clock;
pub mod confidence;
mod daemons;
mod device;
mod functions;
mod fuse;
mod holders;
mod holds;
#[cfg(test)]
mod image;
#[cfg(test)]
mod incident;
mod link;
mod lockups;
mod look;
mod merge;
mod names;
mod paths;
mod queue;
mod recent_holds;
mod recursion;
mod sleepers;
mod stack;
mod stuck;
pub mod study;
mod surveyor;
mod writers;

use std::time::Duration;

pub use holds::{HoldSource, TracedHold};
use serde::{Deserialize, Serialize};
pub use surveyor::{OpenError, Parts, SurveyError, Surveyor};

use crate::{
    daemon::Daemon,
    kernel_log::KernelLog,
    lock::{Lock, Stacks},
    lockup::Lockup,
    sleeper::Sleeper,
    task::Nanos,
};

/// What a survey found: every lock that tasks are queued on, and every daemon they wait for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Survey {
    /// When the second look was taken.
    pub taken_at: jiff::Timestamp,
    /// `CLOCK_MONOTONIC` ns of the second look.
    pub taken_at_ns: u64,
    /// How long the whole survey took, the pauses between the looks included.
    pub duration: Nanos,
    /// Of that, the pauses.
    pub paused: Nanos,
    /// Looks that agree on all locks: 2, or 1 where the deadline cut the survey short or a
    /// queue could be read in one of them only.
    pub looks: u32,
    /// Tasks seen.
    pub task_count: u32,
    /// What could not be read or known, one line each.
    pub degraded: Vec<String>,
    /// Locks with waiters, in no particular order.
    pub locks: Vec<Lock>,
    /// Daemons that tasks wait for, in no particular order.
    pub daemons: Vec<Daemon>,
    /// Tasks in uninterruptible sleep, the longest first.
    #[serde(default)]
    pub sleepers: Vec<Sleeper>,
    /// CPUs that do not go on, as far as somebody watched them.
    #[serde(default)]
    pub lockups: Vec<Lockup>,
    /// What the kernel's own detectors said.
    #[serde(default)]
    pub kernel_log: KernelLog,
    /// The stacks that all these refer to.
    pub stacks: Stacks,
}

impl Survey {
    /// Whether what it does not show was over. One look that found tasks waiting was cut
    /// short; one that found none needed no second.
    pub fn can_tell_ends(&self) -> bool {
        let is_empty = self.locks.is_empty() && self.daemons.is_empty() && self.sleepers.is_empty();
        self.looks >= 2 || is_empty
    }
}

/// How to take a survey.
#[derive(Clone, Copy, Debug)]
pub struct SurveyOptions {
    /// Pause between the two looks; at least 50 ms tells races from stalls.
    pub pause: Duration,
    /// Stop and report what is known after this long.
    pub deadline: Duration,
}

impl Default for SurveyOptions {
    fn default() -> Self {
        Self {
            pause: Duration::from_millis(50),
            deadline: Duration::from_secs(2),
        }
    }
}
