//! Processes whose threads all read one file of /proc: the crowd of an incident.
//!
//! They are forked before the lab has any thread. A process has threads only once it is
//! told what to read, and ends when the lab lets go of it.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{Read, Write},
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use lockwatch_tests::truth::{Crowd, Tgid, Tid};
use nix::{
    fcntl::OFlag,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork, getpid, getppid, pipe2},
};

use crate::{
    inherit,
    stage::Want,
    task::{Look, Task},
    watchdog::{exit_now, silence_streams},
};

/// Who reads command lines on a host that hangs, and how many of a hundred readers it is.
const SHARES: [(&str, u32); 8] = [
    ("top", 40),
    ("ps", 25),
    ("node_exporter", 15),
    ("pgrep", 8),
    ("htop", 5),
    ("lsof", 4),
    ("pidstat", 2),
    ("w", 1),
];

/// Each has a file open, and the usual limit is 1,024.
const MOST_OF_A_PROCESS: u32 = 500;

/// Each is one system call.
const STACK_BYTES: usize = 32 << 10;

/// Time between two looks at all of them.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How many threads each process has, for so many readers in all.
pub(crate) fn shares(readers: u32) -> Vec<(&'static str, u32)> {
    let mut before = 0;
    let mut all = Vec::new();
    for (comm, share) in SHARES {
        // Rounded as sums, so that nobody is left over.
        let upto = |hundredths: u32| (u64::from(readers) * u64::from(hundredths) / 100) as u32;
        let mut left = upto(before + share) - upto(before);
        before += share;
        while left > 0 {
            let tasks = left.min(MOST_OF_A_PROCESS);
            all.push((comm, tasks));
            left -= tasks;
        }
    }
    all
}

/// One of the processes.
pub(crate) struct Readers {
    pid: Pid,
    comm: &'static str,
    tasks: u32,
    /// Dropped: the process ends.
    control: File,
}

impl Readers {
    /// Forks the process. The caller must have one thread only.
    pub(crate) fn fork(comm: &'static str, tasks: u32) -> Result<Self> {
        let (theirs, ours) = pipe2(OFlag::O_CLOEXEC).context("cannot make a pipe to readers")?;
        let lab = getpid();
        // SAFETY: the caller promises a single thread, so the child may do anything.
        match unsafe { fork() }.context("cannot fork readers")? {
            ForkResult::Parent { child } => Ok(Self {
                pid: child,
                comm,
                tasks,
                control: ours.into(),
            }),
            ForkResult::Child => {
                // SAFETY: the one thread ends by `exit_now`, which drops nothing.
                let kept = unsafe { inherit::keep_only(theirs.as_raw_fd()) };
                let outcome = kept
                    .context("cannot close the lab's descriptors in readers")
                    .and_then(|()| live(lab, comm, tasks, theirs.into()));
                std::mem::forget(ours);
                exit_now(match outcome {
                    Ok(()) => 0,
                    Err(error) => {
                        eprintln!("stall-lab: {comm}: {error:#}");
                        1
                    }
                })
            }
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    pub(crate) fn truth(&self) -> Crowd {
        Crowd {
            tgid: Tgid(self.pid.as_raw()),
            comm: self.comm.to_owned(),
            tasks: self.tasks,
        }
    }

    /// Starts its threads, which all read this file.
    pub(crate) fn start(&self, path: &str) -> Result<()> {
        (&self.control)
            .write_all(format!("{path}\n").as_bytes())
            .context("a process of readers has ended")
    }

    /// The threads that it has beside its first.
    fn threads(&self) -> Result<Vec<Task>> {
        let pid = self.pid.as_raw();
        let folder = format!("/proc/{pid}/task");
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot list {folder}"))?;
        let tids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let (tgid, first) = (Tgid(pid), Tid(pid));
        Ok(tids
            .map(|tid| Task {
                tgid,
                tid: Tid(tid),
            })
            .filter(|task| task.tid != first)
            .collect())
    }

    /// Waits for its end, and kills it at the deadline; true if it ended well.
    pub(crate) fn end(self, deadline: Instant) -> bool {
        drop(self.control);
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

/// Waits until every thread of all the processes is where it should be, and has not moved
/// between two looks.
pub(crate) fn settle(crowd: &[Readers], want: &Want, timeout: Duration) -> Result<()> {
    let deadline = Instant::now() + timeout;
    let all = |readers: &Readers| -> Result<Vec<(Task, Look)>> {
        let look = |task: Task| Some((task, task.look().ok()?));
        Ok(readers.threads()?.into_iter().filter_map(look).collect())
    };
    for readers in crowd {
        let mut before = Vec::new();
        loop {
            let now = all(readers)?;
            let there = now.iter().filter(|(_, look)| want.is_met(look)).count();
            if there == readers.tasks as usize && there == now.len() && now == before {
                break;
            }
            if Instant::now() >= deadline {
                let of = readers.tasks;
                let comm = readers.comm;
                bail!("{there} of {of} threads of {comm} are in the queue after {timeout:?}");
            }
            before = now;
            thread::sleep(LOOK_EVERY);
        }
    }
    Ok(())
}

/// The whole life of the process.
fn live(lab: Pid, comm: &str, tasks: u32, mut control: File) -> Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
        .context("cannot ask to be killed with the lab")?;
    if getppid() != lab {
        bail!("the lab is gone already");
    }
    silence_streams()?;
    let name = CString::new(comm).context("a comm has a zero byte")?;
    nix::sys::prctl::set_name(&name).context("cannot name the process")?;
    let mut path = Vec::new();
    let mut byte = [0];
    while control
        .read(&mut byte)
        .context("cannot read from the lab")?
        > 0
        && byte != *b"\n"
    {
        path.push(byte[0]);
    }
    let path = String::from_utf8(path).context("a path of /proc is text")?;
    if path.is_empty() {
        return Ok(());
    }
    let mut threads = Vec::new();
    for _ in 0..tasks {
        let path = path.clone();
        let thread = thread::Builder::new()
            .name(comm.to_owned())
            .stack_size(STACK_BYTES)
            // Nobody needs to know the command line.
            .spawn(move || drop(fs::read(path)))
            .with_context(|| format!("cannot start {tasks} threads: raise `ulimit -u`"))?;
        threads.push(thread);
    }
    for thread in threads {
        if thread.join().is_err() {
            bail!("a thread panicked");
        }
    }
    // It has to exist until the lab lets go of it: its pid is in the truth.
    let _ = control.read(&mut byte);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reader_has_a_process_and_none_too_many() {
        for readers in [0, 1, 9, 99, 1468, 19_999] {
            let shares = shares(readers);
            assert_eq!(shares.iter().map(|(_, tasks)| tasks).sum::<u32>(), readers);
            assert!(
                shares
                    .iter()
                    .all(|(_, tasks)| (1..=MOST_OF_A_PROCESS).contains(tasks))
            );
        }
        let comms = shares(1468)
            .iter()
            .map(|(comm, _)| *comm)
            .collect::<Vec<_>>();
        assert!(comms.contains(&"top") && comms.contains(&"w"), "{comms:?}");
    }
}
