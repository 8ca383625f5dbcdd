//! A daemon of which one thread waits for a directory, and another will answer its holder.
//!
//! A mkdir holds the i_rwsem of its directory until the daemon has answered. Of the threads
//! that read its requests, one has this one and sleeps in user space before it answers; the
//! others answer as ever. A thread that takes no requests lists the same directory meanwhile.
//! It looks like the daemon that enters a directory which its client holds, and is none:
//! everybody goes on as soon as the first thread answers.

use std::sync::mpsc;

use anyhow::{Result, ensure};
use lockwatch_tests::truth::LockState;

use super::{
    Cast, Scenery, Standing,
    inode_write_held::{self as inode, Visit},
};
use crate::{clock, fuse::Duty, stage::Stage};

pub(super) fn scenery() -> Scenery {
    inode::scenery_with(&[inode::ERRAND])
}

/// A thread that serves beside the first.
const SECOND: &str = "lab-server-2";

/// The thread that takes no requests.
const KEEPER: &str = "lab-server-k";

pub(super) fn raise(stage: &mut Stage, cast: Cast) -> Result<Standing> {
    if cast.decoys {
        inode::raise_decoys(stage, inode::list)?;
    }
    let second = stage.server.enlist(SECOND, Duty::Serve)?;
    let (go, told) = mpsc::channel();
    let dir = stage.path("dir");
    let visit = move || {
        // It is told nothing if the stall could not be made.
        if told.recv().is_ok() {
            inode::list(&dir);
        }
    };
    let keeper = stage.server.enlist(KEEPER, Duty::Other(Box::new(visit)))?;

    // Nobody tells the server what to do for it: whoever reads it sleeps until the end.
    let holder = inode::raise_holder(stage)?;
    let started_ns = clock::monotonic_ns();
    ensure!(go.send(()).is_ok(), "{KEEPER} ended too early");
    stage.admit((keeper, started_ns), KEEPER, &inode::LIST)?;
    let turns = [Visit::Stat, Visit::List, Visit::Mkdir];
    inode::raise_waiters(stage, cast, turns.into_iter().cycle())?;

    let asleep = [stage.server.task(), second]
        .into_iter()
        .map(|task| Ok(task.look()?.waits_for_futex()))
        .filter(|asleep| !matches!(asleep, Ok(false)))
        .collect::<Result<Vec<bool>>>()?;
    ensure!(
        asleep.len() == 1,
        "{} threads have the request",
        asleep.len()
    );
    Ok(Standing {
        lock: inode::lock(stage),
        state: LockState::WriteHeld,
        reader_count: None,
        holders: vec![holder],
        next: None,
        ends: None,
    })
}
