//! Mappings of the lab's files.

use std::{
    fs::File,
    num::NonZeroUsize,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::Path,
    ptr::NonNull,
    sync::Arc,
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    libc,
    sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, munmap},
};

use crate::fuse::{FILE_SIZE, PAGE};

/// A shared mapping of a whole file. It is never unmapped by hand: that would
/// take the mmap_lock in the middle of a stall.
pub(crate) struct Mapping {
    start: NonNull<u8>,
}

// SAFETY: a mapping belongs to the process, not to a thread.
unsafe impl Send for Mapping {}

// SAFETY: its bytes are only ever touched by volatile accesses and by the kernel, and no
// value that was read is used.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(crate) fn new(path: &Path, access: ProtFlags) -> Result<Self> {
        Self::keeping_file(path, access).map(|(map, _)| map)
    }

    /// The file is open for as long as the caller keeps it.
    pub(crate) fn keeping_file(path: &Path, access: ProtFlags) -> Result<(Self, File)> {
        let file = File::options()
            .read(true)
            .write(access.contains(ProtFlags::PROT_WRITE))
            .custom_flags(libc::O_CLOEXEC)
            .open(path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { mmap(None, length(), access, MapFlags::MAP_SHARED, &file, 0) }
            .with_context(|| format!("cannot map {}", path.display()))?;
        let start = start.cast();
        Ok((Self { start }, file))
    }

    /// Where the file begins.
    pub(crate) fn first(&self) -> NonNull<u8> {
        self.start
    }

    fn page(&self, page: u64) -> NonNull<u8> {
        assert!(page < FILE_SIZE / PAGE, "the page is part of the file");
        // SAFETY: the page is inside the mapping, see the assertion.
        unsafe { self.start.add((page * PAGE) as usize) }
    }

    pub(crate) fn touch(&self, page: u64) {
        let byte = self.page(page);
        // SAFETY: mapped readable; the bytes may change but are never used.
        let _ = unsafe { byte.read_volatile() };
    }

    /// Has the kernel read the first bytes of the page: a sleep of no time.
    pub(crate) fn pass(&self, page: u64) {
        let time = self.page(page).cast();
        // SAFETY: the kernel reads a time from the page, or fails; nothing is written.
        let _ = unsafe { libc::nanosleep(time.as_ptr(), std::ptr::null_mut()) };
    }

    /// Changes the memory area without taking a right away: who writes there goes on.
    pub(crate) fn advise(&self) -> Result<()> {
        let (start, advice) = (self.start.cast(), MmapAdvise::MADV_DONTFORK);
        // SAFETY: the whole mapping; the advice is about later forks.
        unsafe { madvise(start, length().get(), advice) }.context("cannot advise a mapping")
    }

    pub(crate) fn dirty(&self) {
        // SAFETY: the caller mapped it writable, and nothing else uses it.
        unsafe { self.start.write_volatile(1) }
    }
}

/// An anonymous page that nobody has touched, in a memory area of its own. The first touch
/// takes the mmap_lock for read on every kernel: the lock of the area alone is not enough
/// to prepare it (mm/memory.c, `__vmf_anon_prepare`).
pub(crate) struct FreshPage(Mapping);

impl FreshPage {
    /// It lies between two that cannot be accessed: it must not become part of a
    /// neighbouring area, which is prepared already.
    pub(crate) fn new() -> Result<Self> {
        let page = PAGE as usize;
        let all = NonZeroUsize::new(3 * page).context("a page has no size")?;
        let (none, private) = (ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { mmap_anonymous(None, all, none, private) }
            .context("cannot map pages")?
            .cast::<u8>();
        // SAFETY: the second of the three pages.
        let start = unsafe { start.add(page) };
        let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: one page of the new mapping, which nobody uses yet.
        unsafe { mprotect(start.cast(), page, both) }.context("cannot open up a page")?;
        Ok(Self(Mapping { start }))
    }

    /// Writes its first byte.
    pub(crate) fn touch(&self) {
        self.0.dirty();
    }
}

/// A file whose pages are written elsewhere; unmapped when the last thread has done with it.
pub(crate) struct Source(Mapping);

impl Source {
    pub(crate) fn new(path: &Path) -> Result<Arc<Self>> {
        Ok(Arc::new(Self(Mapping::new(path, ProtFlags::PROT_READ)?)))
    }

    pub(crate) fn touch(&self, page: u64) {
        self.0.touch(page);
    }

    /// Writes the first byte of a page; an error ends the wait for it just as well.
    pub(crate) fn write(&self, page: u64, into: &File) {
        let byte = self.0.page(page);
        // SAFETY: the kernel reads one byte, which is mapped readable.
        let _ = unsafe { libc::write(into.as_raw_fd(), byte.as_ptr().cast(), 1) };
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, which nobody uses any more.
        let _ = unsafe { munmap(self.0.start.cast(), length().get()) };
    }
}

/// Opens a file for requests of its own, past the page cache.
pub(crate) fn open_direct(path: &Path) -> Result<File> {
    File::options()
        .read(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_DIRECT)
        .open(path)
        .with_context(|| format!("cannot open {} with O_DIRECT", path.display()))
}

/// Maps the whole file privately, for good.
pub(crate) fn map_privately(file: &File) -> Result<()> {
    let (read, private) = (ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE);
    // SAFETY: a new mapping at an address of the kernel's choice.
    unsafe { mmap(None, length(), read, private, file, 0) }.context("cannot map a file")?;
    Ok(())
}

/// Sends what is dirty to the file system and does not wait for its answer.
pub(crate) fn start_writeback(file: &File) -> Result<()> {
    // SAFETY: the descriptor is open for the time of the call; no pointers.
    let outcome =
        unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    Errno::result(outcome).context("cannot start the writeback of a dirty page")?;
    Ok(())
}

pub(crate) fn map_one_page() -> Result<()> {
    let page = NonZeroUsize::new(PAGE as usize).context("a page has no size")?;
    // SAFETY: a new mapping at an address of the kernel's choice.
    unsafe { mmap_anonymous(None, page, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE) }
        .context("cannot map a page")?;
    Ok(())
}

fn length() -> NonZeroUsize {
    NonZeroUsize::new(FILE_SIZE as usize).expect("files of the lab have pages")
}
