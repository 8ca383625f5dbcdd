//! The process whose address space is stalled.
//!
//! It is forked before the lab has any thread. All its threads exist and have
//! opened and mapped what they need before the stall: creating a thread,
//! growing a heap or ending a thread takes the mmap_lock, and would put tasks
//! into the queue that the lab has not admitted.

mod child;

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsFd, RawFd},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use lockwatch_tests::truth::{Tgid, Tid};
use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, close, fork, getpid, pipe2},
};

use self::child::{REPORT_BYTES, Stagehand, decode_report};
use crate::{clock, fuse::Tree, task::Task, watchdog::exit_now};

/// Comm of the process, that is of its main thread.
pub(crate) const COMM: &str = "lab-target";

/// Comm of the thread that serves the target's own file system, if it has one.
pub(crate) const SERVER_COMM: &str = "lab-daemon";

/// Label of the request of the target's own file system before which its server touches a
/// page that nobody has touched, once [`Part::SendServer`] says so.
pub(crate) const ERRAND: &str = "first touch of a page";

/// A thread of the target and what it does when told.
pub(crate) struct Actor {
    pub(crate) comm: String,
    pub(crate) part: Part,
}

/// What an [`Actor`] does. Files are named from the mount point.
#[derive(Clone, Copy)]
pub(crate) enum Part {
    /// Faults a page of a mapped file in, then stays.
    Touch { file: &'static str, page: u64 },
    /// Has a system call read a page of a mapped file, then stays: an error of the file
    /// system is the call's, and no SIGBUS.
    Pass { file: &'static str, page: u64 },
    /// Asks for the attributes of a file, then stays.
    Stat { file: &'static str },
    /// Runs a BPF iterator over its memory areas that reads a page of a mapped file, then
    /// stays.
    Iterate { file: &'static str },
    /// Sends the target's own server for a page that nobody has touched, see [`ERRAND`].
    SendServer,
    /// The same, then exits.
    TouchAndExit { file: &'static str },
    /// Maps a file that is dirty by another mapping, opened past the page cache: its
    /// pages are written back and dropped first.
    MapDirect { file: &'static str },
    /// Writes to a page whose first write is being written back.
    WriteAgain { file: &'static str },
    /// Gives a piece of advice about that page, which changes its memory area.
    Advise,
    /// Maps one anonymous page.
    Map,
    /// The same, then exits.
    MapAndExit,
    /// Sleeps in a futex until the end.
    Futex,
}

/// The lab's side of the process.
pub(crate) struct Target {
    pid: Pid,
    /// Dropped: the process ends.
    control: File,
    reports: File,
    actors: Vec<Handle>,
    /// It serves a file system itself.
    serves: bool,
    server: Option<Task>,
}

struct Handle {
    comm: String,
    go: File,
    task: Option<Task>,
}

impl Target {
    /// Forks the process, which waits for [`Target::begin`]. The caller must
    /// have one thread only. Its files are those below `mount`, which it mounts itself if
    /// it `serves` them: no answer is late for longer than the time beside them.
    /// `not_inherited` is closed in the child.
    pub(crate) fn fork(
        mount: &Path,
        actors: Vec<Actor>,
        serves: Option<(Tree, Duration)>,
        not_inherited: RawFd,
    ) -> Result<Self> {
        let is_server = serves.is_some();
        let pipe = || -> Result<(File, File)> {
            let (read, write) =
                pipe2(OFlag::O_CLOEXEC).context("cannot make a pipe to the target")?;
            Ok((read.into(), write.into()))
        };
        let (control_there, control) = pipe()?;
        let (reports, reports_there) = pipe()?;
        let mut here = Vec::new();
        let mut there = Vec::new();
        for actor in actors {
            let (go_there, go) = pipe()?;
            here.push(Handle {
                comm: actor.comm.clone(),
                go,
                task: None,
            });
            there.push((actor, go_there));
        }
        let stagehand = Stagehand {
            lab: getpid(),
            control: control_there,
            reports: reports_there,
            actors: there,
            serves,
        };
        // SAFETY: the caller promises a single thread, so the child may do anything.
        match unsafe { fork() }.context("cannot fork the target")? {
            ForkResult::Parent { child } => Ok(Self {
                pid: child,
                control,
                reports,
                actors: here,
                serves: is_server,
                server: None,
            }),
            ForkResult::Child => {
                drop((control, reports, here));
                // A second descriptor of the watchdog's line would keep it
                // from seeing the lab's end.
                let _ = close(not_inherited);
                let code = match stagehand.run(mount) {
                    Ok(()) => 0,
                    Err(error) => {
                        eprintln!("stall-lab: target: {error:#}");
                        1
                    }
                };
                exit_now(code)
            }
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    pub(crate) fn tgid(&self) -> Tgid {
        Tgid(self.pid.as_raw())
    }

    /// Starts the threads, now that the files are there, and learns their tids.
    pub(crate) fn begin(&mut self, timeout: Duration) -> Result<()> {
        (&self.control)
            .write_all(&[1])
            .context("the target ended before it began")?;
        let deadline = Instant::now() + timeout;
        for _ in 0..self.actors.len() + usize::from(self.serves) {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(self.reports.as_fd(), PollFlags::POLLIN)];
            let ready = poll(
                &mut fds,
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
            )
            .context("cannot wait for the target")?;
            if ready == 0 {
                bail!("a thread of the target has not mapped its file within {timeout:?}");
            }
            let mut report = [0; REPORT_BYTES];
            self.reports
                .read_exact(&mut report)
                .context("the target ended before all its threads were ready")?;
            let (index, tid) = decode_report(report);
            let task = Some(Task {
                tgid: Tgid(self.pid.as_raw()),
                tid: Tid(tid),
            });
            if self.serves && index == self.actors.len() {
                self.server = task;
                continue;
            }
            let actor = self
                .actors
                .get_mut(index)
                .with_context(|| format!("the target reported an unknown thread {index}"))?;
            actor.task = task;
        }
        Ok(())
    }

    /// The thread that serves its file system.
    pub(crate) fn server(&self) -> Result<Task> {
        self.server.context("the target serves no file system")
    }

    /// Tells an actor to do its part; returns the task and the time before.
    pub(crate) fn go(&self, comm: &str) -> Result<(Task, u64)> {
        let actor = self
            .actors
            .iter()
            .find(|actor| actor.comm == comm)
            .with_context(|| format!("the target has no thread {comm}"))?;
        let task = actor
            .task
            .with_context(|| format!("thread {comm} of the target was not started"))?;
        let started_ns = clock::monotonic_ns();
        (&actor.go)
            .write_all(&[1])
            .with_context(|| format!("thread {comm} of the target has ended"))?;
        Ok((task, started_ns))
    }

    /// Kills the process; true if it had not ended before and is gone in time.
    pub(crate) fn kill(self, timeout: Duration) -> bool {
        // Not reaped yet, so the pid is still its own.
        let _ = kill(self.pid, Signal::SIGKILL);
        let deadline = Instant::now() + timeout;
        loop {
            match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(2));
                }
                Ok(status) => {
                    return matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _));
                }
                Err(_) => return false,
            }
        }
    }

    /// Lets the process end, and kills it if it does not; true if it ended well.
    pub(crate) fn end(self, timeout: Duration) -> bool {
        drop((self.control, self.actors));
        let deadline = Instant::now() + timeout;
        loop {
            match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(2));
                }
                Ok(WaitStatus::StillAlive) => break,
                Ok(status) => return matches!(status, WaitStatus::Exited(_, 0)),
                Err(_) => return false,
            }
        }
        // Not reaped yet, so the pid is still its own.
        let _ = kill(self.pid, Signal::SIGKILL);
        false
    }
}
