//! What the kernel's own detectors said of hanging tasks and CPUs.

use serde::{Deserialize, Serialize};

use crate::task::{Nanos, Tid};

/// The kernel's messages about hanging tasks and CPUs, and whether they can be expected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelLog {
    /// Oldest first.
    pub messages: Vec<Message>,
    /// How the detectors are set; `None` where that was not read.
    pub detectors: Option<KernelDetectors>,
    /// Why the log could not be read; `None`: it was.
    pub unread: Option<String>,
}

/// How the kernel's own detectors are set (/proc/sys/kernel).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelDetectors {
    /// `hung_task_timeout_secs`; `None`: off, or not built in.
    pub hung_task: Option<Nanos>,
    /// `hung_task_warnings`: how many it still prints; `None`: any number, or not known.
    pub hung_task_warnings: Option<u64>,
    /// 2 × `watchdog_thresh`; `None`: off (`watchdog`, `soft_watchdog`), or not built in.
    pub soft_lockup: Option<Nanos>,
    /// `watchdog_thresh`; `None`: off (`watchdog`, `nmi_watchdog`), or not built in.
    pub hard_lockup: Option<Nanos>,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// When it was printed, on the clock of the survey (`CLOCK_MONOTONIC` ns), as exactly
    /// as the log's own clock tells.
    pub at_ns: u64,
    /// What it says.
    pub said: Said,
}

/// A task as the log names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggedTask {
    /// Thread id in the initial PID namespace.
    pub tid: Tid,
    /// Name of the thread.
    pub comm: String,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Said {
    /// `INFO: task C:P blocked for more than N seconds.`
    HungTask {
        /// Who.
        task: LoggedTask,
        /// `blocked in I/O wait` (7.3+).
        io_wait: bool,
        /// For longer than this.
        longer_than: Nanos,
    },
    /// `INFO: task C:P … is blocked on a mutex likely owned by task C:P.` (6.16+)
    Blocker {
        /// Who waits.
        task: LoggedTask,
        /// `mutex`, `semaphore` or `rw-semaphore`.
        lock: String,
        /// Who is named as its owner; `None`: `the owner is not found`.
        owner: Option<LoggedTask>,
        /// The owner is said to have a rw-semaphore for read.
        as_reader: bool,
    },
    /// `BUG: soft lockup - CPU#N stuck for Ns! [C:P]`
    SoftLockup {
        /// Number of the CPU.
        cpu: u32,
        /// For how long.
        stuck: Nanos,
        /// The task that it was in.
        task: LoggedTask,
    },
    /// `Watchdog detected hard LOCKUP on cpu N`
    HardLockup {
        /// Number of the CPU.
        cpu: u32,
        /// The CPU that saw it (6.18+).
        seen_by: Option<u32>,
    },
    /// `Future hung task reports are suppressed` (6.12+)
    HungTasksSuppressed,
}
