//! Processes that do nothing but take one edge again and again.
//!
//! They are forked from the test, which has threads: so they only make system calls, and
//! allocate nothing.

use std::{
    ffi::CStr,
    fs,
    num::NonZeroUsize,
    os::fd::AsRawFd,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    libc,
    sched::{CpuSet, sched_setaffinity},
    sys::{
        mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap},
        prctl,
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::{ForkResult, Pid, fork, getppid},
};

use crate::truth::Tid;

/// What an actor unmaps at once, in small pages: some 10 ms of work at least.
const MUCH: usize = 192 << 20;

/// What it lets the kernel fill at once.
const FILLED: usize = 64 << 20;

const PAGE: usize = 4096;

/// Comm of a task that shares an actor's address space.
pub const BESIDE: &CStr = c"edge-kid";

/// What an actor does until it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Unmaps much at once: `mmap_lock` is taken for write, and downgraded while the
    /// pages are given back (mm/mmap.c, `__do_munmap`; mm/vma.c, `vms_complete_munmap_vmas`).
    Unmap,
    /// Has the kernel write to pages that are not there: a fault in kernel mode asks for
    /// `mmap_lock` without waiting first (arch/x86/mm/fault.c; mm/mmap_lock.c).
    Fault,
    /// Maps and unmaps a page and sleeps for a millisecond, again and again.
    Nap,
    /// As `Fault`, with a task beside it that shares the address space and the processor,
    /// and naps.
    FaultBesideNap,
    /// Makes tasks that share its address space, do some work, and end.
    Breed,
}

/// A process that plays a part. Dropped, it is killed.
#[derive(Debug)]
pub struct Actor {
    pid: Pid,
    board: Board,
}

impl Actor {
    /// Forks a process of this name that plays the part at once.
    ///
    /// # Errors
    /// When there is no process or no memory to be had.
    pub fn start(name: &CStr, part: Part) -> Result<Self> {
        let board = Board::new()?;
        let zero = fs::File::open("/dev/zero").context("cannot open /dev/zero")?;
        let test = nix::unistd::getpid();
        // SAFETY: the child makes system calls only, see above.
        match unsafe { fork() }.context("cannot fork an actor")? {
            ForkResult::Parent { child } => Ok(Self { pid: child, board }),
            ForkResult::Child => {
                let outcome = prctl::set_pdeathsig(Signal::SIGKILL)
                    .and_then(|()| prctl::set_name(name))
                    .and_then(|()| match getppid() {
                        parent if parent == test => board.play(part, zero.as_raw_fd()),
                        _ => Ok(()),
                    });
                exit_now(outcome.map_or_else(|error| error as i32, |()| 0))
            }
        }
    }

    /// Its thread id.
    pub fn tid(&self) -> Tid {
        Tid(self.pid.as_raw())
    }

    /// The task that naps beside it, once it is there.
    ///
    /// # Errors
    /// When it does not come.
    pub fn beside(&self, limit: Duration) -> Result<Tid> {
        self.wait(limit, |board| board.beside.load(Ordering::SeqCst) != 0)?;
        Ok(Tid(self.board.get().beside.load(Ordering::SeqCst) as i32))
    }

    /// How often it has begun or ended what its part is about: odd in the middle of it.
    pub fn turns(&self) -> u64 {
        self.board.get().turns.load(Ordering::SeqCst)
    }

    /// Waits until it has done what its part is about so many times.
    ///
    /// # Errors
    /// When it takes longer, or the actor has ended.
    pub fn done(&self, times: u64, limit: Duration) -> Result<()> {
        let until = self.turns() + 2 * times;
        self.wait(limit, |board| board.turns.load(Ordering::SeqCst) >= until)
    }

