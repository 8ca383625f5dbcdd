//! Descriptors that a thread or process has a copy of and must not keep.

use std::os::fd::RawFd;

use nix::{Result, errno::Errno, libc};

/// Closes all descriptors of the calling thread's table but the standard ones and `kept`:
/// copies of the lab's pipes would keep their readers from seeing an end.
///
/// # Safety
/// Nobody who uses this table has an owned descriptor other than `kept` that is ever used
/// or dropped.
pub(crate) unsafe fn keep_only(kept: RawFd) -> Result<()> {
    for (first, last) in [(3, kept - 1), (kept + 1, RawFd::MAX)] {
        if first > last {
            continue;
        }
        // SAFETY: the caller promises that nobody misses them.
        let outcome = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        Errno::result(outcome)?;
    }
    Ok(())
}
