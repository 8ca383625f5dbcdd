//! Who takes part in a lockup: the one that spins, those that could run there, and those
//! that wait.

use std::{
    fs,
    sync::mpsc,
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, bail};
use lockwatch_tests::truth::{LockHeld, LockState, LockupScenario, Someone, Tgid, Tid};
use nix::unistd::Pid;

use crate::{
    BUSY, Cpus, SPINNER,
    actor::{Actor, Part},
    wait_until,
};

/// The lab's processes and threads.
pub(crate) struct Cast {
    pub(crate) spinner: Actor,
    pub(crate) busy: Vec<Actor>,
    /// Whom signals are sent to.
    pub(crate) target: Option<Actor>,
    /// Who sends one, too, and on which CPU.
    pub(crate) second: Option<(Actor, usize)>,
    waiters: Vec<JoinHandle<()>>,
}

impl Cast {
    /// Starts them, each where it belongs; nobody does anything yet.
    pub(crate) fn start(scenario: LockupScenario, cpus: &Cpus) -> Result<Self> {
        let here = [cpus.locked];
        let target = match scenario {
            LockupScenario::HardLockup => {
                Some(Actor::start("lab-target", &cpus.others[..1], Part::Sleep)?)
            }
            _ => None,
        };
        let part = match (scenario, &target) {
            (LockupScenario::HardLockup, Some(target)) => Part::Kill(target.pid),
            (LockupScenario::SoftLockupSoftirq, _) => Part::Send,
            (LockupScenario::SoftLockupTimers, _) => Part::SetTimers,
            _ => Part::Map,
        };
        let spinner = Actor::start(SPINNER, &here, part)?;
        // One CPU must be left for everybody else.
        let second = match (&target, &cpus.others[..]) {
            (Some(target), [_, .., cpu]) => {
                let second = Actor::start("lab-second", &[*cpu], Part::Kill(target.pid))?;
                Some((second, *cpu))
            }
            _ => None,
        };
        let busy = (0..BUSY)
            .map(|number| Actor::start(&format!("lab-busy{number}"), &here, Part::Busy))
            .collect::<Result<_>>()?;
        Ok(Self {
            spinner,
            busy,
            target,
            second,
            waiters: Vec::new(),
        })
    }

    /// Readers of the spinner's command line queue for its mmap_lock.
    pub(crate) fn queue(&mut self, waiters: u32) -> Result<LockHeld> {
        let pid = self.spinner.pid;
        let mut queued = Vec::new();
        for number in 1..=waiters {
            let comm = format!("lab-w{number}");
            let (tell, told) = mpsc::channel();
            let thread = thread::Builder::new()
                .name(comm.clone())
                .stack_size(64 << 10)
                .spawn(move || {
                    let _ = tell.send(nix::unistd::gettid());
                    let _ = fs::read(format!("/proc/{pid}/cmdline"));
                })
                .with_context(|| format!("cannot start thread {comm}"))?;
            self.waiters.push(thread);
            let tid = told.recv().context("a waiter has no thread id")?;
            if !wait_until(|| state_of(tid) == Some('D')) {
                bail!("{comm} does not wait for the mmap_lock");
            }
            queued.push(Someone {
                tid: Tid(tid.as_raw()),
                tgid: Tgid(nix::unistd::getpid().as_raw()),
                comm,
            });
        }
        Ok(LockHeld {
            name: format!("mmap_lock of {SPINNER}[{pid}]"),
            state: LockState::WriteHeld,
            waiters: queued,
        })
    }

    /// What the spinner of a hard lockup holds: its target's, and nobody sleeps for it.
    pub(crate) fn siglock(&self) -> LockHeld {
        let target = self.target.as_ref().unwrap_or(&self.spinner);
        LockHeld {
            name: format!("siglock of {}[{}]", target.comm, target.pid),
            state: LockState::WriteHeld,
            waiters: Vec::new(),
        }
    }

    /// Everybody ends by himself or is killed; false: somebody does not end.
    pub(crate) fn end(self) -> bool {
        // First those who could run: the spinner has used up its share of the CPU, and would
        // give its lock back only when they have had theirs.
        self.busy.iter().for_each(Actor::kill);
        let ended = wait_until(|| self.waiters.iter().all(JoinHandle::is_finished));
        if !ended {
            eprintln!("lockup-lab: waiters do not end");
        }
        // All at once, and each is waited for when it is dropped.
        for actor in [&self.spinner].into_iter().chain(&self.target) {
            actor.kill();
        }
        ended
    }
}

/// State of a thread of the lab, as /proc has it.
fn state_of(tid: Pid) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/self/task/{tid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}
