//! The contract between the programs in the kernel and user space.
//!
//! Everything here is `no_std`, `repr(C)`, explicitly padded and free of `bool`
//! and `enum`, so that both sides agree on every byte. User space reads these
//! types with `zerocopy`, decodes them once, at the edge, and uses its own
//! domain types from there on.
#![no_std]

pub mod abi;
pub use abi::{acquisitions, beats, counts, edge, holds, long_holds, stream, survey, tally};

/// Where a member lies in a kernel structure, as BTF of the running kernel says.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
)]
pub struct Member {
    /// Bytes from the start of the structure.
    pub offset: u32,
    /// Size in bytes: 1, 2, 4 or 8; 0 = this kernel has no such member.
    pub size: u32,
}

impl Member {
    /// A member that the running kernel does not have.
    pub const ABSENT: Self = Self { offset: 0, size: 0 };
}
