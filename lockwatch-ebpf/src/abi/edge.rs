//! The test object: lock operations that no user space can ask for, and a count of what
//! came of them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What the test programs act on, fixed when they are loaded.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct EdgeConfig {
    /// First 8 bytes of the comm of the tasks to act on, as they lie in memory.
    pub comm: u64,
    /// Which bits of it must be equal.
    pub comm_mask: u64,
    /// Number of the argument `success` of `mmap_lock_acquire_returned`.
    pub success_argument: u32,
    /// Keeps the size a multiple of the alignment.
    pub _pad: u32,
}

const _: () = assert!(size_of::<EdgeConfig>() == 24);

/// Indexes into the per-CPU array `EDGE_COUNTERS`. All but the last count what tasks of
/// the configured comm do.
pub mod counter {
    /// A lock for read was asked for without waiting, and taken.
    pub const TAKEN: u32 = 0;
    /// It was asked for and refused.
    pub const REFUSED: u32 = 1;
    /// A program asked for the `mmap_lock` from inside of another hold and took it.
    pub const NESTED: u32 = 2;
    /// A lock that a program took at a switch was released while another task ran.
    pub const ELSEWHERE: u32 = 3;
    /// Number of counters.
    pub const COUNT: u32 = 4;
}

/// Indexes into the array `LAST`.
pub mod last {
    /// What a program took last.
    pub const TAKEN: u32 = 0;
    /// What a task of the configured comm was refused last.
    pub const REFUSED: u32 = 1;
    /// Number of indexes.
    pub const COUNT: u32 = 2;
}
