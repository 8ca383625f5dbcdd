//! What the holds object keeps: which rwsems each task holds, and since when.
//!
//! Nothing is sent: user space reads the state of all tasks when somebody asks.

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most rwsems that one task is known to hold at once; more are counted as lost.
pub const SLOTS: usize = 8;

/// Bit of [`Holds::since_ns`]: the task has acquired the lock again since. Either it has it
/// more than once, or a release was missed, and it was not held all the time.
pub const AGAIN: u64 = 1;

/// The rwsems that a task holds, in no particular order.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Holds {
    /// Addresses; 0 = the slot is free. Written last when a slot is taken.
    pub locks: [u64; SLOTS],
    /// `CLOCK_MONOTONIC` ns at which each was acquired; a downgrade keeps it. Even, but for
    /// [`AGAIN`].
    pub since_ns: [u64; SLOTS],
    /// How often it is held for read; 0 = held for write.
    pub reads: [u32; SLOTS],
}

const _: () = assert!(size_of::<Holds>() == SLOTS * (2 * 8 + 4));

/// The holds of one task: what the iterator writes for each task that has any, and
/// the value of the map `HOLDS` where that is a hash by tid.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TaskHolds {
    /// Start time of the task in ns since boot: with the tid it identifies it for good.
    pub start_time_ns: u64,
    /// Thread id in the initial PID namespace.
    pub tid: u32,
    /// Thread group id in the initial PID namespace.
    pub tgid: u32,
    /// Its holds.
    pub holds: Holds,
}

const _: () = assert!(size_of::<TaskHolds>() == 8 + 2 * 4 + size_of::<Holds>());

/// Most tasks whose holds are known where the state is a hash by tid. The map is
/// preallocated, about 4 MiB.
pub const TASKS_MAX: u32 = 16 * 1024;

/// Releases by a task that was not known to hold the lock that are remembered, the
/// latest by lock.
pub const RELEASES_MAX: u32 = 8 * 1024;

/// Indexes into the per-CPU array `HOLD_COUNTERS`.
pub mod counter {
    /// Acquisitions that found no room.
    pub const LOST_HOLD: u32 = 0;
    /// Releases by a task that was not known to hold the lock.
    pub const FOREIGN_RELEASE: u32 = 1;
    /// Number of counters.
    pub const COUNT: u32 = 2;
}
