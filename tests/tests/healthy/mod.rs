//! Loads that are heavy, and healthy all the same.

#![allow(
    dead_code,
    reason = "a part of each binary, of which none needs everything"
)]
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::{
    fs::{self, File},
    hint,
    io::Read as _,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    libc,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::{
        resource::{UsageWho, getrusage},
        time::TimeValLike as _,
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// Threads that do the same over and over. Dropped, they are waited for.
#[derive(Default)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<CpuTime>>,
}

/// What a thread has used of its CPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CpuTime {
    pub(crate) user: Duration,
    pub(crate) kernel: Duration,
    /// How often it had to give the CPU to somebody else.
    pub(crate) preempted: u64,
}

impl Load {
    /// A thread that does this, a short thing, on that CPU until the end.
    pub(crate) fn on(cpu: usize, work: impl Fn() + Send + 'static) -> Self {
        let mut load = Self::default();
        load.and_on(cpu, work);
        load
    }

    /// One more thread.
    pub(crate) fn and_on(&mut self, cpu: usize, work: impl Fn() + Send + 'static) {
        let stop = Arc::clone(&self.stop);
        self.threads.push(thread::spawn(move || {
            bind(cpu);
            while !stop.load(Ordering::Relaxed) {
                work();
            }
            cpu_time()
        }));
    }

    /// Ends it; what each thread has used.
    pub(crate) fn end(mut self) -> Vec<CpuTime> {
        self.stop.store(true, Ordering::Relaxed);
        let threads = self.threads.drain(..);
        threads.map(|thread| thread.join().unwrap()).collect()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn cpu_time() -> CpuTime {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    let time = |of: nix::sys::time::TimeVal| Duration::from_micros(of.num_microseconds() as u64);
    CpuTime {
        user: time(usage.user_time()),
        kernel: time(usage.system_time()),
        preempted: usage.involuntary_context_switches() as u64,
    }
}

/// The calling thread, and what it starts from now on, run on that CPU alone.
pub(crate) fn bind(cpu: usize) {
    let mut only = CpuSet::new();
    only.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &only).unwrap();
}

/// The CPUs of this process, by number.
pub(crate) fn cpus() -> Vec<usize> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let is_allowed = |cpu: &usize| allowed.is_set(*cpu).unwrap();
    (0..CpuSet::count()).filter(is_allowed).collect()
}

/// In user mode alone.
pub(crate) fn compute() {
    for _ in 0..1_000_000 {
        hint::spin_loop();
    }
}

/// In the kernel nearly all the time, by long copies.
pub(crate) fn read_zeroes() -> impl Fn() + Send + 'static {
    let file = File::open("/dev/zero").unwrap();
    move || {
        thread_local! {
            static PIECE: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; 1 << 20]);
        }
        PIECE.with_borrow_mut(|piece| {
            for _ in 0..16 {
                (&file).read_exact(piece).unwrap();
            }
        });
    }
}

/// In the kernel most of the time, by lists of names.
pub(crate) fn list_processes() {
    for _ in 0..4 {
        fs::read_dir("/proc").unwrap().for_each(drop);
    }
}

/// A new process that runs another program and ends.
pub(crate) fn start_a_process() {
    let mut command = Command::new("true");
    let status = command.stdin(Stdio::null()).status().unwrap();
    assert!(status.success());
}

/// Page faults, and the way of the pages back.
pub(crate) fn touch_pages() {
    const SIZE: usize = 16 << 20;
    const PAGE: usize = 4 << 10;
    let (protection, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    // SAFETY: a new mapping, which nobody else knows, is written within its length, once to
    // each page, and given back.
    unsafe {
        let at = libc::mmap(std::ptr::null_mut(), SIZE, protection, flags, -1, 0);
        assert_ne!(at, libc::MAP_FAILED);
        for page in (0..SIZE).step_by(PAGE) {
            at.cast::<u8>().add(page).write_volatile(1);
        }
        assert_eq!(libc::munmap(at, SIZE), 0);
    }
}

/// Sleeps uninterruptibly like the parent of a `vfork`, whose child lives for that long.
pub(crate) fn vfork_for(time: Duration) {
    let sleep = libc::timespec {
        tv_sec: time.as_secs() as libc::time_t,
        tv_nsec: i64::from(time.subsec_nanos()),
    };
    // Memory is not shared, so that the child cannot harm us.
    let flags = i64::from(libc::CLONE_VFORK | libc::SIGCHLD);
    // SAFETY: like fork; the child makes two system calls and allocates nothing.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    assert!(pid >= 0, "no child");
    if pid == 0 {
        // SAFETY: the time lives until the call returns; _exit has no preconditions.
        unsafe {
            libc::nanosleep(&raw const sleep, std::ptr::null_mut());
            libc::_exit(0)
        }
    }
    let pid = Pid::from_raw(pid as i32);
    assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 0)));
}
