//! Tasks that are killed in the midst of a wait.

use std::{
    fs,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid},
    unistd::Pid,
};

use crate::{trial::bound, truth::Tid};

const PATIENCE: Duration = Duration::from_secs(10);

/// Who is asleep as long as this without a switch waits for what does not come.
const STILL: Duration = Duration::from_millis(100);

/// A killed process that nobody has waited for yet, so that what the kernel keeps of its
/// task is still there. Dropped, it is gone.
#[derive(Debug)]
pub struct Killed(Child);

impl Killed {
    /// Runs a program that will wait uninterruptibly but for a fatal signal, waits until
    /// it does, and kills it there.
    ///
    /// # Errors
    /// When it does not wait, or the wait does not end.
    pub fn in_its_wait(command: &mut Command) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start a program that waits")?;
        let mut killed = Self(child);
        let deadline = Instant::now() + bound(PATIENCE);
        let mut before = None;
        loop {
            let now = killed.sleep()?;
            if now.is_some() && now == before {
                break;
            }
            if Instant::now() >= deadline {
                bail!("{command:?} does not wait");
            }
            before = now;
            thread::sleep(bound(STILL));
        }
        killed.0.kill().context("cannot kill a waiting program")?;
        killed.wait_for_death(deadline)?;
        Ok(killed)
    }

    /// Its thread.
    pub fn tid(&self) -> Tid {
        Tid(self.0.id() as i32)
    }

    /// The times it was switched out, if it is in an uninterruptible sleep.
    fn sleep(&self) -> Result<Option<String>> {
        let read = |file| {
            let path = format!("/proc/{}/{file}", self.0.id());
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let state = read("stat")?;
        let asleep = state
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('D'));
        let status = read("status")?;
        let switches = status.lines().filter(|line| line.contains("ctxt_switches"));
        Ok(asleep.then(|| switches.collect()))
    }

    /// Leaves it as it is then, neither alive nor gone.
    fn wait_for_death(&self, deadline: Instant) -> Result<()> {
        let pid = Pid::from_raw(self.0.id() as i32);
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        let look = || waitid(Id::Pid(pid), flags).context("cannot wait for a killed program");
        while look()? == WaitStatus::StillAlive {
            if Instant::now() >= deadline {
                bail!("a killed program goes on waiting: no fatal signal ends this wait");
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // It may not have been killed yet, if it did not wait.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
