//! What every scenario stands on: the mount, the tasks, and how they are cleared.

mod decoys;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use lockwatch_tests::truth::{Before, Crowd, Cycle, Decoy, DecoyKind, Holder, Mode, Stuck, Waiter};
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
    unistd::mkdtemp,
};

use crate::{
    beside::{self, Beside},
    clock,
    crowd::{self, Readers},
    freeze,
    fuse::{Server, Source},
    scenario::Scenery,
    signals::Signals,
    target::{Actor, Target},
    task::{Look, Task},
    watchdog::Watchdog,
    worker::{Rest, Worker},
};

/// Comm of the thread that serves the lab's file system.
pub(crate) const SERVER_COMM: &str = "lab-server";

/// How long a single task may take to get into its place, or out of it.
pub(crate) const STEP: Duration = Duration::from_secs(5);

/// Late answers come at the latest this long after the stall should be over.
const GRACE: Duration = Duration::from_secs(5);

/// How much longer a process of many readers may take to end.
const CROWD: Duration = Duration::from_millis(500);

/// After this the watchdog clears up: the lab's own ways have had their time.
const WATCHDOG_GRACE: Duration = Duration::from_secs(20);

/// Everything that exists for the time of one stall.
pub(crate) struct Stage {
    pub(crate) mount: PathBuf,
    pub(crate) server: Server,
    beside: Option<Beside>,
    pub(crate) target: Option<Target>,
    /// It has to end before the target, whose pipes it has open as well.
    pub(crate) rehearsal: Option<Target>,
    pub(crate) readers: Vec<Readers>,
    pub(crate) rest: Rest,
    pub(crate) waiters: Vec<Waiter>,
    pub(crate) decoys: Vec<Decoy>,
    /// The lock's owner field does not name a holder (any more).
    pub(crate) owner_hidden: bool,
    /// Label of the holder's late answer, where it must come before the decoys' own: a
    /// decoy that goes on earlier would queue on the lock as well, and be one more waiter
    /// than the truth has.
    pub(crate) held: Option<&'static str>,
    /// The stall never ends by itself: its FUSE connections are aborted at the end.
    pub(crate) is_deadlock: bool,
    /// The stall never ends by itself: the target is killed at the end.
    pub(crate) ends_by_kill: bool,
    pub(crate) cycle: Option<Cycle>,
    /// The block device that the holder waits for.
    pub(crate) device: Option<String>,
    pub(crate) crowd: Vec<Crowd>,
    /// Who held the lock before.
    pub(crate) before: Option<Before>,
    /// A directory of the frozen file system: it thaws at the end.
    pub(crate) frozen: Option<File>,
    workers: Vec<Worker>,
    watchdog: Watchdog,
    signals: Signals,
    /// How long the stall may stand.
    pub(crate) hold: Duration,
}

