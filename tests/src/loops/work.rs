//! What is done again and again: calls of the kernel that take locks nobody else wants.

use std::{fs, mem::MaybeUninit, os::fd::OwnedFd, path::Path, ptr};

use anyhow::{Context as _, Result};
use rustix::{
    fs::{Mode, OFlags, RawDir, SeekFrom, open, seek},
    mm::{MapFlags, MprotectFlags, MsyncFlags, ProtFlags, mmap_anonymous, mprotect, msync},
};

use crate::userfault::PAGE;

/// A loop's body.
pub(crate) trait Work {
    /// What a call of it is called.
    fn name(&self) -> &'static str;

    /// How many calls are timed together. One alone where a timer interrupt or two would fall
    /// into more of them.
    fn together(&self) -> usize {
        200
    }

    /// One call.
    fn call(&mut self) -> Result<()>;

    /// What is needed after so many calls; it is not timed.
    fn make_ready(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A page of memory that is there.
fn page() -> Result<*mut std::ffi::c_void> {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let page = unsafe {
        mmap_anonymous(
            ptr::null_mut(),
            PAGE,
            access,
            MapFlags::PRIVATE | MapFlags::POPULATE,
        )
    };
    page.context("cannot map a page")
}

/// msync(2) of memory without a file: does nothing under the `mmap_lock`, held for read
/// (mm/msync.c).
pub(crate) struct Sync(*mut std::ffi::c_void);

impl Sync {
    pub(crate) fn new() -> Result<Self> {
        page().map(Self)
    }
}

impl Work for Sync {
    fn name(&self) -> &'static str {
        "read pair"
    }

    fn call(&mut self) -> Result<()> {
        // SAFETY: a page of ours.
        unsafe { msync(self.0, PAGE, MsyncFlags::ASYNC) }.context("msync")
    }
}

/// mprotect(2) that changes nothing, under the `mmap_lock`, held for write (mm/mprotect.c).
pub(crate) struct Protect(*mut std::ffi::c_void);

impl Protect {
    pub(crate) fn new() -> Result<Self> {
        page().map(Self)
    }
}

impl Work for Protect {
    fn name(&self) -> &'static str {
        "write pair"
    }

    fn call(&mut self) -> Result<()> {
        let access = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: a page of ours, which nobody uses.
        unsafe { mprotect(self.0, PAGE, access) }.context("mprotect")
    }
}

/// lseek(2) to the begin and getdents64(2) of an empty directory on tmpfs: its `i_rwsem` for
/// read, and the mutex of the file's position.
pub(crate) struct List(OwnedFd);

impl List {
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let path = folder.join("listed");
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let listed = open(&path, flags, Mode::empty());
        Ok(Self(listed.context("cannot open a directory")?))
    }
}

impl Work for List {
    fn name(&self) -> &'static str {
        "directory listing"
    }

    fn call(&mut self) -> Result<()> {
        seek(&self.0, SeekFrom::Start(0)).context("lseek")?;
        let mut room = [MaybeUninit::<u8>::uninit(); 512];
        let mut entries = RawDir::new(&self.0, &mut room);
        if let Some(entry) = entries.next() {
            entry.context("getdents64")?;
        }
        Ok(())
    }
}
