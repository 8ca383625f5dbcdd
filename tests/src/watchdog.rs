//! The process that clears up when the lab cannot.
//!
//! It is forked before the lab has any thread or lock, so it shares nothing
//! that could stall. It acts when the lab is gone without a word, or when the
//! deadline has passed: it aborts the FUSE connection, which ends every wait
//! that hangs on it, and removes what the lab has made.

use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    fcntl::OFlag,
    mount::{MntFlags, umount2},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        wait::waitpid,
    },
    unistd::{ForkResult, Pid, dup2_stdin, dup2_stdout, fork, getppid, pipe2, setsid},
};
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

use crate::freeze;

/// How often a file system is told to thaw, which it must have been frozen for.
const THAWS: u32 = 20;
const BETWEEN_THAWS: Duration = Duration::from_millis(50);

/// The lab's end of the watchdog.
pub(crate) struct Watchdog {
    pid: Pid,
    line: File,
}

/// What the lab tells it; one line each, numbers in decimal.
enum Message {
    /// `child <pid>`: a process to kill with the lab.
    Child(i32),
    /// `deadline <ms>`: from now on.
    Deadline(Duration),
    /// `done`: the lab has cleared up by itself.
    Done,
}

impl Watchdog {
    /// Forks the watchdog. The process must have one thread only.
    pub(crate) fn start(
        mounts: &[PathBuf],
        frozen: Option<&Path>,
        deadline: Duration,
    ) -> Result<Self> {
        let (theirs, ours) = pipe2(OFlag::O_CLOEXEC).context("cannot make the watchdog's pipe")?;
        let lab = nix::unistd::getpid();
        // SAFETY: the caller promises a single thread, so the child may do anything.
        match unsafe { fork() }.context("cannot fork the watchdog")? {
            ForkResult::Parent { child } => Ok(Self {
                pid: child,
                line: File::from(ours),
            }),
            ForkResult::Child => {
                drop(ours);
                let mut guard = Guard {
                    lab,
                    mounts: mounts.to_vec(),
                    frozen: frozen.map(Path::to_owned),
                    children: Vec::new(),
                    deadline: Instant::now() + deadline,
                };
                if let Err(error) = guard.watch(File::from(theirs)) {
                    eprintln!("stall-lab: watchdog: {error:#}");
                    guard.clear();
                }
                exit_now(0)
            }
        }
    }

    /// The pipe's end that no other child may keep open.
    pub(crate) fn raw_line(&self) -> RawFd {
        self.line.as_raw_fd()
    }

    pub(crate) fn add_child(&mut self, pid: Pid) -> Result<()> {
        self.say(&format!("child {pid}\n"))
    }

    /// Sets the deadline anew, counted from now.
    pub(crate) fn set_deadline(&mut self, after: Duration) -> Result<()> {
        self.say(&format!("deadline {}\n", after.as_millis()))
    }

    fn say(&mut self, line: &str) -> Result<()> {
        self.line
            .write_all(line.as_bytes())
            .context("the watchdog is gone: end the stall")
    }

    /// Ends the watchdog; everything is cleared already.
    pub(crate) fn dismiss(mut self) {
        // If it is gone there is nothing to dismiss.
        let _ = self.say("done\n");
        drop(self.line);
        let _ = waitpid(self.pid, None);
    }
}

/// The watchdog's own side.
struct Guard {
    lab: Pid,
    /// In the order of mounting.
    mounts: Vec<PathBuf>,
    /// The one of them that may be frozen.
    frozen: Option<PathBuf>,
    children: Vec<OwnedFd>,
    deadline: Instant,
}