impl Stage {
    /// Sets the stage. The process must have one thread only: it forks.
    pub(crate) fn set(scenery: Scenery, hold: Duration, waiters: u32) -> Result<Self> {
        let signals = Signals::catch()?;
        let setup = Duration::from_secs(20) + Duration::from_millis(20) * waiters;
        let mount = mkdtemp("/tmp/stall-lab-XXXXXX")
            .context("cannot make a directory in /tmp: the lab mounts there")?;
        let mut mounts = vec![mount.clone()];
        let late = setup + hold + GRACE;
        let mut beside = None;
        let mut frozen = None;
        let mut target_at = mount.clone();
        let mut serves = None;
        if let Some(kind) = scenery.beside {
            let place = Beside::place()?;
            mounts.push(place.clone());
            frozen = matches!(kind, beside::Kind::Ext2).then(|| place.clone());
            if let beside::Kind::OfTarget(tree) = &kind {
                target_at.clone_from(&place);
                serves = Some((tree.clone(), late));
            }
            beside = Some((place, kind));
        }
        let mut watchdog =
            Watchdog::start(&mounts, frozen.as_deref(), setup + hold + WATCHDOG_GRACE)?;
        let mut fork = |actors: Option<Vec<Actor>>| -> Result<Option<Target>> {
            let Some(actors) = actors else {
                return Ok(None);
            };
            let line = watchdog.raw_line();
            let forked = Target::fork(&target_at, actors, serves.take(), line)?;
            watchdog.add_child(forked.pid())?;
            Ok(Some(forked))
        };
        let (target, rehearsal) = (fork(scenery.actors)?, fork(scenery.rehearsal)?);
        let mut readers = Vec::new();
        for (comm, tasks) in crowd::shares(scenery.readers) {
            let forked = Readers::fork(comm, tasks)?;
            watchdog.add_child(forked.pid())?;
            readers.push(forked);
        }
        let tree = scenery.tree;
        let server = Server::start(SERVER_COMM, &mount, Source::Nothing, tree, late)?;
        let beside = beside
            .map(|(at, kind)| Beside::mount(&at, kind, &mount, late))
            .transpose()?;
        Ok(Self {
            mount,
            server,
            beside,
            target,
            rehearsal,
            readers,
            rest: Rest::default(),
            waiters: Vec::new(),
            decoys: Vec::new(),
            owner_hidden: false,
            held: None,
            is_deadlock: false,
            ends_by_kill: false,
            cycle: None,
            device: None,
            crowd: Vec::new(),
            before: None,
            frozen: None,
            workers: Vec::new(),
            watchdog,
            signals,
            hold,
        })
    }

    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        self.mount.join(inside)
    }

    pub(crate) fn beside(&self) -> Result<&Beside> {
        self.beside
            .as_ref()
            .context("the scenario has no second file system")
    }

    /// Starts a thread that is ended and joined with the stage.
    pub(crate) fn start(
        &mut self,
        comm: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<(Task, u64)> {
        let worker = Worker::start(comm, work)?;
        let started = (worker.task, worker.started_ns);
        self.workers.push(worker);
        Ok(started)
    }

    /// Starts a thread whose work ends in a request that is late: the holder.
    pub(crate) fn fuse_holder(
        &mut self,
        comm: &str,
        mode: Mode,
        label: &'static str,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<Holder> {
        let (task, _) = self.start(comm, work)?;
        self.server.wait_parked(label, STEP)?;
        self.held = Some(label);
        let look = task.settle(comm, STEP, Look::waits_for_fuse)?;
        Ok(Holder {
            tid: task.tid,
            tgid: task.tgid,
            comm: comm.into(),
            mode,
            stuck: Stuck::Fuse,
            frame: look.top().to_owned(),
            granted: false,
        })
    }

    /// Lets a task that waits for a late answer with the lock held go on after this long,
    /// and sees it do what the `look` says.
    pub(crate) fn hold_before(
        &mut self,
        task: Task,
        (comm, mode, label): (&str, Mode, &'static str),
        time: Duration,
        has_let_go: impl Fn(&Look) -> bool,
    ) -> Result<()> {
        self.server.wait_parked(label, STEP)?;
        let since_ns = clock::monotonic_ns();
        thread::sleep(time);
        self.server.release(label);
        let until_ns = clock::monotonic_ns();
        self.decoy(task, comm, DecoyKind::LeftHolder, has_let_go)?;
        self.before = Some(Before {
            tid: task.tid,
            tgid: task.tgid,
            comm: comm.to_owned(),
            mode,
            held_ns: until_ns - since_ns,
            until_ns,
        });
        Ok(())
    }

    /// Place in the queue of the next waiter.
    pub(crate) fn next_position(&self) -> u32 {
        self.waiters.len() as u32 + 1
    }

    /// Notes a waiter once it is seen in the queue.
    pub(crate) fn admit(
        &mut self,
        (task, started_ns): (Task, u64),
        comm: &str,
        want: &Want,
    ) -> Result<()> {
        let waiter = self.see_waiter((task, started_ns), comm, want, self.next_position())?;
        self.waiters.push(waiter);
        Ok(())
    }

    /// Sees a task in the queue of any lock, at that place.
    pub(crate) fn see_waiter(
        &self,
        (task, started_ns): (Task, u64),
        comm: &str,
        want: &Want,
        position: u32,
    ) -> Result<Waiter> {
        if self.signals.arrived() {
            bail!("interrupted while the stall was being made");
        }
        let look = task.settle(comm, STEP, |look| want.is_met(look))?;
        Ok(Waiter {
            position,
            tid: task.tid,
            tgid: task.tgid,
            comm: comm.to_owned(),
            mode: want.mode,
            killable: want.killable,
            frame: look.top().to_owned(),
            started_ns,
            queued_ns: clock::monotonic_ns(),
        })
    }

    /// Looks again at a waiter whom those behind it have woken to no avail: its wait is to be
    /// seen from here on only.
    pub(crate) fn readmit(&mut self, position: u32, want: &Want) -> Result<()> {
        let found = self.waiters.iter_mut().find(|one| one.position == position);
        let waiter = found.with_context(|| format!("there is no waiter {position}"))?;
        let task = Task {
            tgid: waiter.tgid,
            tid: waiter.tid,
        };
        task.settle(&waiter.comm, STEP, |look| want.is_met(look))?;
        waiter.queued_ns = clock::monotonic_ns();
        Ok(())
    }

    /// Looks again at all waiters, who must not have moved.
    pub(crate) fn still_queued(&self, want: &Want) -> Result<()> {
        for waiter in &self.waiters {
            let task = Task {
                tgid: waiter.tgid,
                tid: waiter.tid,
            };
            let look = task.look()?;
            if !want.is_met(&look) {
                bail!(
                    "{} left the queue too early; seen in state {} in {}",
                    waiter.comm,
                    look.state,
                    look.frames.join(" < ")
                );
            }
        }
        Ok(())
    }

    /// The stall stands: from now on it lasts for the time asked for.
    pub(crate) fn rearm(&mut self) -> Result<()> {
        self.limit(self.hold + GRACE);
        self.watchdog.set_deadline(self.hold + WATCHDOG_GRACE)
    }

    fn limit(&self, max_delay: Duration) {
        self.server.limit(max_delay);
        if let Some(beside) = &self.beside {
            beside.limit(max_delay);
        }
    }

    /// Waits until that moment or until somebody ends the stall.
    pub(crate) fn hold_until(&self, ends: Instant, until_eof: bool) -> Result<()> {
        self.signals.sleep_until(ends, until_eof)
    }

    /// Ends the stall and removes every trace of it; true if nothing had to be
    /// forced.
    pub(crate) fn clear(mut self) -> bool {
        if let Some(dir) = &self.frozen
            && let Err(error) = freeze::thaw(dir)
        {
            eprintln!("stall-lab: cannot thaw: {error}");
        }
        if let Some(held) = self.held {
            self.server.release(held);
            let waits = |worker: &&Worker| self.waiters.iter().any(|one| one.comm == worker.comm);
            // Who is stuck all the same is dealt with below.
            wait_for(self.workers.iter().filter(waits));
        }
        drop(self.frozen.take());
        if self.is_deadlock {
            self.abort();
        }
        self.limit(Duration::ZERO);
        let mut clean = true;
        if self.ends_by_kill {
            // Before the waiters, who wait for one of its threads.
            clean &= self.target.take().is_none_or(|target| target.kill(STEP));
        }
        self.rest.end();
        let have_ended = wait_for(self.workers.iter());
        clean &= have_ended;
        if !have_ended {
            eprintln!("stall-lab: threads are still stuck, aborting the FUSE connection");
            self.abort();
            wait_for(self.workers.iter());
        }
        let deadline = Instant::now() + STEP + CROWD * self.readers.len() as u32;
        for readers in self.readers {
            clean &= readers.end(deadline);
        }
        clean &= self.rehearsal.is_none_or(|process| process.end(STEP));
        clean &= self.target.is_none_or(|target| target.end(STEP));
        if let Some(beside) = &self.beside {
            clean &= unmount(&beside.mount, || beside.has_ended());
        }
        clean &= unmount(&self.mount, || self.server.has_ended());
        self.watchdog.dismiss();
        clean
    }

    /// Ends every wait for FUSE. EBUSY is the usual answer to a forced unmount that has
    /// aborted; where nobody is left in time, it has unmounted as well.
    fn abort(&self) {
        let beside = self.beside.iter().map(|beside| &beside.mount);
        for mount in beside.chain([&self.mount]) {
            let _ = umount2(mount, MntFlags::MNT_FORCE);
        }
    }
}

/// What a waiter wants, and where it is seen to want it.
pub(crate) struct Want {
    pub(crate) mode: Mode,
    pub(crate) killable: bool,
    /// How it sleeps: one-letter state of /proc.
    pub(crate) state: char,
    /// Functions that call the lock function; their names differ by version.
    pub(crate) callers: &'static [&'static str],
}

