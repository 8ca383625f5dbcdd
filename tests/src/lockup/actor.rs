//! The processes that a lockup needs: each does one thing when it is told to.

use std::{
    ffi::CString,
    fs::File,
    io::{Read, Write},
    net::UdpSocket,
    os::fd::AsRawFd,
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use lockwatch_tests::truth::{Someone, Tgid, Tid};
use nix::{
    errno::Errno,
    libc,
    sched::{CloneFlags, CpuSet, sched_setaffinity, unshare},
    sys::{
        prctl,
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::{ForkResult, Pid, fork, getppid, pipe2},
};

/// No process outlives this, whatever becomes of the lab.
const LIFE: Duration = Duration::from_secs(120);

/// How many timers expire together.
pub(crate) const TIMERS: usize = 40;
/// How long after they were set. The wheel of the kernel sets off timers that are further
/// away than this later than asked for (kernel/time/timer.c, `LVL_DEPTH`).
const TIMERS_AFTER: Duration = Duration::from_millis(200);

/// What a process does when it is told to.
#[derive(Clone, Copy)]
pub(crate) enum Part {
    /// Maps a page.
    Map,
    /// Sends a packet to itself, in a network of its own.
    Send,
    /// Waits with many timers.
    SetTimers,
    /// Sends a signal to that process.
    Kill(Pid),
    /// Nothing: it sleeps, with that signal blocked.
    Sleep,
    /// Keeps a CPU busy from the beginning on.
    Busy,
}

/// What is sent to the one who sleeps.
const SIGNAL: Signal = Signal::SIGUSR1;

/// A child of the lab. Dropped, it is killed.
pub(crate) struct Actor {
    pub(crate) pid: Pid,
    pub(crate) comm: String,
    go: File,
}

impl Actor {
    /// Forks a process on those CPUs. The lab must have one thread only.
    pub(crate) fn start(comm: &str, cpus: &[usize], part: Part) -> Result<Self> {
        let (hear, go) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("cannot make a pipe")?;
        let (heard, tell) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("cannot make a pipe")?;
        let lab = nix::unistd::getpid();
        // SAFETY: the caller promises a single thread, so the child may do anything.
        match unsafe { fork() }.with_context(|| format!("cannot fork {comm}"))? {
            ForkResult::Parent { child } => {
                drop((hear, tell));
                let actor = Self {
                    pid: child,
                    comm: comm.to_owned(),
                    go: File::from(go),
                };
                if File::from(heard).read(&mut [0]).unwrap_or(0) == 0 {
                    bail!("{comm} ended before it was ready");
                }
                Ok(actor)
            }
            ForkResult::Child => {
                drop((go, heard));
                let (hear, tell) = (File::from(hear), File::from(tell));
                let outcome = become_actor(comm, cpus, lab).and_then(|()| part.play(hear, tell));
                if let Err(error) = outcome {
                    eprintln!("lockup-lab: {comm}: {error:#}");
                }
                // SAFETY: _exit has no preconditions.
                unsafe { libc::_exit(0) }
            }
        }
    }

    /// Tells it to act.
    pub(crate) fn go(&mut self) -> Result<()> {
        let told = self.go.write_all(b"g");
        told.with_context(|| format!("{} is gone before it acted", self.comm))
    }

    /// Kills it; it may end later.
    pub(crate) fn kill(&self) {
        // Not waited for yet, so the pid is still its own.
        let _ = kill(self.pid, Signal::SIGKILL);
    }

    pub(crate) fn name(&self) -> Someone {
        Someone {
            tid: Tid(self.pid.as_raw()),
            tgid: Tgid(self.pid.as_raw()),
            comm: self.comm.clone(),
        }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.kill();
        while waitpid(self.pid, None) == Err(Errno::EINTR) {}
    }
}

/// Sets the CPUs of the calling thread.
pub(crate) fn bind(cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu).context("no such CPU")?;
    }
    sched_setaffinity(Pid::from_raw(0), &set)
        .with_context(|| format!("cannot bind a thread to the CPUs {cpus:?}"))
}

fn become_actor(comm: &str, cpus: &[usize], lab: Pid) -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("cannot ask for a signal at the lab's death")?;
    if getppid() != lab {
        bail!("the lab is gone already");
    }
    let name = CString::new(comm).context("a comm with a null byte")?;
    prctl::set_name(&name).context("cannot set a comm")?;
    bind(cpus)
}

impl Part {
    fn play(self, mut hear: File, mut tell: File) -> Result<()> {
        let mut ready = || tell.write_all(b"r").context("the lab is gone");
        match self {
            Self::Map => {
                ready()?;
                if is_told(&mut hear) {
                    // SAFETY: a new mapping, at an address that the kernel chooses.
                    unsafe {
                        libc::mmap(
                            std::ptr::null_mut(),
                            4096,
                            libc::PROT_NONE,
                            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                            -1,
                            0,
                        );
                    }
                }
            }
            Self::Send => {
                unshare(CloneFlags::CLONE_NEWNET).context("cannot have a network of our own")?;
                set_loopback_up()?;
                let socket = UdpSocket::bind("127.0.0.1:0").context("cannot bind a socket")?;
                let address = socket.local_addr().context("a socket without an address")?;
                ready()?;
                // The first may be received by ksoftirqd, if that has other work.
                while is_told(&mut hear) {
                    socket
                        .send_to(b"packet", address)
                        .context("cannot send a packet")?;
                }
            }
            Self::SetTimers => {
                let barrier = Arc::new(Barrier::new(TIMERS + 1));
                for _ in 0..TIMERS {
                    let barrier = barrier.clone();
                    let socket = UdpSocket::bind("127.0.0.1:0").context("cannot bind a socket")?;
                    socket.set_read_timeout(Some(TIMERS_AFTER))?;
                    thread::Builder::new()
                        .name("lab-timer".into())
                        .stack_size(64 << 10)
                        .spawn(move || {
                            barrier.wait();
                            // It ends with the timer.
                            let _ = socket.recv(&mut [0]);
                        })
                        .context("cannot start a thread")?;
                }
                ready()?;
                if is_told(&mut hear) {
                    barrier.wait();
                }
            }
            Self::Kill(target) => {
                ready()?;
                if is_told(&mut hear) {
                    kill(target, SIGNAL).context("cannot send a signal")?;
                }
            }
            Self::Sleep => {
                let mut mask = nix::sys::signal::SigSet::empty();
                mask.add(SIGNAL);
                mask.thread_block().context("cannot block a signal")?;
                ready()?;
            }
            Self::Busy => {
                ready()?;
                let begun = Instant::now();
                while begun.elapsed() < LIFE {
                    std::hint::spin_loop();
                }
            }
        }
        // Until the lab lets go.
        while is_told(&mut hear) {}
        Ok(())
    }
}

/// Waits for a word; false: there will be none.
fn is_told(hear: &mut File) -> bool {
    hear.read(&mut [0]).unwrap_or(0) != 0
}

/// Of the calling process's network.
fn set_loopback_up() -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0").context("cannot make a socket")?;
    // SAFETY: all zeroes is a valid value of this plain structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: the kernel reads the structure, which lives until the call returns.
    let outcome =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    Errno::result(outcome).context("cannot set the loopback device up")?;
    Ok(())
}
