//! Tasks: who they are and what they are doing.

mod comm;

use std::fmt;

pub use comm::Comm;
use serde::{Deserialize, Serialize};

/// Thread id in the initial PID namespace.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(transparent)]
pub struct Tid(pub u32);

/// Thread group id (what user space calls a process id) in the initial PID namespace.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(transparent)]
pub struct Tgid(pub u32);

impl fmt::Display for Tid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Tgid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A span of time in nanoseconds.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(transparent)]
pub struct Nanos(pub u64);

impl Nanos {
    /// One millisecond.
    pub const MILLI: Self = Self(1_000_000);

    /// From a std duration; saturates after 584 years.
    pub fn from_duration(duration: std::time::Duration) -> Self {
        Self(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
    }

    /// In seconds, rounded to 53 bits.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// The time between two points, 0 if they are the wrong way round.
    #[must_use]
    pub const fn between(earlier_ns: u64, later_ns: u64) -> Self {
        Self(later_ns.saturating_sub(earlier_ns))
    }
}

/// Identity of a task over time: tids are reused, a tid with its start time is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TaskKey {
    /// Thread id.
    pub tid: Tid,
    /// Start time in ns since boot.
    pub start_ns: u64,
}

/// Who a task is, as a report names it: `comm[tid]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TaskName {
    /// Identity over time.
    pub key: TaskKey,
    /// Thread group.
    pub tgid: Tgid,
    /// Name of the thread, control characters replaced.
    pub comm: Comm,
}

impl fmt::Display for TaskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.comm, self.key.tid)
    }
}

/// What the scheduler says of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskState {
    /// On a CPU now.
    Running,
    /// Runnable, waiting for a CPU.
    Runnable,
    /// Asleep, any signal wakes it (`S`).
    Interruptible,
    /// Asleep, nothing but its event wakes it (`D`).
    Uninterruptible,
    /// Asleep, its event or a fatal signal wakes it (`D`, `TASK_KILLABLE`).
    Killable,
    /// A kernel thread waiting for work (`I`).
    Idle,
    /// Stopped or traced (`T`, `t`).
    Stopped,
    /// Exiting or dead (`X`, `Z`).
    Dead,
    /// Anything else: the raw bits.
    Other(u32),
}

impl TaskState {
    /// From `task->__state`, `task->exit_state`, `on_cpu` and `on_rq`.
    ///
    /// Bits: include/linux/sched.h, the same from 4.14 to 7.3.
    pub fn decode(state: u32, exit_state: u32, on_cpu: bool, on_rq: bool) -> Self {
        const INTERRUPTIBLE: u32 = 0x1;
        const UNINTERRUPTIBLE: u32 = 0x2;
        const STOPPED_OR_TRACED: u32 = 0x4 | 0x8;
        const DEAD: u32 = 0x80;
        const WAKEKILL: u32 = 0x100;
        const NOLOAD: u32 = 0x400;
        if exit_state != 0 || state & DEAD != 0 {
            Self::Dead
        } else if on_cpu {
            Self::Running
        } else if on_rq && state == 0 {
            Self::Runnable
        } else if state & STOPPED_OR_TRACED != 0 {
            Self::Stopped
        } else if state & UNINTERRUPTIBLE != 0 {
            match (state & WAKEKILL != 0, state & NOLOAD != 0) {
                (true, _) => Self::Killable,
                (false, true) => Self::Idle,
                (false, false) => Self::Uninterruptible,
            }
        } else if state & INTERRUPTIBLE != 0 {
            Self::Interruptible
        } else if state == 0 {
            Self::Runnable
        } else {
            Self::Other(state)
        }
    }

    /// The letter that `ps` shows.
    pub const fn letter(self) -> char {
        match self {
            Self::Running | Self::Runnable => 'R',
            Self::Interruptible => 'S',
            Self::Uninterruptible | Self::Killable => 'D',
            Self::Idle => 'I',
            Self::Stopped => 'T',
            Self::Dead => 'X',
            Self::Other(_) => '?',
        }
    }

    /// Asleep with a stack that stands still.
    pub const fn is_asleep(self) -> bool {
        !matches!(self, Self::Running | Self::Runnable | Self::Dead)
    }
}

/// Why a task does not go on.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum StuckClass {
    /// Waits for a block device.
    BlockIo,
    /// Waits for a network file system's server.
    NetworkFs,
    /// Waits for a FUSE daemon.
    Fuse,
    /// Waits for another kernel lock.
    Lock,
    /// Reclaims or compacts memory, or waits for those who do.
    Reclaim,
    /// Waits for a completion, a grace period or a work item inside the kernel.
    Completion,
    /// Stopped by user space: ptrace, freezer, userfaultfd.
    User,
    /// Runs.
    Running,
    /// Could run, but has no CPU.
    Runnable,
    /// Asleep on a timer.
    Sleep,
    /// Is exiting.
    Exit,
    /// None of the known ones.
    Unknown,
}

impl StuckClass {
    /// The word that programs read.
    pub const fn word(self) -> &'static str {
        match self {
            Self::BlockIo => "block-io",
            Self::NetworkFs => "network-fs",
            Self::Fuse => "fuse",
            Self::Lock => "lock",
            Self::Reclaim => "reclaim",
            Self::Completion => "completion",
            Self::User => "user",
            Self::Running => "running",
            Self::Runnable => "runnable",
            Self::Sleep => "sleep",
            Self::Exit => "exit",
            Self::Unknown => "unknown",
        }
    }

    /// In words for a person.
    pub const fn words(self) -> &'static str {
        match self {
            Self::BlockIo => "waiting for block I/O",
            Self::NetworkFs => "waiting for a network file system's server",
            Self::Fuse => "waiting for a FUSE daemon",
            Self::Lock => "waiting for another kernel lock",
            Self::Reclaim => "reclaiming memory or waiting for those who do",
            Self::Completion => "waiting for a completion inside the kernel",
            Self::User => "held up by user space (ptrace, freezer or userfaultfd)",
            Self::Running => "running",
            Self::Runnable => "could run, but has no CPU",
            Self::Sleep => "asleep on a timer",
            Self::Exit => "exiting",
            Self::Unknown => "what it waits for is unknown",
        }
    }
}

/// Why a task does not go on, with the frame that says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stuck {
    /// The class.
    pub class: StuckClass,
    /// The function that decided, without address.
    pub frame: Option<String>,
    /// Off the CPU for this long, if it is off.
    pub since: Option<Nanos>,
    /// The block device it waits for, where it waits for one that could be told.
    pub device: Option<BlockDevice>,
}

/// A block device that a task waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDevice {
    /// Its name: `nvme0n1`.
    pub name: String,
    /// Requests that the driver had not completed yet. `None` where that could not be read.
    pub in_flight: Option<u64>,
}
