//! Loads at offsets that are known only when the object is loaded.

use lockwatch_ebpf::Member;

/// Reads one field of a read-only global, so that the compiler cannot fold the
/// value it has at build time.
macro_rules! global {
    ($static:ident $([$index:literal])? $(. $field:ident)?) => {
        $crate::probes::member::read_global(&$static $([$index])? $(.$field)?)
    };
}
pub(crate) use global;

/// What the loader put there.
#[inline(always)]
pub(crate) fn read_global<T: Copy>(global: &T) -> T {
    // SAFETY: a reference is valid, aligned and initialised.
    unsafe { core::ptr::read_volatile(global) }
}

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
