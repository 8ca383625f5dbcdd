//! Pages whose first touch waits until it is let go on: userfaultfd(2).

use std::{
    fs::File,
    io::Read as _,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    ptr::{self, NonNull},
};

use anyhow::{Context as _, Result, ensure};
use rustix::{
    ioctl::{Opcode, Updater, ioctl, opcode},
    mm::{Advice, MapFlags, ProtFlags, UserfaultfdFlags, madvise, mmap_anonymous, userfaultfd},
};

pub(crate) const PAGE: usize = 4096;

/// include/uapi/linux/userfaultfd.h, the same since 4.11: `UFFDIO_API`.
#[repr(C)]
#[derive(Default)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

const API: u64 = 0xAA;
const DO_API: Opcode = opcode::read_write::<Api>(0xAA, 0x3F);

/// `UFFDIO_REGISTER`.
#[repr(C)]
#[derive(Default)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// Faults of pages that are not there.
const MODE_MISSING: u64 = 1;
const DO_REGISTER: Opcode = opcode::read_write::<Register>(0xAA, 0x00);

/// `UFFDIO_ZEROPAGE`.
#[repr(C)]
#[derive(Default)]
struct ZeroPage {
    start: u64,
    len: u64,
    mode: u64,
    zeroed: i64,
}

const DO_ZERO_PAGE: Opcode = opcode::read_write::<ZeroPage>(0xAA, 0x04);

/// `struct uffd_msg`, of which we need nothing.
const MESSAGE: usize = 32;

/// Asks something of a userfaultfd.
///
/// # Safety
/// `T` is the kernel's structure for this request, and what it says of addresses is right.
unsafe fn ask<const REQUEST: Opcode, T>(
    of: BorrowedFd<'_>,
    what: &mut T,
) -> rustix::io::Result<()> {
    // SAFETY: the caller promises it.
    let request = unsafe { Updater::<REQUEST, T>::new(what) };
    // SAFETY: as above.
    unsafe { ioctl(of, request) }
}

/// The pages.
pub(crate) struct Pages {
    start: NonNull<u8>,
    count: usize,
    faults: File,
}

// SAFETY: a mapping belongs to the process, not to a thread.
unsafe impl Send for Pages {}

impl Pages {
    /// Maps them; they are never unmapped.
    pub(crate) fn new(count: usize) -> Result<Self> {
        // SAFETY: it is used for a mapping of our own alone, whose bytes nobody looks at.
        let faults: OwnedFd = unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC) }
            .context("this kernel has no userfaultfd")?;
        let mut api = Api {
            api: API,
            ..Api::default()
        };
        // SAFETY: the kernel's structure for this request.
        unsafe { ask::<DO_API, _>(faults.as_fd(), &mut api) }
            .context("userfaultfd's interface is another one")?;
        let len = count * PAGE;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), len, access, MapFlags::PRIVATE) }?;
        let mut register = Register {
            start: start as u64,
            len: len as u64,
            mode: MODE_MISSING,
            ..Register::default()
        };
        // SAFETY: the kernel's structure for this request.
        unsafe { ask::<DO_REGISTER, _>(faults.as_fd(), &mut register) }
            .context("userfaultfd does not take an anonymous mapping")?;
        Ok(Self {
            start: NonNull::new(start.cast()).context("a mapping at 0")?,
            count,
            faults: faults.into(),
        })
    }

    /// Address of a page.
    pub(crate) fn page(&self, number: usize) -> usize {
        assert!(number < self.count, "page {number} of {}", self.count);
        self.start.as_ptr() as usize + number * PAGE
    }

    /// Waits until a task waits for a page.
    pub(crate) fn wait(&self) -> Result<()> {
        let mut message = [0; MESSAGE];
        (&self.faults)
            .read_exact(&mut message)
            .context("cannot see who waits for a page")
    }

    /// Gives a page to whoever waits for it.
    pub(crate) fn give(&self, number: usize) -> Result<()> {
        let mut zero = ZeroPage {
            start: self.page(number) as u64,
            len: PAGE as u64,
            ..ZeroPage::default()
        };
        // SAFETY: the kernel's structure for this request; the page is of this mapping.
        unsafe { ask::<DO_ZERO_PAGE, _>(self.faults.as_fd(), &mut zero) }
            .context("cannot give a page")?;
        ensure!(zero.zeroed == PAGE as i64, "a page was not given whole");
        Ok(())
    }

    /// Takes all pages away again.
    pub(crate) fn take_back(&self) -> Result<()> {
        let len = self.count * PAGE;
        // SAFETY: the mapping is ours; nobody relies on its bytes.
        unsafe { madvise(self.start.as_ptr().cast(), len, Advice::LinuxDontNeed) }
            .context("cannot take pages back")
    }
}
