//! The test object of the learner: from where locks are acquired and released.

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One task's hold of one rwsem: the key of the map `ACQUISITIONS`.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Hold {
    /// Address of the rwsem.
    pub lock: u64,
    /// Thread id in the initial PID namespace.
    pub tid: u32,
    /// Keeps the size a multiple of the alignment.
    pub _pad: u32,
}

const _: () = assert!(size_of::<Hold>() == 16);

/// How it was acquired: the value.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Acquisition {
    /// `CLOCK_MONOTONIC` ns, when the stack had been unwound: another program at the same
    /// return runs a moment before or after.
    pub at_ns: u64,
    /// Id of the stack.
    pub stack: u32,
    /// Keeps the size a multiple of the alignment.
    pub _pad: u32,
}

const _: () = assert!(size_of::<Acquisition>() == 16);

/// A pair of stacks, the key of the map `ENDED`: with the first a lock was acquired, and
/// with the second released.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Ended {
    /// Id of a stack.
    pub acquired: u32,
    /// Id of a stack.
    pub released: u32,
}

const _: () = assert!(size_of::<Ended>() == 8);
