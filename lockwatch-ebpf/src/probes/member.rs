//! Loads at offsets that are known only when the object is loaded.

use lockwatch_ebpf::Member;

/// Reads one field of a read-only global, so that the compiler cannot fold the
/// value it has at build time.
macro_rules! global {
    ($static:ident . $field:ident) => {
        // SAFETY: the static is initialised, aligned and never written after load.
        unsafe { core::ptr::read_volatile(&raw const $static.$field) }
    };
}
pub(crate) use global;

/// The member of the structure at `base` as an unsigned number; 0 where the
/// kernel has no such member.
///
/// # Safety
/// `base` must be a pointer that the verifier trusts, and `member` must describe
/// the type it points to.
#[inline(always)]
pub(crate) unsafe fn load(base: *const u8, member: Member) -> u64 {
    // One volatile load per width: a merged load of the wrong width is refused by
    // the verifier (`on_cpu` has one byte on 7.3).
    match member.size {
        8 => unsafe {
            base.add(member.offset as usize)
                .cast::<u64>()
                .read_volatile()
        },
        4 => unsafe {
            u64::from(
                base.add(member.offset as usize)
                    .cast::<u32>()
                    .read_volatile(),
            )
        },
        2 => unsafe {
            u64::from(
                base.add(member.offset as usize)
                    .cast::<u16>()
                    .read_volatile(),
            )
        },
        1 => unsafe { u64::from(base.add(member.offset as usize).read_volatile()) },
        _ => 0,
    }
}
