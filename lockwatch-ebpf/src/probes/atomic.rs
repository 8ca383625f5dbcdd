//! Compare and swap, as assembly: the target has no intrinsic for it. Kernels have it from 5.12
//! on.

use core::arch::asm;

/// True if the word was `old` and is `new` now.
///
/// # Safety
/// `at` must be valid, and aligned.
#[inline(always)]
pub(super) unsafe fn swap(at: *mut u64, old: u64, new: u64) -> bool {
    let found: u64;
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({at} + 0, r0, {new})",
            at = in(reg) at,
            new = in(reg) new,
            inout("r0") old => found,
        );
    }
    found == old
}
