//! What the beats object keeps of each CPU: when it was sampled last, and for how long it
//! has been in the kernel with the same task.
//!
//! Nothing is sent: user space reads the slots of all CPUs when it likes. What one sample
//! makes of a slot is here and not in the program, so that it is tested without a kernel.

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Member, survey::COMM_LEN};

/// Most frames of a sampled stack.
pub const FRAMES_MAX: usize = 48;
/// Most stacks of all CPUs that are kept; others are counted as lost.
pub const STACKS_MAX: u32 = 512;

/// What a CPU was in at a sample.
pub mod mode {
    /// User mode.
    pub const USER: u32 = 1;
    /// The kernel.
    pub const KERNEL: u32 = 2;
    /// The kernel, with the idle task as the current one.
    pub const IDLE: u32 = 3;
}

/// Whether the CPU's task was to be replaced by another one at a sample.
pub mod resched {
    /// Which bit says so is not known (yet).
    pub const UNKNOWN: u32 = 0;
    /// It was not.
    pub const NO: u32 = 1;
    /// It was.
    pub const PENDING: u32 = 2;
}

/// How the programs judge. Set once, before loading, as a read-only global.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct BeatConfig {
    /// `task_struct.thread_info.flags`
    pub task_flags: Member,
    /// A longer time between two samples is not counted as time of a run.
    pub gap_ns: u64,
    /// A longer time between two beats ends the steadiness of a CPU.
    pub steady_gap_ns: u64,
    /// Stacks are kept of runs that have lasted this long.
    pub stacks_after_ns: u64,
}

/// Samples one after the other of the same kind, with the same task and no context switch
/// in between.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Run {
    /// `CLOCK_MONOTONIC` ns of the first; means nothing without samples.
    pub since_ns: u64,
    /// Time from the first to the last, without gaps longer than the config's, in ns.
    pub counted_ns: u64,
    /// Longest time between two of them, in ns.
    pub longest_gap_ns: u64,
    /// How many; 0 = no such run.
    pub samples: u32,
    /// Explicit padding.
    pub _pad: u32,
}

impl Run {
    #[inline(always)]
    fn step(&mut self, holds: bool, same: bool, now_ns: u64, gap_ns: u64, longest_counted_ns: u64) {
        if !holds {
            *self = Self::default();
        } else if !same || self.samples == 0 {
            *self = Self {
                since_ns: now_ns,
                samples: 1,
                ..Self::default()
            };
        } else {
            if gap_ns <= longest_counted_ns {
                self.counted_ns += gap_ns;
            }
            if gap_ns > self.longest_gap_ns {
                self.longest_gap_ns = gap_ns;
            }
            self.samples = self.samples.saturating_add(1);
        }
    }
}

/// What one sample says.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Sampled {
    /// `CLOCK_MONOTONIC` ns.
    pub at_ns: u64,
    /// Address of the current task's `task_struct`.
    pub task: u64,
    /// Its start time in ns since boot.
    pub start_time_ns: u64,
    /// Its context switches, of both kinds.
    pub switches: u64,
    /// Instruction pointer.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Thread id in the initial PID namespace; 0 = an idle task.
    pub tid: u32,
    /// Thread group id in the initial PID namespace.
    pub tgid: u32,
    /// As in [`mode`].
    pub mode: u32,
    /// As in [`resched`].
    pub resched: u32,
    /// Name; bytes after the first NUL are stale on old kernels.
    pub comm: [u8; COMM_LEN],
}

impl Sampled {
    /// Whether the CPU was in the kernel on behalf of something. The idle task is, if it is
    /// to be replaced: it leaves its loop for that at once, unless an interrupt or a soft
    /// interrupt is on top of it.
    #[inline(always)]
    fn is_in_kernel(&self) -> bool {
        self.mode == mode::KERNEL || (self.mode == mode::IDLE && self.resched == resched::PENDING)
    }
}

/// One CPU: the value of the array `BEATS`, by its number.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Beat {
    /// Samples begun: written before anything else. A copy in which it differs from `done`
    /// is torn.
    pub begun: u64,
    /// The last sample.
    pub last: Sampled,
    /// `CLOCK_MONOTONIC` ns of the first beat of those that came without a gap longer than
    /// [`BeatConfig::steady_gap_ns`], up to the last one.
    pub steady_since_ns: u64,
    /// Samples in the kernel.
    pub kernel: Run,
    /// Samples in the kernel with a reschedule pending.
    pub pending: Run,
    /// Stacks that found no room, or could not be taken, ever.
    pub lost_stacks: u64,
    /// Entries that this CPU has made in `BEAT_STACKS`, ever.
    pub kept_stacks: u64,
    /// Samples done: written after everything else.
    pub done: u64,
}

