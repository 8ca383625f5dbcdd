//! What the stream object keeps and sends: open waits, the ends of long ones, and
//! how watched tasks spend their time.
//!
//! The state lives in maps: user space reads open waits from `WAITS` and the times
//! of watched tasks from `WATCHED`. The ring buffer only adds what a map cannot
//! show, the exact end of a wait that is over.

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::survey::COMM_LEN;

/// `contention_begin` flags (include/trace/events/lock.h, the same since 5.19).
/// None at all: a counting semaphore.
pub mod flags {
    /// Spins (spinlock, rwlock, or a mutex's optimistic phase).
    pub const SPIN: u32 = 1;
    /// Wants it for read.
    pub const READ: u32 = 2;
    /// Wants it for write.
    pub const WRITE: u32 = 4;
    /// Lock built on an rtmutex (`PREEMPT_RT`).
    pub const RT: u32 = 8;
    /// Per-CPU rwsem.
    pub const PERCPU: u32 = 16;
    /// Mutex.
    pub const MUTEX: u32 = 32;
    /// Lock of a VMA. Ours: no tracepoint tells of it, only user space enters such waits.
    pub const VMA: u32 = 1 << 31;
    /// The waiting task spins for the spinlock inside an rtmutex, which has the same
    /// address: the next end is that of the spinning. Ours, on `PREEMPT_RT` only.
    pub const SPINS_INSIDE: u32 = 1 << 30;
}

/// How the stream's programs behave. Set once, before loading, as a read-only
/// global: what is off costs nothing.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct StreamConfig {
    /// Ends of waits shorter than this, in ns, are not sent.
    pub ends_from_ns: u64,
    /// 1: send the begin of every wait, too.
    pub begins: u32,
    /// Waits of this thread group are not recorded: our own process, or 0.
    pub own_tgid: u32,
}

/// A function in which the kernel makes tasks wait, as the programs at its begin and end
/// need to know it; the read-only global `WAIT_SITES` has one for each pair of programs.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct WaitSite {
    /// [`flags`] of its waits; [`flags::READ`] and [`flags::WRITE`] together: for read
    /// if the second argument is not 0, else for write.
    pub flags: u32,
    /// Its parameters, 1 to 4: where the value it returns follows; 0 if it returns none.
    pub parameters: u32,
    /// How that value is read: one of [`outcome`].
    pub outcome: u32,
    /// Explicit padding, 0.
    pub _pad: u32,
}

/// Pairs of programs there are for such functions: 5.10 has 13 of them. More are a gap in
/// the plan.
pub const WAIT_SITES: usize = 16;

/// Code of one function: the read-only global `RT_WRITERS` has those through which tasks
/// ask for an rwsem of `PREEMPT_RT` for write, elsewhere none.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Code {
    /// Its first address.
    pub start: u64,
    /// Its length in bytes; 0: there is no such function.
    pub len: u64,
}

/// Functions there is room for: five names, and the parts that a compiler splits off.
pub const RT_WRITERS: usize = 12;

/// How a returned value tells whether the lock was acquired.
pub mod outcome {
    /// It always was.
    pub const ALWAYS: u32 = 0;
    /// An `int`: 0 if it was.
    pub const ZERO: u32 = 1;
    /// A pointer; an error pointer if it was not.
    pub const POINTER: u32 = 2;
    /// An `int` or `bool`: 0 if it was not.
    pub const TRUE: u32 = 3;
}

/// Key of the map `WAITS`. A task can wait for a second lock inside a wait: its
/// block requests are flushed on the way into the scheduler. So a task may have
/// more than one open wait, though only one on each lock.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct WaitKey {
    /// Address of the lock.
    pub lock: u64,
    /// Thread id in the initial PID namespace.
    pub tid: u32,
    /// Explicit padding, 0.
    pub _pad: u32,
}

/// An open wait, the value of the map `WAITS`: the state survives any lost event.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct OpenWait {
    /// `CLOCK_MONOTONIC` ns at which the wait began.
    pub since_ns: u64,
    /// Start time of the task in ns since boot: with the tid it identifies it for good.
    pub start_time_ns: u64,
    /// Thread group id in the initial PID namespace.
    pub tgid: u32,
    /// [`flags`] of the wait.
    pub flags: u32,
    /// Name of the task.
    pub comm: [u8; COMM_LEN],
}

const _: () = assert!(size_of::<OpenWait>() == 2 * 8 + 2 * 4 + COMM_LEN);

/// Most waits in the map `WAITS`: all that are open at once where it keeps them, and beside
/// `WAIT_SLOTS` those that surveys have found, and what finds no slot. It is preallocated, about
/// 2 MiB.
pub const WAITS_MAX: u32 = 16 * 1024;

/// Ways of a [`WaitSet`].
pub const WAIT_WAYS: usize = 4;

/// Elements of the map `WAIT_SLOTS`, 1 MiB: each thread id has one, `tid % WAIT_SETS`, and
/// shares it with others. A power of 2.
pub const WAIT_SETS: u32 = 4 * 1024;

const _: () = assert!(WAIT_SETS.is_power_of_two());

/// Room for an open wait.
///
/// Who takes it swaps `id` for 0, writes the rest, and adds [`WAIT_IS_WRITTEN`] last; who leaves
/// it, or takes the wait out, swaps 0 for that. So whoever reads the same written `id` before
/// and after the rest has read one wait, and nobody ends another's.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct WaitSlot {
    /// [`wait_id`]; 0: the slot is free.
    pub id: u64,
    /// Address of the lock.
    pub lock: u64,
    /// The wait.
    pub wait: OpenWait,
    /// Explicit padding to 64 bytes, 0.
    pub _pad: u64,
}

