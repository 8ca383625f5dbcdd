//! A new task with the number of one that has ended.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    libc,
    sys::{
        prctl,
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::Pid,
};

use crate::{trial::bound, truth::Tid};

/// How long the number may still be taken: its last user's end takes a moment.
const PATIENCE: Duration = Duration::from_secs(5);

/// A process that does nothing. Dropped, it is killed.
#[derive(Debug)]
pub struct Reborn(Pid);

/// `struct clone_args` (include/uapi/linux/sched.h, 5.5+).
#[derive(Default)]
#[repr(C)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
}

impl Reborn {
    /// Forks a process that gets this number.
    ///
    /// # Errors
    /// When it is not free, or we may not choose.
    pub fn with(number: Tid) -> Result<Self> {
        let deadline = Instant::now() + bound(PATIENCE);
        let arguments = CloneArguments {
            exit_signal: libc::SIGCHLD as u64,
            set_tid: (&raw const number.0) as u64,
            set_tid_size: 1,
            ..CloneArguments::default()
        };
        loop {
            // SAFETY: as fork; the child makes system calls only.
            let outcome = unsafe {
                libc::syscall(
                    libc::SYS_clone3,
                    &raw const arguments,
                    size_of::<CloneArguments>(),
                )
            };
            match Errno::result(outcome) {
                Ok(0) => sleep_for_ever(),
                Ok(pid) => return Ok(Self(Pid::from_raw(pid as i32))),
                Err(Errno::EEXIST) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("cannot make a process of number {}", number.0));
                }
            }
        }
    }
}

fn sleep_for_ever() -> ! {
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    loop {
        nix::unistd::pause();
    }
}

impl Drop for Reborn {
    fn drop(&mut self) {
        // Not reaped yet, so the pid is still its own.
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}