    fn wait(&self, limit: Duration, reached: impl Fn(&Notes) -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !reached(self.board.get()) {
            if Instant::now() >= deadline {
                bail!(
                    "an actor was not that far after {limit:?}: {:?}",
                    self.board.get()
                );
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // Not reaped yet, so the pid is still its own.
        let _ = kill(self.pid, Signal::SIGKILL);
        while waitpid(self.pid, None) == Err(Errno::EINTR) {}
    }
}

/// What an actor tells.
#[derive(Debug)]
struct Notes {
    turns: AtomicU64,
    beside: AtomicU64,
}

/// Memory that the test and the actor share.
#[derive(Debug)]
struct Board(NonNull<Notes>);

impl Board {
    fn new() -> Result<Self> {
        let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let page = NonZeroUsize::new(PAGE).context("a page has no size")?;
        // SAFETY: a new mapping at an address of the kernel's choice. It is kept: an
        // actor's death may come later than the test's last look.
        let page = unsafe { mmap_anonymous(None, page, both, MapFlags::MAP_SHARED) }
            .context("cannot map a page to share")?;
        Ok(Self(page.cast()))
    }

    fn get(&self) -> &Notes {
        // SAFETY: mapped as long as the process lives, zeroed at first, aligned to a page.
        unsafe { self.0.as_ref() }
    }

    fn play(&self, part: Part, zero: i32) -> nix::Result<()> {
        match part {
            Part::Unmap => self.unmap(),
            Part::Fault => self.fault(zero),
            Part::Nap => loop {
                self.turn(work);
            },
            Part::FaultBesideNap => {
                let mut here = CpuSet::new();
                here.set(0)?;
                sched_setaffinity(Pid::from_raw(0), &here)?;
                let beside = share(|| {
                    loop {
                        nap();
                    }
                })?;
                self.get()
                    .beside
                    .store(beside.as_raw() as u64, Ordering::SeqCst);
                self.fault(zero)
            }
            Part::Breed => loop {
                let child = share(work)?;
                self.turn(|| waitpid(child, None))?;
            },
        }
    }

    fn turn<T>(&self, what: impl FnOnce() -> T) -> T {
        self.get().turns.fetch_add(1, Ordering::SeqCst);
        let outcome = what();
        self.get().turns.fetch_add(1, Ordering::SeqCst);
        outcome
    }

    fn unmap(&self) -> nix::Result<()> {
        loop {
            // With a page on both sides that stays: next to a stack nothing is downgraded.
            let whole = map(MUCH + 2 * PAGE)?;
            // SAFETY: inside of the mapping.
            let inside = unsafe { whole.byte_add(PAGE) };
            for page in (0..MUCH).step_by(PAGE) {
                // SAFETY: inside of the mapping, which nothing else uses.
                unsafe {
                    inside
                        .as_ptr()
                        .wrapping_byte_add(page)
                        .cast::<u8>()
                        .write_volatile(1);
                }
            }
            // SAFETY: nothing refers to it.
            self.turn(|| unsafe { munmap(inside, MUCH) })?;
            // SAFETY: as above; unmapped pages in it do not matter.
            unsafe { munmap(whole, MUCH + 2 * PAGE) }?;
        }
    }

    fn fault(&self, zero: i32) -> nix::Result<()> {
        let pages = map(FILLED)?;
        loop {
            // SAFETY: the mapping has that size, and nothing refers to it.
            let size = self.turn(|| unsafe { libc::read(zero, pages.as_ptr(), FILLED) });
            Errno::result(size)?;
            // SAFETY: as above.
            unsafe { madvise(pages, FILLED, MmapAdvise::MADV_DONTNEED) }?;
        }
    }
}

fn map(length: usize) -> nix::Result<NonNull<std::ffi::c_void>> {
    let length = NonZeroUsize::new(length).ok_or(Errno::EINVAL)?;
    let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { mmap_anonymous(None, length, both, MapFlags::MAP_PRIVATE) }?;
    // Small pages: more faults, more to give back. EINVAL: there are no others.
    // SAFETY: the mapping just made.
    let _ = unsafe { madvise(start, length.get(), MmapAdvise::MADV_NOHUGEPAGE) };
    Ok(start)
}

fn nap() {
    std::thread::sleep(Duration::from_millis(1));
}

/// Some locks taken and given back.
fn work() {
    if let Ok(page) = map(PAGE) {
        // SAFETY: the mapping just made.
        unsafe { page.cast::<u8>().write_volatile(1) };
        // SAFETY: nothing refers to it.
        let _ = unsafe { munmap(page, PAGE) };
    }
    nap();
}

/// Starts a task that shares the address space, does the work, and ends. One at a time.
fn share(work: fn()) -> nix::Result<Pid> {
    extern "C" fn begin(work: *mut libc::c_void) -> libc::c_int {
        // Neither fails with such arguments.
        let _ = prctl::set_pdeathsig(Signal::SIGKILL);
        let _ = prctl::set_name(BESIDE);
        // SAFETY: the pointer that `share` made of a function.
        let work: fn() = unsafe { std::mem::transmute(work) };
        work();
        exit_now(0)
    }
    const STACK: usize = 64 << 10;
    static TOP: AtomicU64 = AtomicU64::new(0);
    if TOP.load(Ordering::SeqCst) == 0 {
        // SAFETY: inside of the mapping, at its end.
        let top = unsafe { map(STACK)?.byte_add(STACK) };
        TOP.store(top.as_ptr() as u64, Ordering::SeqCst);
    }
    // SAFETY: a stack that no other task uses; the work allocates nothing and unwinds
    // nowhere. It shares errno with its parent, which does not look at it.
    let pid = unsafe {
        libc::clone(
            begin,
            TOP.load(Ordering::SeqCst) as *mut libc::c_void,
            libc::CLONE_VM | libc::SIGCHLD,
            work as *mut libc::c_void,
        )
    };
    Errno::result(pid).map(Pid::from_raw)
}

fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}
