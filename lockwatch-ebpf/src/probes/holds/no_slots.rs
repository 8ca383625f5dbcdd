//! No slots: for kernels that cannot compare and swap (before 5.12).

use core::{convert::Infallible, ptr};

use lockwatch_ebpf::holds::HoldSet;

/// There is none.
#[derive(Clone, Copy)]
pub(super) struct Set;

/// Nor is there one of these.
#[derive(Clone, Copy)]
pub(super) struct Slot(Infallible);

impl Set {
    #[inline(always)]
    pub(super) fn of_current() -> Self {
        Self
    }

    #[inline(always)]
    pub(super) fn parts(self) -> (*mut HoldSet, u64) {
        (ptr::null_mut(), 0)
    }

    #[inline(always)]
    pub(super) fn from_parts(_set: *mut HoldSet, _task: u64) -> Self {
        Self
    }

    #[inline(always)]
    pub(super) fn take_first(self) -> Option<Slot> {
        None
    }

    #[inline(always)]
    pub(super) fn take(self) -> Option<Slot> {
        None
    }

    #[inline(always)]
    pub(super) fn leave_first(self, _lock: u64, _reads: u32) -> Option<u64> {
        None
    }

    #[inline(always)]
    pub(super) fn find(self, _lock: u64) -> Option<Slot> {
        None
    }

    /// All are.
    #[inline(always)]
    pub(super) fn has_beside(self) -> bool {
        true
    }

    #[inline(always)]
    pub(super) fn one_more_beside(self) {}

    #[inline(always)]
    pub(super) fn one_less_beside(self) {}
}

impl Slot {
    #[inline(always)]
    pub(super) fn write(self, _lock: u64, _since_ns: u64, _reads: u32) {
        match self.0 {}
    }

    #[inline(always)]
    pub(super) fn leave(self) {
        match self.0 {}
    }

    #[inline(always)]
    pub(super) fn words(self) -> (*mut u64, *mut u32) {
        match self.0 {}
    }
}
