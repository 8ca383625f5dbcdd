//! CPUs that do not go on, as the contract writes them down.

use schemars::JsonSchema;
use serde::Serialize;

use super::Task;
use crate::{
    lockup::LockupKind,
    task::{Nanos, Tid},
};

/// A CPU that does not go on.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Lockup {
    /// Number of the CPU.
    pub cpu: u32,
    /// How much of it stands still.
    pub kind: LockupKind,
    /// For how long, in ns.
    pub lasted_ns: Nanos,
    /// The task that is on it. Absent: its idle task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
    /// What runs there.
    pub context: Context,
    /// True if that is not the task's own doing: the task is interrupted, and not to blame.
    /// Absent if not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    pub interrupted: bool,
    /// The BPF program that runs there, by what called it, in words. Absent where none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// Where it spins: the sampled stacks, the most frequent first.
    pub profile: Vec<Spin>,
    /// Samples in all.
    pub samples: u32,
    /// Index of the functions that words on the task's stack return to, innermost first, in
    /// `stacks`; old ones may be among them. Absent for a soft lockup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub returns: Option<u32>,
    /// Tasks that are ready to run there, the longest first.
    pub starved: Vec<Starved>,
    /// Tasks on other CPUs that may share a spinlock with it.
    pub sharers: Vec<Sharer>,
    /// `id`s of the locks that the task holds and others wait for.
    pub holds: Vec<String>,
    /// Distinct tasks that wait behind these, directly or through others.
    pub blocked_tasks: u32,
    /// What could not be known, one line each.
    pub unknown: Vec<String>,
    /// What the kernel's own watchdog said; part of the finding.
    #[serde(skip)]
    pub second_opinion: Option<String>,
}

/// What a CPU runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Context {
    /// The task itself.
    Task,
    /// Soft interrupts.
    Softirq {
        /// Which, as /proc/softirqs spells it. Absent where no frame tells.
        #[serde(skip_serializing_if = "Option::is_none")]
        vector: Option<String>,
        /// The function that it runs, that of most samples. Absent where no frame tells.
        #[serde(skip_serializing_if = "Option::is_none")]
        callback: Option<String>,
        /// How many different ones the samples found.
        callbacks: u32,
    },
    /// An interrupt's handler.
    Interrupt {
        /// Its function. Absent where no frame tells.
        #[serde(skip_serializing_if = "Option::is_none")]
        handler: Option<String>,
    },
    /// No sample tells.
    Unknown,
}

/// A sampled stack.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Spin {
    /// Index of the stack in `stacks`. What no symbol names is `?`, or says that it was
    /// loaded later than the symbols were read.
    pub stack: u32,
    /// Samples that had it.
    pub count: u32,
}

/// A task that is ready to run on a CPU that does not let it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Starved {
    /// Thread id.
    pub tid: Tid,
    /// Name of the thread.
    pub comm: String,
    /// It has not run for this long, in ns; at most as long as the lockup.
    pub since_ns: Nanos,
}

/// A task on another CPU that may share a spinlock with a locked one. Possible, never more.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Sharer {
    /// Thread id.
    pub tid: Tid,
    /// Name of the thread.
    pub comm: String,
    /// Where it runs.
    pub cpu: u32,
    /// The address that both have.
    pub address: String,
    /// True if it is this task that waits for a spinlock, false if it is the locked CPU.
    pub waits: bool,
}