impl Guard {
    fn watch(&mut self, mut line: File) -> Result<()> {
        let death = self.leave_the_lab()?;
        let mut text = String::new();
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [
                PollFd::new(line.as_fd(), PollFlags::POLLIN),
                PollFd::new(death.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, timeout) {
                Ok(0) => {
                    eprintln!("stall-lab: watchdog: the deadline has passed, clearing up");
                    self.clear();
                    self.kill_lab();
                    return Ok(());
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot wait for the lab"),
            }
            let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
            if !is_ready(&fds[0]) && !is_ready(&fds[1]) {
                continue;
            }
            // The lab's main thread writes and dies without ever waiting for a
            // stalled lock: once it is dead the pipe has all it ever said.
            let mut bytes = [0; 512];
            let size = if is_ready(&fds[0]) {
                line.read(&mut bytes).context("cannot read from the lab")?
            } else {
                0
            };
            if size == 0 {
                eprintln!("stall-lab: watchdog: the lab is gone, clearing up");
                self.clear();
                return Ok(());
            }
            text.push_str(&String::from_utf8_lossy(&bytes[..size]));
            while let Some(end) = text.find('\n') {
                let message = text.drain(..=end).collect::<String>();
                match parse(&message) {
                    Some(Message::Done) => return Ok(()),
                    Some(Message::Child(pid)) => self.adopt(pid),
                    Some(Message::Deadline(after)) => self.deadline = Instant::now() + after,
                    None => {}
                }
            }
        }
    }

    /// Own session (a killed process group or a hung-up terminal takes the lab
    /// only), no standard streams that somebody waits for the end of, and a
    /// signal at the death of the lab's main thread: the pipe alone would not
    /// tell while other threads of the lab are stuck with it open.
    fn leave_the_lab(&self) -> Result<SignalFd> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGUSR1);
        mask.thread_block().context("cannot block SIGUSR1")?;
        let death =
            SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC).context("cannot make a signalfd")?;
        nix::sys::prctl::set_pdeathsig(Signal::SIGUSR1)
            .context("cannot ask for a signal at the lab's death")?;
        if getppid() != self.lab {
            anyhow::bail!("the lab is gone already, clearing up");
        }
        nix::sys::prctl::set_name(c"lab-watchdog").context("cannot name the watchdog")?;
        setsid().context("cannot start a session")?;
        silence_streams()?;
        Ok(death)
    }

    /// Holds on to a child of the lab by descriptor, so that a reused pid is
    /// never killed in its place.
    fn adopt(&mut self, pid: i32) {
        let parent = std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .ok()
            .and_then(|stat| parent_in_stat(&stat));
        if let Some(pid) = rustix::process::Pid::from_raw(pid)
            && let Ok(fd) = pidfd_open(pid, PidfdFlags::empty())
            && parent == Some(self.lab.as_raw())
        {
            self.children.push(fd);
        }
    }

    fn clear(&self) {
        // MNT_FORCE aborts the connection and reports EBUSY while there are
        // open files; MNT_DETACH then takes the mount away in any case.
        for mount in &self.mounts {
            let _ = umount2(mount, MntFlags::MNT_FORCE);
        }
        // A freeze that waited for the connection is complete only now.
        for _ in 0..THAWS {
            if self.frozen.as_deref().is_none_or(freeze::thaw_mount) {
                break;
            }
            thread::sleep(BETWEEN_THAWS);
        }
        for child in &self.children {
            // ESRCH: it has ended.
            let _ = pidfd_send_signal(child, rustix::process::Signal::KILL);
        }
        for mount in self.mounts.iter().rev() {
            remove(mount);
        }
    }

    fn kill_lab(&self) {
        // It had the time to end now that nothing is stalled.
        thread::sleep(Duration::from_secs(1));
        if getppid() == self.lab {
            let _ = nix::sys::signal::kill(self.lab, Signal::SIGKILL);
        }
    }
}

fn remove(mount: &Path) {
    while umount2(mount, MntFlags::MNT_DETACH).is_ok() {}
    if let Err(error) = std::fs::remove_dir(mount)
        && mount.exists()
    {
        eprintln!(
            "stall-lab: watchdog: cannot remove {}: {error}",
            mount.display()
        );
    }
}

fn parse(line: &str) -> Option<Message> {
    let mut words = line.split_whitespace();
    match (words.next()?, words.next()) {
        ("child", Some(pid)) => pid.parse().ok().map(Message::Child),
        ("deadline", Some(ms)) => ms
            .parse()
            .ok()
            .map(|ms| Message::Deadline(Duration::from_millis(ms))),
        ("done", None) => Some(Message::Done),
        _ => None,
    }
}

/// Fourth field of `stat`.
fn parent_in_stat(stat: &str) -> Option<i32> {
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// Gives up the lab's standard input and output: a reader of its output must
/// see the end of it when the lab ends.
pub(crate) fn silence_streams() -> Result<()> {
    let null = File::options()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_CLOEXEC)
        .open("/dev/null")
        .context("cannot open /dev/null")?;
    dup2_stdin(&null).context("cannot replace standard input")?;
    dup2_stdout(&null).context("cannot replace standard output")?;
    Ok(())
}

/// Ends a forked child without running what the parent has registered.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { nix::libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_understood_and_others_ignored() {
        assert!(matches!(parse("child 12\n"), Some(Message::Child(12))));
        assert!(
            matches!(parse("deadline 1500\n"), Some(Message::Deadline(time))
            if time == Duration::from_millis(1500))
        );
        assert!(matches!(parse("done\n"), Some(Message::Done)));
        for other in ["", "child", "child x", "deadline -1", "done 1", "else"] {
            assert!(parse(other).is_none(), "{other}");
        }
    }

    #[test]
    fn the_parent_is_found_behind_any_comm() {
        assert_eq!(parent_in_stat("5 (a) S 9) S 4 5 5"), Some(4));
        assert_eq!(parent_in_stat("5 (a"), None);
    }
}
