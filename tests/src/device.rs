//! A block device in memory.

use std::{
    fs::File,
    io::Write,
    os::fd::{AsRawFd, OwnedFd},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    libc,
    sys::memfd::{MFdFlags, memfd_create},
};
use zerocopy::{Immutable, IntoBytes};

use crate::scenario::NotHere;

/// Another program may take the device that was free.
const ATTEMPTS: usize = 10;

// include/uapi/linux/loop.h
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `struct loop_config`, with the parts that stay zero in one.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    device_to_key_size: [u32; 13],
    flags: u32,
    rest: [u32; 60],
}
const _: () = assert!(size_of::<LoopConfig>() == 304);

/// A loop device that is free again once nobody has it open.
pub(crate) struct Device {
    pub(crate) path: String,
    /// Keeps the device until it is mounted.
    _open: File,
}

impl Device {
    pub(crate) fn attach(bytes: &[u8]) -> Result<Self> {
        let content =
            memfd_create(c"stall-lab", MFdFlags::MFD_CLOEXEC).context("cannot make a memfd")?;
        let mut content = File::from(content);
        content
            .write_all(bytes)
            .context("cannot write the content of a block device")?;
        Self::over(&OwnedFd::from(content))
    }

    /// One whose bytes are those of an open file.
    pub(crate) fn over(content: &OwnedFd) -> Result<Self> {
        let control = File::open("/dev/loop-control").map_err(|error| {
            NotHere::because(format!(
                "cannot open /dev/loop-control ({error}): it needs loop devices (`modprobe loop`)"
            ))
        })?;
        for _ in 0..ATTEMPTS {
            if let Some(device) = Self::try_attach(&control, content)? {
                return Ok(device);
            }
        }
        bail!("no loop device stays free for long enough")
    }

    /// `None` if somebody else was faster.
    fn try_attach(control: &File, content: &OwnedFd) -> Result<Option<Self>> {
        // SAFETY: the descriptor is open; the request has no argument.
        let free = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        let free = Errno::result(free).context("cannot find a free loop device")?;
        let path = format!("/dev/loop{free}");
        let open = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {path}"))?;
        let config = LoopConfig {
            fd: content.as_raw_fd() as u32,
            block_size: 0,
            device_to_key_size: [0; 13],
            flags: LO_FLAGS_AUTOCLEAR,
            rest: [0; 60],
        };
        // SAFETY: both descriptors are open, and the kernel reads a struct
        // loop_config, which is as large, see above.
        let outcome =
            unsafe { libc::ioctl(open.as_raw_fd(), LOOP_CONFIGURE, config.as_bytes().as_ptr()) };
        match Errno::result(outcome) {
            Ok(_) => Ok(Some(Self { path, _open: open })),
            Err(Errno::EBUSY) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot set up {path}")),
        }
    }
}
