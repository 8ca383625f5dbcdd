//! Loads at offsets that are known only when the object is loaded.

use lockwatch_ebpf::Member;

/// The member of the structure at `base` as an unsigned number; 0 where the
/// kernel has no such member.
///
/// # Safety
/// `base` must be a pointer that the verifier trusts, and `member` must describe
/// the type it points to.
#[inline(always)]
pub(crate) unsafe fn load(base: *const u8, member: Member) -> u64 {
    let at = base.wrapping_add(member.offset as usize);
    // One volatile load per width: a merged load of the wrong width is refused by
    // the verifier (`on_cpu` has one byte on 7.3).
    // SAFETY: the caller's promise; the verifier checks each of these loads.
    unsafe {
        match member.size {
            8 => at.cast::<u64>().read_volatile(),
            4 => u64::from(at.cast::<u32>().read_volatile()),
            2 => u64::from(at.cast::<u16>().read_volatile()),
            1 => u64::from(at.read_volatile()),
            _ => 0,
        }
    }
}
