//! No slots: for kernels that cannot compare and swap (before 5.12).

use core::convert::Infallible;

/// There is none.
#[derive(Clone, Copy)]
pub(super) struct Set(Infallible);

/// Nor is there one of these.
#[derive(Clone, Copy)]
pub(super) struct Slot(Infallible);

impl Set {
    #[inline(always)]
    pub(super) fn of_current() -> Option<Self> {
        None
    }

    #[inline(always)]
    pub(super) fn take_first(self) -> Option<Slot> {
        match self.0 {}
    }

    #[inline(always)]
    pub(super) fn take(self) -> Option<Slot> {
        match self.0 {}
    }

    #[inline(always)]
    pub(super) fn first(self, _lock: u64) -> Option<Slot> {
        match self.0 {}
    }

    #[inline(always)]
    pub(super) fn find(self, _lock: u64) -> Option<Slot> {
        match self.0 {}
    }

    #[inline(always)]
    pub(super) fn has_beside(self) -> bool {
        match self.0 {}
    }

    #[inline(always)]
    pub(super) fn one_more_beside(self) {
        match self.0 {}
    }

    #[inline(always)]
    pub(super) fn one_less_beside(self) {
        match self.0 {}
    }
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
