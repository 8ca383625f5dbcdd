//! A task as a typed tracepoint hands it over.

use lockwatch_ebpf::Member;

use super::{access::Access, member};

/// A pointer that the verifier trusts: the members are loaded.
#[derive(Clone, Copy)]
pub(crate) struct Trusted(*const u8);

impl Trusted {
    /// # Safety
    /// `task` must be a task pointer that the verifier trusts.
    #[inline(always)]
    pub(crate) unsafe fn new(task: *const u8) -> Self {
        Self(task)
    }
}

impl Access for Trusted {
    #[inline(always)]
    unsafe fn load(self, member: Member) -> u64 {
        // SAFETY: the promises of `new` and of the caller.
        unsafe { member::load(self.0, member) }
    }
}
