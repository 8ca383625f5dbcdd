//! Cycles in which a lock is waited for exactly once: one task holds it, asleep until it
//! is given a page; a second one queues behind; then the page is given.
//!
//! All run on one CPU, and the two tasks go before the one that leads them: what they are told
//! to do they have done, or are asleep in, when it goes on.

use std::{
    fs::File,
    io::{PipeReader, PipeWriter, Read as _, pipe},
    os::fd::{AsRawFd as _, RawFd},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, Thread},
};

use anyhow::{Context as _, Result, ensure};
use nix::{errno::Errno, libc};

use crate::{userfault::Pages, work::Work};

/// Pages, of which each cycle uses one.
const PAGES: usize = 256;
/// What the leader's tasks are above.
const PRIORITY: i32 = 1;

/// Where bytes are written to, under a lock.
#[derive(Debug)]
pub(crate) enum Target {
    /// A file of tmpfs, under its `i_rwsem`, for write.
    File(File),
    /// A pipe, under its mutex.
    Pipe { from: PipeReader, into: PipeWriter },
}

impl Target {
    pub(crate) fn file(folder: &Path) -> Result<Self> {
        let path = folder.join("written");
        let file = File::create(&path);
        Ok(Self::File(file.with_context(|| {
            format!("cannot make {}", path.display())
        })?))
    }

    pub(crate) fn pipe() -> Result<Self> {
        let (from, into) = pipe().context("cannot make a pipe")?;
        Ok(Self::Pipe { from, into })
    }

    fn fd(&self) -> RawFd {
        match self {
            Self::File(file) => file.as_raw_fd(),
            Self::Pipe { into, .. } => into.as_raw_fd(),
        }
    }

    /// Writes the byte at this address, which is looked at under the lock only.
    fn write(&self, address: usize) -> Result<()> {
        let byte = address as *const libc::c_void;
        let written = match self {
            // SAFETY: the kernel reads a byte there, or fails; no memory of ours is written to.
            Self::File(_) => unsafe { libc::pwrite(self.fd(), byte, 1, 0) },
            // SAFETY: as above.
            Self::Pipe { .. } => unsafe { libc::write(self.fd(), byte, 1) },
        };
        ensure!(
            Errno::result(written).context("cannot write a byte")? == 1,
            "a byte was not written"
        );
        Ok(())
    }

    /// Takes what the two tasks have written.
    fn drain(&self) -> Result<()> {
        match self {
            Self::File(_) => Ok(()),
            Self::Pipe { from, .. } => {
                let mut from = from;
                from.read_exact(&mut [0; 2]).context("cannot read a pipe")
            }
        }
    }
}

/// A task that writes a byte when it is told to. It lives as long as the process.
struct Writer {
    task: Thread,
    letter: Arc<Letter>,
}

#[derive(Default)]
struct Letter {
    /// Address of the byte; 0 when it is written.
    address: AtomicUsize,
}

impl Writer {
    fn start(name: &str, target: &Arc<Target>) -> Result<Self> {
        let letter = Arc::new(Letter::default());
        let (task_letter, target) = (Arc::clone(&letter), Arc::clone(target));
        let begin = move || {
            go_first().expect("root may be real-time");
            loop {
                let address = task_letter.address.load(Ordering::Acquire);
                if address == 0 {
                    thread::park();
                    continue;
                }
                target.write(address).expect("the target takes a byte");
                task_letter.address.store(0, Ordering::Release);
            }
        };
        let task = thread::Builder::new().name(name.to_owned()).spawn(begin);
        let task = task.context("cannot start a thread")?.thread().clone();
        Ok(Self { task, letter })
    }

    fn tell(&self, address: usize) {
        self.letter.address.store(address, Ordering::Release);
        self.task.unpark();
    }

    fn is_done(&self) -> bool {
        self.letter.address.load(Ordering::Acquire) == 0
    }
}

/// Makes this thread run before those that are not real-time.
fn go_first() -> Result<()> {
    let priority = libc::sched_param {
        sched_priority: PRIORITY,
    };
    // SAFETY: a valid structure; 0 is this thread.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
    Errno::result(result)
        .context("cannot be real-time")
        .map(drop)
}

/// A cycle.
pub(crate) struct Cycle {
    name: &'static str,
    target: Arc<Target>,
    pages: Pages,
    next: usize,
    holder: Writer,
    waiter: Writer,
    /// A byte that is there.
    byte: Box<u8>,
}

/// Names of the tasks that hold, and of those that wait.
pub(crate) const HOLDER: &str = "holder";
pub(crate) const WAITER: &str = "waiter";

impl Cycle {
    pub(crate) fn new(name: &'static str, target: Target) -> Result<Self> {
        let target = Arc::new(target);
        Ok(Self {
            name,
            pages: Pages::new(PAGES)?,
            next: 0,
            holder: Writer::start(HOLDER, &target)?,
            waiter: Writer::start(WAITER, &target)?,
            target,
            byte: Box::new(1),
        })
    }
}

impl Work for Cycle {
    fn name(&self) -> &'static str {
        self.name
    }

    fn together(&self) -> usize {
        1
    }

    fn call(&mut self) -> Result<()> {
        self.holder.tell(self.pages.page(self.next));
        self.pages.wait()?;
        self.waiter.tell(&raw const *self.byte as usize);
        ensure!(!self.waiter.is_done(), "the waiter does not wait");
        self.pages.give(self.next)?;
        while !(self.holder.is_done() && self.waiter.is_done()) {
            thread::yield_now();
        }
        self.next += 1;
        self.target.drain()
    }

    fn make_ready(&mut self) -> Result<()> {
        if self.next == PAGES {
            self.pages.take_back()?;
            self.next = 0;
        }
        Ok(())
    }
}
