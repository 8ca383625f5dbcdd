//! Threads that contend for a lock as hard as they can, for a bounded time.

use std::{
    fs::{self, File},
    num::NonZeroUsize,
    os::fd::OwnedFd,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    fcntl::OFlag,
    sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap},
    unistd::pipe2,
};

/// Name of the threads.
pub const COMM: &str = "storm";

/// Which lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storm {
    /// The `mmap_lock` of this process: maps and unmaps.
    MmapLock,
    /// The mutex of one pipe: writes and reads pages.
    Pipe,
    /// The `i_rwsem` of one directory with many files: makes and removes files, and lists it.
    Directory,
}

impl Storm {
    /// Runs it with so many threads for so long, and ends all of them.
    ///
    /// # Errors
    /// When a thread cannot do what it should.
    pub fn run(self, threads: u32, time: Duration) -> Result<()> {
        let over = AtomicBool::new(false);
        let folder = tempfile::tempdir().context("a folder")?;
        if self == Self::Directory {
            for number in 0..FILES {
                File::create(folder.path().join(format!("{number}.there")))?;
            }
        }
        let (from, to) = pipe2(OFlag::O_NONBLOCK).context("a pipe")?;
        thread::scope(|scope| {
            let mut running = Vec::new();
            for number in 0..threads {
                let (over, folder, from, to) = (&over, folder.path(), &from, &to);
                let work = move || -> Result<()> {
                    while !over.load(Ordering::Relaxed) {
                        match self {
                            Self::MmapLock => map()?,
                            Self::Pipe => pass(number, from, to)?,
                            Self::Directory => make(number, folder)?,
                        }
                    }
                    Ok(())
                };
                let thread = thread::Builder::new().name(COMM.to_owned());
                running.push(thread.spawn_scoped(scope, work)?);
            }
            thread::sleep(time);
            over.store(true, Ordering::Relaxed);
            for thread in running {
                thread
                    .join()
                    .map_err(|_| anyhow::anyhow!("a thread of the storm"))??;
            }
            Ok(())
        })
    }
}

fn map() -> Result<()> {
    let length = NonZeroUsize::new(64 << 10).context("a length")?;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_POPULATE;
    // SAFETY: a new mapping, which nothing else knows.
    let area = unsafe { mmap_anonymous(None, length, ProtFlags::PROT_WRITE, flags) }?;
    // SAFETY: as above.
    unsafe { munmap(area, length.get()) }?;
    Ok(())
}

/// A page at a time: while it is copied, the mutex is held.
fn pass(number: u32, from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    let mut page = [0; 4096];
    let result = if number.is_multiple_of(2) {
        rustix::io::write(to, &page)
    } else {
        rustix::io::read(from, &mut page)
    };
    match result {
        Err(error) if error != rustix::io::Errno::AGAIN => Err(error.into()),
        _ => Ok(()),
    }
}

/// Files in the directory that is listed: a listing holds the lock for some 100 µs.
const FILES: u32 = 2_000;

fn make(number: u32, folder: &Path) -> Result<()> {
    if number.is_multiple_of(2) {
        ensure!(
            fs::read_dir(folder)?.count() >= FILES as usize,
            "files are missing"
        );
        return Ok(());
    }
    let path = folder.join(number.to_string());
    File::create(&path)?;
    fs::remove_file(&path)?;
    Ok(())
}
