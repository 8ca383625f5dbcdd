//! Arguments at a place that is known only when the object is loaded.

use core::arch::asm;

use aya_ebpf::EbpfContext;

/// The word of the context at this offset, which stays in the instruction.
///
/// The verifier allows no other load from a context; the compiler would make one load
/// at a calculated address of two that differ in their offset only, volatile or not.
#[inline(always)]
pub(crate) fn word<const OFFSET: i32>(ctx: &impl EbpfContext) -> u64 {
    let word;
    // SAFETY: the verifier checks it against the prototype of where the program is attached.
    unsafe {
        asm!(
            "{word} = *(u64 *)({ctx} + {offset})",
            word = out(reg) word,
            ctx = in(reg) ctx.as_ptr(),
            offset = const OFFSET,
            options(pure, readonly, nostack),
        );
    }
    word
}
