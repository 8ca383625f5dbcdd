//! What the two mmap_lock scenarios have in common.

use std::fs;

use anyhow::{Context, Result};
use lockwatch_tests::truth::{DecoyKind, Holder, Lock, LockClass, LockKind, Mode, Stuck};

use super::Cast;
use crate::{
    fuse::{Node, Op, ROOT, Rule, Then, Which},
    stage::{STEP, Stage, Want},
    target::{Actor, COMM, Part, Target},
    task::{Look, Task},
};

const OTHER: u64 = 10;
const QUICK: u64 = 11;

/// Files that only decoys use.
pub(super) const DECOY_NODES: [Node; 2] = [
    Node::file(OTHER, ROOT, "other"),
    Node::file(QUICK, ROOT, "quick"),
];

pub(super) const HOLDER: &str = "request of the holder";
pub(super) const HOLDER_COMM: &str = "lab-holder";
const DECOY_OTHER: &str = "fault on another file";

/// The late first READ of the other file.
pub(super) const DECOY_RULE: Rule = Rule {
    op: Op::Read,
    node: OTHER,
    which: Which::Page(0),
    times: 1,
    then: Then::Late(DECOY_OTHER),
};

/// mmap of a thread of the target.
pub(super) const MAP: Want = Want {
    mode: Mode::Write,
    killable: true,
    state: 'D',
    callers: &["vm_mmap_pgoff"],
};

/// Reading /proc/PID/cmdline of the target.
pub(super) const CMDLINE: Want = Want {
    mode: Mode::Read,
    killable: true,
    state: 'D',
    callers: &[
        "__access_remote_vm",
        "access_remote_vm",
        "get_mm_cmdline",
        "proc_pid_cmdline_read",
    ],
};

/// A decoy of every mmap_lock scenario: [`futex_decoy`].
pub(super) const FUTEX_COMM: &str = "lab-d-futex";

/// A thread of the target, by name, with what it does.
pub(super) fn actor(comm: &str, part: Part) -> Actor {
    Actor {
        comm: comm.into(),
        part,
    }
}

/// Threads of the target that every mmap_lock scenario has: `holder`, the
/// writer at place `writer` of the queue if it is that long, and decoys.
pub(super) fn actors(cast: Cast, holder: Part, writer: u32) -> Vec<Actor> {
    let mut actors = vec![actor(HOLDER_COMM, holder)];
    if cast.waiters >= writer {
        actors.push(actor(&waiter_comm(writer), Part::Map));
    }
    if cast.decoys {
        let file = "other";
        actors.push(actor("lab-d-fault", Part::Touch { file, page: 0 }));
        actors.push(actor(FUTEX_COMM, Part::Futex));
        let file = "quick";
        actors.push(actor("lab-d-gone", Part::TouchAndExit { file }));
    }
    actors
}

fn waiter_comm(position: u32) -> String {
    format!("lab-w{position}")
}

/// Starts the target's threads; nothing is stalled yet.
pub(super) fn begin(stage: &mut Stage) -> Result<()> {
    stage
        .target
        .as_mut()
        .context("the scenario has no target process")?
        .begin(STEP)
}

pub(super) fn target(stage: &Stage) -> Result<&Target> {
    stage
        .target
        .as_ref()
        .context("the scenario has no target process")
}

/// The decoys of every mmap_lock scenario; they must stand before the holder,
/// because the way to their places leads through the lock.
pub(super) fn raise_decoys(stage: &mut Stage) -> Result<()> {
    let (task, _) = target(stage)?.go("lab-d-gone")?;
    stage.gone_decoy(task, "lab-d-gone", DecoyKind::LeftReader)?;
    fault_decoy(stage, "lab-d-fault", DECOY_OTHER)?;
    futex_decoy(stage)?;
    left_decoy(stage)
}

/// A thread of the target that waits for a futex.
pub(super) fn futex_decoy(stage: &mut Stage) -> Result<()> {
    let (task, _) = target(stage)?.go(FUTEX_COMM)?;
    stage.decoy(task, FUTEX_COMM, DecoyKind::Futex, Look::waits_for_futex)
}

/// One who has read the command line and sleeps.
pub(super) fn left_decoy(stage: &mut Stage) -> Result<()> {
    let (rest, path) = (stage.rest.clone(), cmdline(stage)?);
    let (task, _) = stage.start("lab-d-left", move || {
        drop(fs::read(path));
        rest.wait();
    })?;
    stage.decoy(
        task,
        "lab-d-left",
        DecoyKind::LeftReader,
        Look::waits_for_futex,
    )
}

/// Sends a thread of the target into a first-attempt fault, and sees it wait.
pub(super) fn fault_decoy(stage: &mut Stage, comm: &str, label: &str) -> Result<()> {
    let (task, _) = target(stage)?.go(comm)?;
    stage.server.wait_parked(label, STEP)?;
    stage.decoy(task, comm, DecoyKind::FirstAttemptFault, |look| {
        look.waits_for_fuse() && look.has("filemap_fault")
    })
}

/// Sends the holder into its place, as far as the server sees it.
pub(super) fn start_holder(stage: &mut Stage) -> Result<Task> {
    let (task, _) = target(stage)?.go(HOLDER_COMM)?;
    stage.server.wait_parked(HOLDER, STEP)?;
    stage.held = Some(HOLDER);
    Ok(task)
}

pub(super) fn holder(task: Task, mode: Mode, look: &Look) -> Holder {
    Holder {
        tid: task.tid,
        tgid: task.tgid,
        comm: HOLDER_COMM.into(),
        mode,
        stuck: Stuck::Fuse,
        frame: look.top().to_owned(),
        granted: false,
    }
}

/// Queues the waiters: a writer in the target at place `writer`, readers of
/// its command line everywhere else.
pub(super) fn raise_waiters(stage: &mut Stage, cast: Cast, writer: u32) -> Result<()> {
    for position in 1..=cast.waiters {
        let comm = waiter_comm(position);
        if position == writer {
            let started = target(stage)?.go(&comm)?;
            stage.admit(started, &comm, &MAP)?;
        } else {
            raise_reader(stage)?;
        }
    }
    Ok(())
}

/// Queues one reader of the command line, at the end.
pub(super) fn raise_reader(stage: &mut Stage) -> Result<()> {
    let comm = waiter_comm(stage.next_position());
    let path = cmdline(stage)?;
    let started = stage.start(&comm, move || drop(fs::read(path)))?;
    stage.admit(started, &comm, &CMDLINE)
}

pub(super) fn lock(stage: &Stage) -> Result<Lock> {
    let tgid = target(stage)?.tgid();
    Ok(Lock {
        kind: LockKind::Rwsem,
        class: Some(LockClass::MmapLock),
        name: format!("mmap_lock of {COMM}[{}]", tgid.0),
        path: None,
        ino: None,
        tgid: Some(tgid),
        comm: Some(COMM.into()),
    })
}

/// What readers of its lock read.
pub(super) fn cmdline(stage: &Stage) -> Result<String> {
    Ok(format!("/proc/{}/cmdline", target(stage)?.tgid().0))
}
