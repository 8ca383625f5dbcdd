//! What is read of the CPUs at one time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lockwatch_ebpf::beats::{self, Beat, Sampled};

use super::Sample;
use crate::{
    kernel::memory::comm,
    task::{Nanos, TaskKey, TaskName, Tgid, Tid},
};

/// What is read of the CPUs at one time.
#[derive(Clone, Debug, Default)]
pub struct Readings {
    /// `CLOCK_MONOTONIC` ns, before anything else was read.
    pub now_ns: u64,
    /// Numbers of the CPUs that are online.
    pub online: BTreeSet<u32>,
    /// What is sampled of each CPU that has beaten.
    pub beats: BTreeMap<u32, CpuBeat>,
    /// Where the time of each CPU has gone, ever.
    pub times: Arc<BTreeMap<u32, CpuTimes>>,
    /// `CLOCK_MONOTONIC` ns, before [`Self::times`] was read: that may be from a reading
    /// before.
    pub times_ns: u64,
    /// Timer interrupts of each CPU, ever, where the kernel counts them; read only while
    /// some CPU is late.
    pub timer_interrupts: BTreeMap<u32, u64>,
    /// Whether this is a virtual machine, whose host may not let a CPU run.
    pub is_virtual: bool,
}

/// Where the time of a CPU has gone since the machine was started (/proc/stat).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTimes {
    /// All of it, in clock ticks.
    pub all: u64,
    /// Another machine of the host ran instead, in clock ticks. A CPU counts it itself, and
    /// so not while it does not run.
    pub stolen: u64,
    /// It idled, waiting for I/O or not, in clock ticks. Of a CPU that idles just now the
    /// kernel adds that time when it is asked (`get_idle_time` in fs/proc/stat.c, where there
    /// is nohz): that it goes on needs no timer of that CPU.
    pub idle: u64,
}

/// What is sampled of one CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuBeat {
    /// `CLOCK_MONOTONIC` ns of the last sample.
    pub last_ns: u64,
    /// `CLOCK_MONOTONIC` ns: from here to the last sample there was no gap longer than the
    /// pace's steady gap.
    pub steady_since_ns: u64,
    /// `CLOCK_MONOTONIC` ns at which the CPU last took a step towards online or offline;
    /// 0: it has not since we came.
    pub hotplugged_ns: u64,
    /// The current task at the last sample; `None`: the idle task.
    pub task: Option<TaskName>,
    /// What the CPU was in.
    pub mode: Mode,
    /// Whether another task was to get it; `None` where the kernel's mark for that is not
    /// known.
    pub is_pending: Option<bool>,
    /// Instruction pointer at the last sample.
    pub ip: u64,
    /// Stack pointer at the last sample.
    pub sp: u64,
    /// Samples in the kernel, up to the last one.
    pub kernel: Run,
    /// Those with a reschedule pending, up to the last one.
    pub pending: Run,
    /// Stacks of the run that may become a lockup, the most frequent first.
    pub stacks: Vec<Sample>,
    /// Samples whose stack could not be kept, ever.
    pub lost_stacks: u64,
}

/// What a CPU was in at a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// User mode.
    User,
    /// The kernel.
    Kernel,
    /// The kernel, with the idle task as the current one.
    Idle,
}

/// Samples of one kind one after the other, with the same task and no context switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Time from the first to the last, without gaps longer than the pace's.
    pub counted: Nanos,
    /// Time from the first to the last.
    pub lasted: Nanos,
    /// Longest time between two of them.
    pub longest_gap: Nanos,
    /// How many.
    pub samples: u32,
}

impl CpuBeat {
    /// Of a slot that is not torn. `hotplugged_ns` as the field; `stacks` in any order.
    pub fn decode(beat: &Beat, hotplugged_ns: u64, mut stacks: Vec<Sample>) -> Self {
        let last = &beat.last;
        stacks.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.frames.cmp(&b.frames)));
        Self {
            last_ns: last.at_ns,
            steady_since_ns: beat.steady_since_ns,
            hotplugged_ns,
            task: (last.tid != 0).then(|| name(last)),
            mode: match last.mode {
                beats::mode::USER => Mode::User,
                beats::mode::IDLE => Mode::Idle,
                _ => Mode::Kernel,
            },
            is_pending: match last.resched {
                beats::resched::PENDING => Some(true),
                beats::resched::NO => Some(false),
                _ => None,
            },
            ip: last.ip,
            sp: last.sp,
            kernel: run(&beat.kernel, last.at_ns),
            pending: run(&beat.pending, last.at_ns),
            stacks,
            lost_stacks: beat.lost_stacks,
        }
    }

    /// The run that may become a lockup: with a reschedule pending, or in the kernel alone
    /// where the former is not known.
    pub fn run(&self) -> &Run {
        match self.is_pending {
            Some(_) => &self.pending,
            None => &self.kernel,
        }
    }
}

fn name(last: &Sampled) -> TaskName {
    TaskName {
        key: TaskKey {
            tid: Tid(last.tid),
            start_ns: last.start_time_ns,
        },
        tgid: Tgid(last.tgid),
        comm: comm(&last.comm),
    }
}

fn run(run: &beats::Run, last_ns: u64) -> Run {
    if run.samples == 0 {
        return Run::default();
    }
    Run {
        counted: Nanos(run.counted_ns),
        lasted: Nanos::between(run.since_ns, last_ns),
        longest_gap: Nanos(run.longest_gap_ns),
        samples: run.samples,
    }
}
