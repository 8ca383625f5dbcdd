//! A task as a tracepoint hands it over: typed, or as a plain word.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use lockwatch_ebpf::Member;

/// A way to the members of a `task_struct`.
pub(crate) trait Access: Copy {
    /// The member as an unsigned number; 0 where the kernel has no such member.
    ///
    /// # Safety
    /// `member` must describe `task_struct` of this kernel.
    unsafe fn load(self, member: Member) -> u64;
}

/// An address: the members are read, which cannot fault and gives 0 if the address is bad.
#[derive(Clone, Copy)]
pub(crate) struct Word(pub(crate) u64);

impl Access for Word {
    #[inline(always)]
    unsafe fn load(self, member: Member) -> u64 {
        let mut value = 0u64;
        let (1 | 2 | 4 | 8) = member.size else {
            return 0;
        };
        // SAFETY: reads at most 8 bytes into a local of that size; the low ones come
        // first in memory.
        let _ = unsafe {
            bpf_probe_read_kernel(
                (&raw mut value).cast::<c_void>(),
                member.size,
                (self.0 + u64::from(member.offset)) as *const c_void,
            )
        };
        value
    }
}
