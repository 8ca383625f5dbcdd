//! A directory's i_rwsem, held for read by two listings whose answers are late.
//!
//! A listing keeps the lock for read while the file system looks
//! (fs/readdir.c, `iterate_dir`), so two of them hold it together. Then a
//! mkdir queues as a writer, and every reader after that queues behind it.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use lockwatch_tests::truth::{Holder, LockState, Mode, Stuck};

use super::{
    Cast, Scenery, Standing,
    inode_write_held::{self as inode, Visit},
};
use crate::{
    beside::Kind,
    fuse::{Op, Which},
    stage::{STEP, Stage},
};

/// Comm of each holder and what its answer is called.
const HOLDERS: [(&str, &str); 2] = [
    ("lab-holder-1", "listing of the first holder"),
    ("lab-holder-2", "listing of the second holder"),
];

pub(super) fn scenery() -> Scenery {
    let rules = HOLDERS.map(|(_, label)| inode::late(Op::Readdir, inode::DIR, Which::All, label));
    inode::scenery_with(&rules)
}

pub(super) fn scenery_with_overlay() -> Scenery {
    Scenery {
        beside: Some(Kind::Overlay),
        ..scenery()
    }
}

pub(super) fn raise(stage: &mut Stage, cast: Cast) -> Result<Standing> {
    // Without a writer in front no reader would wait.
    let turns = [Visit::Mkdir, Visit::Stat, Visit::List];
    raise_with(stage, cast, turns.into_iter().cycle())
}

/// One waiter lists the directory through the overlay and holds the overlay's
/// own directory meanwhile, by the same functions (`ovl_iterate` calls
/// `iterate_dir` again). A second one would wait for that directory.
pub(super) fn raise_with_overlay(stage: &mut Stage, cast: Cast) -> Result<Standing> {
    // The overlay looks it up while nobody is in its way.
    let dir = stage.beside()?.mount.join("dir");
    fs::metadata(&dir).with_context(|| format!("the overlay shows no {}", dir.display()))?;
    let others = [Visit::Stat, Visit::List].into_iter().cycle();
    let visits = [Visit::Mkdir, Visit::ListOverlay].into_iter().chain(others);
    raise_with(stage, cast, visits)
}

fn raise_with(
    stage: &mut Stage,
    cast: Cast,
    visits: impl Iterator<Item = Visit>,
) -> Result<Standing> {
    if cast.decoys {
        inode::raise_decoys(stage, look_up)?;
    }
    let mut holders = Vec::new();
    for (comm, label) in HOLDERS {
        holders.push(raise_holder(stage, comm, label)?);
    }
    inode::raise_waiters(stage, cast, visits)?;
    Ok(Standing {
        lock: inode::lock(stage),
        state: LockState::ReadHeld,
        reader_count: Some(holders.len() as u32),
        holders,
        next: None,
        ends: None,
    })
}

fn raise_holder(stage: &mut Stage, comm: &str, label: &str) -> Result<Holder> {
    let dir = stage.path("dir");
    let (task, _) = stage.start(comm, move || inode::list(&dir))?;
    stage.server.wait_parked(label, STEP)?;
    let look = task.settle(comm, STEP, |look| {
        look.waits_for_fuse() && look.has("iterate_dir")
    })?;
    Ok(Holder {
        tid: task.tid,
        tgid: task.tgid,
        comm: comm.into(),
        mode: Mode::Read,
        stuck: Stuck::Fuse,
        frame: look.top().to_owned(),
        granted: false,
    })
}

/// Takes the lock for read without a READDIR: those are the holders'.
fn look_up(dir: &Path) {
    // It does not exist; that the kernel had to ask is enough.
    drop(fs::symlink_metadata(dir.join("unknown-to-all")));
}
