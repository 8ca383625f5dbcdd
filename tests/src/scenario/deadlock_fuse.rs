//! Deadlocks through FUSE daemons that enter directories which their clients hold.
//!
//! A mkdir holds the i_rwsem of its directory until the daemon has answered. The daemon has
//! one thread; before it answers, it makes a directory itself, in the same directory, or in
//! one that the client of another daemon holds. A daemon that logs into the file system that
//! it serves, or that looks below its own mount point, does as much.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use lockwatch_tests::truth::{Cycle, Held, Holder, Lock, LockState, Member, Role};

use super::{
    Cast, Scenery, Standing,
    inode_write_held::{self as inode, Visit},
};
use crate::{
    beside::{self, Kind},
    clock,
    stage::{SERVER_COMM, STEP, Stage},
    task::Task,
};

pub(super) fn scenery() -> Scenery {
    inode::scenery_with(&[inode::ERRAND])
}

pub(super) fn scenery_of_two() -> Scenery {
    Scenery {
        beside: Some(Kind::Fuse(scenery().tree)),
        ..scenery()
    }
}

/// client → daemon → directory → client.
pub(super) fn raise(stage: &mut Stage, cast: Cast) -> Result<Standing> {
    stage.is_deadlock = true;
    if cast.decoys {
        inode::raise_decoys(stage, inode::list)?;
    }
    let holder = inode::raise_holder(stage)?;

    let daemon = stage.server.task();
    let (path, started_ns) = (stage.path(INSIDE), clock::monotonic_ns());
    stage.server.send(inode::HOLDER, move || make(&path));
    stage.admit((daemon, started_ns), SERVER_COMM, &inode::MKDIR)?;
    raise_waiters(stage, cast)?;

    let lock = inode::lock(stage);
    let tasks = vec![is_holder(&holder), is_daemon(daemon, SERVER_COMM)];
    Ok(standing(stage, lock, holder, None, tasks))
}

/// client → daemon → the other's directory → the other's client → the other daemon →
/// directory → client.
pub(super) fn raise_two(stage: &mut Stage, cast: Cast) -> Result<Standing> {
    stage.is_deadlock = true;
    if cast.decoys {
        inode::raise_decoys(stage, inode::list)?;
    }
    let there = stage.beside()?.mount.clone();
    let holder = inode::raise_holder(stage)?;
    let other = raise_other_holder(stage, &there)?;

    let daemon = stage.server.task();
    let (path, started_ns) = (there.join(INSIDE), clock::monotonic_ns());
    stage.server.send(inode::HOLDER, move || make(&path));
    let waiter = stage.see_waiter((daemon, started_ns), SERVER_COMM, &inode::MKDIR, 1)?;

    let other_server = stage.beside()?.server()?;
    let other_daemon = other_server.task();
    let (path, started_ns) = (stage.path(INSIDE), clock::monotonic_ns());
    other_server.send(inode::HOLDER, move || make(&path));
    let started = (other_daemon, started_ns);
    stage.admit(started, beside::COMM, &inode::MKDIR)?;
    raise_waiters(stage, cast)?;

    let lock = inode::lock(stage);
    let tasks = vec![
        is_holder(&holder),
        is_daemon(daemon, SERVER_COMM),
        is_holder(&other),
        is_daemon(other_daemon, beside::COMM),
    ];
    let next = Held {
        lock: inode::lock_below(&there),
        state: LockState::WriteHeld,
        reader_count: None,
        holders: vec![other],
        waiter,
    };
    Ok(standing(stage, lock, holder, Some(next), tasks))
}

/// What a daemon makes.
const INSIDE: &str = "dir/of-the-daemon";

/// An error ends the wait just as well.
fn make(path: &Path) {
    let _ = fs::create_dir(path);
}

fn raise_other_holder(stage: &mut Stage, there: &Path) -> Result<Holder> {
    let comm = "lab-holder-2";
    let path = there.join("dir/late");
    let (task, _) = stage.start(comm, move || make(&path))?;
    stage.beside()?.server()?.wait_parked(inode::HOLDER, STEP)?;
    inode::seen_making(task, comm).context("in the second file system")
}

/// Listing the directory would ask the daemon to open it first.
fn raise_waiters(stage: &mut Stage, cast: Cast) -> Result<()> {
    let turns = [Visit::Stat, Visit::Mkdir];
    inode::raise_waiters(stage, cast, turns.into_iter().cycle())
}

fn standing(
    stage: &mut Stage,
    lock: Lock,
    holder: Holder,
    next: Option<Held>,
    tasks: Vec<Member>,
) -> Standing {
    let locks = [&lock]
        .into_iter()
        .chain(next.iter().map(|next| &next.lock));
    stage.cycle = Some(Cycle {
        tasks,
        between: Vec::new(),
        locks: locks.map(|lock| lock.name.clone()).collect(),
    });
    Standing {
        lock,
        state: LockState::WriteHeld,
        reader_count: None,
        holders: vec![holder],
        next,
        ends: None,
    }
}

pub(super) fn is_holder(holder: &Holder) -> Member {
    Member {
        tid: holder.tid,
        tgid: holder.tgid,
        comm: holder.comm.clone(),
        role: Role::Holder,
    }
}

pub(super) fn is_daemon(task: Task, comm: &str) -> Member {
    Member {
        tid: task.tid,
        tgid: task.tgid,
        comm: comm.to_owned(),
        role: Role::Daemon,
    }
}