const _: () = assert!(size_of::<WaitSlot>() == 64);

/// Bit of [`WaitSlot::id`]: all of the wait is there.
pub const WAIT_IS_WRITTEN: u64 = 1;

/// What tells an open wait from others: its task, and when it began; without
/// [`WAIT_IS_WRITTEN`].
#[inline(always)]
pub const fn wait_id(tid: u32, since_ns: u64) -> u64 {
    ((tid as u64) << 32) | (since_ns << 1 & 0xffff_ffff)
}

/// The open waits of the tasks whose thread ids share an element of `WAIT_SLOTS`.
pub type WaitSet = [WaitSlot; WAIT_WAYS];

/// Kinds of [`Event`].
pub mod kind {
    /// A task began to wait; only with [`super::StreamConfig::begins`].
    pub const WAIT_BEGIN: u32 = 1;
    /// A wait ended: `result` says how.
    pub const WAIT_END: u32 = 2;
}

/// One ring-buffer record.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Event {
    /// `CLOCK_MONOTONIC` ns.
    pub at_ns: u64,
    /// Which task and lock.
    pub key: WaitKey,
    /// The wait, as it began.
    pub wait: OpenWait,
    /// One of [`kind`].
    pub kind: u32,
    /// For `WAIT_END`: the tracepoint's `ret`; < 0 = given up, nothing acquired.
    pub result: i32,
}

const _: () =
    assert!(size_of::<Event>() == 8 + size_of::<WaitKey>() + size_of::<OpenWait>() + 2 * 4);

/// Bytes of the ring buffer: 13,000 events. All tasks that [`WAITS_MAX`] allows
/// can be released at once and lose only the exact time of the last fifth.
pub const RING_LEN: u32 = 1 << 20;
/// Unread bytes from which the reader is woken; below, it comes by its timer.
pub const RING_WAKE_LEN: u64 = RING_LEN as u64 / 4;

/// What a watched task does: values of [`Watched::phase`], indexes of [`Watched::ns`].
pub mod phase {
    /// Not known yet.
    pub const UNKNOWN: u32 = 0;
    /// On a CPU.
    pub const RUNNING: u32 = 1;
    /// Could run, has no CPU.
    pub const RUNNABLE: u32 = 2;
    /// Asleep.
    pub const ASLEEP: u32 = 3;
    /// Number of phases.
    pub const COUNT: usize = 4;
}

/// Frames that are kept of a sleep's stack, innermost first.
pub const SLEEP_FRAMES: usize = 32;

/// Different stacks that are kept of one watched task.
pub const SLEEPS: usize = 4;

/// The sleeps of a watched task with one and the same stack.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Sleep {
    /// Time spent in it, up to [`Watched::changed_at_ns`], in ns.
    pub ns: u64,
    /// What tells the stack from others: a digest of its frames; 0 = a free slot.
    pub digest: u64,
    /// Kernel addresses, the rest 0.
    pub frames: [u64; SLEEP_FRAMES],
}

/// Values of [`Watched::sleep`] that are no index into [`Watched::sleeps`].
pub mod sleep {
    /// It has slept since before it was watched.
    pub const FOUND: u32 = super::SLEEPS as u32;
    /// It sleeps with a stack for which there was no room.
    pub const OTHER: u32 = FOUND + 1;
}

/// How a task spends its time, the value of the map `WATCHED` by tid. User space
/// puts entries in and takes them out; the programs only change what is there.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Watched {
    /// Start time of the task in ns since boot: another task with its tid is not counted.
    pub start_time_ns: u64,
    /// `CLOCK_MONOTONIC` ns of the last change of phase, or of the entry.
    pub changed_at_ns: u64,
    /// Time spent in each [`phase`] up to `changed_at_ns`, in ns.
    pub ns: [u64; phase::COUNT],
    /// Of the time asleep: in the sleep in which it was found, in ns.
    pub found_ns: u64,
    /// One of [`phase`], since `changed_at_ns`.
    pub phase: u32,
    /// Times it left the CPU.
    pub switches: u32,
    /// Which of `sleeps` it is in while it is asleep, or one of [`sleep`].
    pub sleep: u32,
    /// Explicit padding, 0.
    pub _pad: u32,
    /// Where it slept.
    pub sleeps: [Sleep; SLEEPS],
}

const _: () = assert!(size_of::<Sleep>() == 2 * 8 + 8 * SLEEP_FRAMES);
const _: () =
    assert!(size_of::<Watched>() == 3 * 8 + 8 * phase::COUNT + 4 * 4 + SLEEPS * size_of::<Sleep>());

/// Most tasks that are watched at once.
pub const WATCHED_MAX: u32 = 256;

/// Indexes into the per-CPU array `COUNTERS`.
pub mod counter {
    /// Waits that were recorded.
    pub const WAITS: u32 = 0;
    /// Begins that did not fit the ring buffer.
    pub const LOST_BEGIN: u32 = 1;
    /// Ends that did not fit the ring buffer: the wait's end is seen, its time is not exact.
    pub const LOST_END: u32 = 2;
    /// Waits that did not fit the map.
    pub const LOST_WAIT: u32 = 3;
    /// Number of counters.
    pub const COUNT: u32 = 4;
}
