//! What the loader puts into a program before it is loaded.

/// Reads a read-only global, or a part of one, so that the compiler cannot fold the
/// value it has at build time.
macro_rules! global {
    ($static:ident $([$index:literal])? $(. $field:ident)?) => {
        $crate::probes::global::read(&$static $([$index])? $(.$field)?)
    };
}
pub(crate) use global;

/// What the loader put there.
#[inline(always)]
pub(crate) fn read<T: Copy>(global: &T) -> T {
    // SAFETY: a reference is valid, aligned and initialised.
    unsafe { core::ptr::read_volatile(global) }
}
