//! What the stream object sends and keeps: lock waits and the task switches of
//! tasks that others wait for.

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::survey::COMM_LEN;

/// `contention_begin` flags (include/trace/events/lock.h, the same since 5.19).
pub mod flags {
    /// Spins (spinlock, rwlock, or a mutex's optimistic phase).
    pub const SPIN: u32 = 1;
    /// Wants it for read.
    pub const READ: u32 = 2;
    /// Wants it for write.
    pub const WRITE: u32 = 4;
    /// PREEMPT_RT lock.
    pub const RT: u32 = 8;
    /// Per-CPU rwsem.
    pub const PERCPU: u32 = 16;
    /// Mutex.
    pub const MUTEX: u32 = 32;
}

/// Kinds of [`Event`].
pub mod kind {
    /// A task began to wait: `lock`, `flags`.
    pub const WAIT_BEGIN: u32 = 1;
    /// A wait ended: `lock`, `flags`, `since_ns`, `value` = the tracepoint's `ret`.
    pub const WAIT_END: u32 = 2;
    /// A watched task left the CPU: `value` = its state (`TASK_*` bits), 0 = preempted.
    pub const SWITCH_OUT: u32 = 3;
    /// A watched task got a CPU.
    pub const SWITCH_IN: u32 = 4;
}

/// One ring-buffer record.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Event {
    /// `CLOCK_MONOTONIC` ns.
    pub at_ns: u64,
    /// Address of the lock, 0 for switches.
    pub lock: u64,
    /// For `WAIT_END`: when the wait began, `CLOCK_MONOTONIC` ns.
    pub since_ns: u64,
    /// Address of the `task_struct`: with the tid, which task this is.
    pub task: u64,
    /// One of [`kind`].
    pub kind: u32,
    /// Thread id in the initial PID namespace.
    pub tid: u32,
    /// Thread group id in the initial PID namespace.
    pub tgid: u32,
    /// [`flags`] of the wait.
    pub flags: u32,
    /// See [`kind`].
    pub value: i64,
    /// Name of the task.
    pub comm: [u8; COMM_LEN],
}

const _: () = assert!(size_of::<Event>() == 4 * 8 + 4 * 4 + 8 + COMM_LEN);

/// An open wait, kept in the map `WAITS` by tid: the state survives any lost event.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct OpenWait {
    /// Address of the lock.
    pub lock: u64,
    /// `CLOCK_MONOTONIC` ns at which the wait began.
    pub since_ns: u64,
    /// Address of the `task_struct`.
    pub task: u64,
    /// [`flags`] of the wait.
    pub flags: u32,
    /// Thread group id.
    pub tgid: u32,
}

/// Indexes into the per-CPU array `LOST`: what could not be sent or kept.
pub mod lost {
    /// Ring buffer was full at a begin.
    pub const BEGIN: u32 = 0;
    /// Ring buffer was full at an end.
    pub const END: u32 = 1;
    /// Ring buffer was full at a switch.
    pub const SWITCH: u32 = 2;
    /// The map of open waits was full.
    pub const OPEN_WAIT: u32 = 3;
    /// Number of counters.
    pub const COUNT: u32 = 4;
}
