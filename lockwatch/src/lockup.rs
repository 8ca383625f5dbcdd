//! Lockups: CPUs that do not go on.

mod monitor;
mod pace;
mod readings;

pub use monitor::Monitor;
pub use pace::Pace;
pub use readings::{CpuBeat, CpuTimes, Mode, Readings, Run};
use serde::{Deserialize, Serialize};

use crate::{
    lock::{StackId, Stacks, function_of},
    task::{Nanos, TaskName},
};

/// A CPU that did not go on, past the threshold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lockup {
    /// Number of the CPU.
    pub cpu: u32,
    /// How much of it stands still.
    pub kind: LockupKind,
    /// For how long: since the first sample of this, or since its last beat.
    pub lasted: Nanos,
    /// The task that the CPU was in at the last sample; `None`: its idle task. For a hard
    /// lockup the one that is on it now, where that could be read.
    pub task: Option<TaskName>,
    /// What runs there.
    pub context: Context,
    /// What runs there is not the task's own doing: the task is interrupted, cannot go on, and
    /// is not to blame.
    pub is_task_interrupted: bool,
    /// The BPF program that runs there, by the place that called it, in words: `a BPF
    /// program on the tracepoint netif_receive_skb`. `None` where none does.
    pub program: Option<String>,
    /// Where it spins: stacks as the samples found them, the most frequent first.
    pub profile: Vec<Spin>,
    /// Samples in all; those of [`Self::profile`] may be fewer.
    pub samples: u32,
    /// Of a hard lockup, whose CPU lets nobody unwind its stack: the functions that words on
    /// the task's stack return to, innermost first. Old ones may be among them.
    pub returns: Option<StackId>,
    /// Tasks that are ready to run there and do not get the CPU, the longest first.
    pub starved: Vec<Starved>,
    /// Tasks on other CPUs that may wait for a spinlock together with it, or hold it.
    pub sharers: Vec<Sharer>,
    /// What could not be known of it, one line each.
    pub unknown: Vec<String>,
}

/// How much of a CPU stands still.
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
pub enum LockupKind {
    /// It takes interrupts, and no other task gets it.
    Soft,
    /// It takes no interrupts.
    Hard,
}

/// What a CPU runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Context {
    /// The task itself, in a system call, a fault or a kernel thread.
    Task,
    /// Soft interrupts, on top of a task or in `ksoftirqd`.
    Softirq {
        /// As /proc/softirqs spells it: `NET_RX`, `TIMER`, `TASKLET`, …; `None` where no
        /// frame tells.
        vector: Option<String>,
        /// The function that the vector runs, where a frame tells: that of most samples.
        callback: Option<String>,
        /// How many different ones the samples found: many of them are many timers that
        /// expired together, for example, of which none alone is to blame.
        callbacks: u32,
    },
    /// An interrupt's handler.
    Interrupt {
        /// The handler's function, where a frame tells.
        handler: Option<String>,
    },
    /// No sample or stack tells.
    Unknown,
}

impl Lockup {
    /// The functions that all stacks of the profile have in common at their outer end,
    /// innermost first: the CPU has not left the first of them.
    pub fn common<'s>(&self, stacks: &'s Stacks) -> Vec<&'s str> {
        let outwards = |spin: &Spin| {
            stacks
                .frames(spin.stack)
                .iter()
                .rev()
                .map(|it| function_of(it))
        };
        let mut profile = self.profile.iter();
        let mut common: Vec<&str> = profile.next().map(outwards).into_iter().flatten().collect();
        for spin in profile {
            let same = common
                .iter()
                .zip(outwards(spin))
                .take_while(|(a, b)| *a == b);
            let same = same.count();
            common.truncate(same);
        }
        common.reverse();
        common
    }
}

/// A stack, and how many samples had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spin {
    /// The stack.
    pub stack: StackId,
    /// Samples.
    pub count: u32,
}

/// A task that is ready to run on a CPU that does not let it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Starved {
    /// Who.
    pub task: TaskName,
    /// It has not run for this long.
    pub since: Nanos,
}

/// A task on another CPU that has an address of a spinlock in common with a locked CPU.
/// Possible, never more: a word on a stack is no proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sharer {
    /// Who.
    pub task: TaskName,
    /// Where it runs.
    pub cpu: u32,
    /// The address they share.
    #[serde(with = "crate::hex")]
    pub address: u64,
    /// The function that waits for a spinlock, and whose: `true` if the sharer is in it,
    /// `false` if the locked CPU is.
    pub sharer_waits: bool,
}

/// A CPU that may be locked up, as its beats tell: what a survey is asked to look into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// Number of the CPU.
    pub cpu: u32,
    /// How much of it stands still.
    pub kind: LockupKind,
    /// `CLOCK_MONOTONIC` ns. Soft: as long before the last sample as samples without a gap
    /// between them tell, which is the first sample of this unless the machine stood still
    /// in between. Hard: its last beat.
    pub since_ns: u64,
    /// `CLOCK_MONOTONIC` ns up to which it is known to have stood. Soft: the last sample.
    /// Hard: when its silence was seen.
    pub until_ns: u64,
    /// The task that the CPU was in at the last sample; `None`: its idle task.
    pub task: Option<TaskName>,
    /// The stacks that were sampled since, the most frequent first.
    pub samples: Vec<Sample>,
    /// Whether it is known that a reschedule was pending all that time. Where it is not, a
    /// CPU is locked up only if a task is ready to run there.
    pub is_reschedule_known: bool,
    /// What could not be known, one line each.
    pub unknown: Vec<String>,
}

/// A sampled stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Addresses: where the CPU was, then return addresses outwards.
    pub frames: Vec<u64>,
    /// How many samples had it.
    pub count: u32,
}