const _: () = assert!(size_of::<Sampled>() == 6 * 8 + 4 * 4 + COMM_LEN);
const _: () = assert!(size_of::<Beat>() == 5 * 8 + size_of::<Sampled>() + 2 * 32);

impl Beat {
    /// What this sample makes of the slot; `begun` and `done` stay.
    #[inline(always)]
    pub fn sampled(&mut self, sampled: &Sampled, config: &BeatConfig) {
        let is_first = self.last.at_ns == 0;
        let gap_ns = sampled.at_ns.saturating_sub(self.last.at_ns);
        let same = !is_first
            && self.last.task == sampled.task
            && self.last.start_time_ns == sampled.start_time_ns
            && self.last.switches == sampled.switches;
        if is_first || gap_ns > config.steady_gap_ns {
            self.steady_since_ns = sampled.at_ns;
        }
        let in_kernel = sampled.is_in_kernel();
        let pending = in_kernel && sampled.resched == resched::PENDING;
        self.kernel
            .step(in_kernel, same, sampled.at_ns, gap_ns, config.gap_ns);
        self.pending
            .step(pending, same, sampled.at_ns, gap_ns, config.gap_ns);
        self.last = *sampled;
    }

    /// The run that may become a lockup: with a reschedule pending, or in the kernel alone
    /// where the former cannot be known.
    #[inline(always)]
    pub fn run(&self) -> &Run {
        if self.last.resched == resched::UNKNOWN {
            &self.kernel
        } else {
            &self.pending
        }
    }
}

/// Which stack of which CPU: the key of `BEAT_STACKS`.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct StackKey {
    /// Digest of the frames.
    pub digest: u64,
    /// Number of the CPU.
    pub cpu: u32,
    /// Explicit padding.
    pub _pad: u32,
}

/// A sampled stack: the value of `BEAT_STACKS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BeatStack {
    /// Start of the run that it is of: what an earlier one has left is not counted on.
    pub run_since_ns: u64,
    /// Samples of that run with this stack.
    pub count: u32,
    /// Frames that follow.
    pub frame_count: u32,
    /// Addresses: where the CPU was, then return addresses outwards.
    pub frames: [u64; FRAMES_MAX],
}

const _: () = assert!(size_of::<BeatStack>() == 16 + FRAMES_MAX * 8);

/// What is learned of which bit in a thread's flags says that a reschedule is pending: the
/// only value of the array `NEED_RESCHED`.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct NeedResched {
    /// The bit as a mask; 0 = not known yet.
    pub mask: u64,
    /// Wake-ups seen that speak for [`OLD_NEED_RESCHED`].
    pub old: u32,
    /// Wake-ups seen that speak for [`NEW_NEED_RESCHED`].
    pub new: u32,
}

/// `_TIF_NEED_RESCHED` where x86 numbers these bits itself
/// (arch/x86/include/asm/thread_info.h).
pub const OLD_NEED_RESCHED: u64 = 1 << 3;
/// `_TIF_NEED_RESCHED` where x86 has the common numbers
/// (include/asm-generic/thread_info_tif.h). Bit 3 is `TIF_MEMDIE` there.
pub const NEW_NEED_RESCHED: u64 = 1 << 4;
/// So many wake-ups have to agree, and none to disagree.
pub const WAKEUPS_WANTED: u32 = 3;

impl NeedResched {
    /// Takes in the flags of an idle task while something is woken.
    ///
    /// If it is woken on this very CPU, the idle task has just been marked, in either
    /// numbering, and has neither of the bits' other meanings: it cannot be killed for want
    /// of memory, is not single-stepped, and is never marked lazily
    /// (kernel/sched/core.c, `__resched_curr`, 6.13+).
    #[inline(always)]
    pub fn woken(&mut self, idle_flags: u64) {
        match idle_flags & (OLD_NEED_RESCHED | NEW_NEED_RESCHED) {
            OLD_NEED_RESCHED => self.old = self.old.saturating_add(1),
            NEW_NEED_RESCHED => self.new = self.new.saturating_add(1),
            _ => {}
        }
        self.mask = match (self.old, self.new) {
            (WAKEUPS_WANTED.., 0) => OLD_NEED_RESCHED,
            (0, WAKEUPS_WANTED..) => NEW_NEED_RESCHED,
            _ => 0,
        };
    }
}
