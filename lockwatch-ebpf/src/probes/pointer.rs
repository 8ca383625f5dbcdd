//! Pointers at offsets that are known only when the object is loaded.

use core::{ffi::c_void, mem::size_of};

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use lockwatch_ebpf::Member;

/// The pointer member of the structure at `base` as a number; 0 where the kernel has no such
/// member.
///
/// Not a direct load: for each of these that gives a pointer to a structure, verifiers from
/// 6.4 on go through the names of all types of the kernel, up to four times, to learn whether
/// it may be trusted (`check_ptr_to_btf_access`, kernel/bpf/verifier.c): 2 ms a load.
#[inline(always)]
pub(crate) fn pointer(base: *const u8, member: Member) -> u64 {
    let mut pointer = 0u64;
    if member.size == 0 {
        return 0;
    }
    // SAFETY: reads 8 bytes into a local of that size; a bad address is an error.
    let _ = unsafe {
        bpf_probe_read_kernel(
            (&raw mut pointer).cast::<c_void>(),
            size_of::<u64>() as u32,
            base.wrapping_add(member.offset as usize).cast::<c_void>(),
        )
    };
    pointer
}
