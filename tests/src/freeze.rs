//! Freezing a file system, and never leaving it frozen.

use std::{fs::File, os::fd::AsRawFd, path::Path};

use nix::{errno::Errno, libc};

// include/uapi/linux/fs.h
const FIFREEZE: libc::Ioctl = 0xc004_5877_u32 as libc::Ioctl;
const FITHAW: libc::Ioctl = 0xc004_5878_u32 as libc::Ioctl;

/// Lets nobody write to the file system that `dir` is in.
pub(crate) fn freeze(dir: &File) -> nix::Result<()> {
    call(dir, FIFREEZE)
}

/// Ends that. `EINVAL`: it was not frozen.
pub(crate) fn thaw(dir: &File) -> nix::Result<()> {
    call(dir, FITHAW)
}

/// The same by path; true if it was frozen.
pub(crate) fn thaw_mount(at: &Path) -> bool {
    File::open(at).is_ok_and(|dir| thaw(&dir).is_ok())
}

fn call(dir: &File, request: libc::Ioctl) -> nix::Result<()> {
    // SAFETY: the descriptor is open; the kernel does not look at the argument.
    let outcome = unsafe { libc::ioctl(dir.as_raw_fd(), request, 0) };
    Errno::result(outcome).map(drop)
}
