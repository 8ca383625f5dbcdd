//! The tally object: everything that the contention tracepoints say of some tasks, as it
//! comes, for a test to make waits of in its own way.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One firing of a tracepoint.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Firing {
    /// `CLOCK_MONOTONIC` ns.
    pub at_ns: u64,
    /// The first argument.
    pub lock: u64,
    /// Thread id in the initial PID namespace.
    pub tid: u32,
    /// The second argument: flags of a begin, the result of an end.
    pub argument: u32,
    /// 1: `contention_end`.
    pub is_end: u32,
    /// Explicit padding, 0.
    pub _pad: u32,
}

const _: () = assert!(size_of::<Firing>() == 32);

/// Bytes of the ring buffer: a million firings.
pub const RING_LEN: u32 = 32 << 20;