impl Want {
    /// Asleep as it should, called from one of `callers`: in the queue of the lock that
    /// they take.
    pub(crate) fn is_met(&self, look: &Look) -> bool {
        look.state == self.state && self.callers.contains(&look.top())
    }
}

fn wait_for<'a>(workers: impl Iterator<Item = &'a Worker>) -> bool {
    let deadline = Instant::now() + STEP;
    for worker in workers {
        while !worker.is_finished() {
            if Instant::now() >= deadline {
                eprintln!("stall-lab: thread {} does not end", worker.comm);
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
    true
}

/// Unmounts, waits for the server to notice, and removes the directory.
fn unmount(mount: &Path, server_has_ended: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + STEP;
    let mut clean = true;
    loop {
        match umount2(mount, MntFlags::empty()) {
            // EINVAL: a forced unmount was enough.
            Ok(()) | Err(Errno::EINVAL) => break,
            // A descriptor is closed a moment after its thread has ended.
            Err(Errno::EBUSY) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(error) => {
                eprintln!("stall-lab: cannot unmount {}: {error}", mount.display());
                clean = false;
                let _ = umount2(mount, MntFlags::MNT_FORCE);
                let _ = umount2(mount, MntFlags::MNT_DETACH);
                break;
            }
        }
    }
    while !server_has_ended() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
    clean && fs::remove_dir(mount).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queued_task_sleeps_directly_below_the_lock() {
        let look = |state, frames: &[&str]| Look {
            state,
            switches: 0,
            frames: frames.iter().map(|frame| (*frame).to_owned()).collect(),
        };
        let want = Want {
            mode: Mode::Read,
            killable: false,
            state: 'D',
            callers: &["lookup_slow"],
        };
        assert!(want.is_met(&look('D', &["lookup_slow", "walk_component"])));
        assert!(!want.is_met(&look('S', &["lookup_slow"])));
        assert!(!want.is_met(&look('D', &["request_wait_answer", "lookup_slow"])));
    }
}
