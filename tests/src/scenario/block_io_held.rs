//! A directory's i_rwsem, held for write by a mkdir that waits for a block device.
//!
//! The device is a loop device over a file of the lab's FUSE file system, with an ext2 on
//! it: the read of the directory's only block is answered late, and stays in flight.

use std::fs;

use anyhow::Result;
use lockwatch_tests::truth::{
    DecoyKind, Holder, Lock, LockClass, LockKind, LockState, Mode, Stuck,
};

use super::{
    Cast, Scenery, Standing,
    inode_write_held::{LOOKUP, MKDIR, late},
};
use crate::{
    beside::Kind,
    ext2,
    fuse::{Node, Op, ROOT, Tree, Which},
    stage::{STEP, Stage},
};

const DISK: u64 = 2;
const DISK_NAME: &str = "disk";
/// The root of every ext2.
const ROOT_INO: u64 = 2;

const HOLDER: &str = "block of the directory";

pub(super) fn scenery() -> Scenery {
    let nodes = [Node::file(DISK, ROOT, DISK_NAME)];
    let rule = late(Op::Read, DISK, Which::Page(ext2::ROOT_PAGE), HOLDER);
    Scenery {
        tree: Tree::new(&nodes, &[rule]).with(DISK, ext2::image()),
        actors: None,
        rehearsal: None,
        beside: Some(Kind::Ext2In(DISK_NAME)),
        readers: 0,
    }
}

pub(super) fn raise(stage: &mut Stage, cast: Cast) -> Result<Standing> {
    let dir = stage.beside()?.mount.clone();
    stage.device = Some(stage.beside()?.device()?.to_owned());
    if cast.decoys {
        let at = dir.clone();
        stage.resting_decoy("lab-d-stat", DecoyKind::SameObject, move || {
            // What it sees does not matter.
            let _ = fs::metadata(at);
        })?;
        stage.resting_decoy("lab-d-futex", DecoyKind::Futex, || ())?;
    }
    let comm = "lab-holder";
    let path = dir.join("late");
    let (task, _) = stage.start(comm, move || drop(fs::create_dir(path)))?;
    stage.server.wait_parked(HOLDER, STEP)?;
    stage.held = Some(HOLDER);
    let look = task.settle(comm, STEP, |look| {
        look.state == 'D'
            && look
                .frames
                .iter()
                .any(|frame| frame.contains("ext4_lookup"))
    })?;
    let holder = Holder {
        tid: task.tid,
        tgid: task.tgid,
        comm: comm.into(),
        mode: Mode::Write,
        stuck: Stuck::BlockIo,
        frame: look.top().to_owned(),
        granted: false,
    };
    for position in 1..=cast.waiters {
        let comm = format!("lab-w{position}");
        let path = dir.join(format!("unknown-{position}"));
        let want = if position % 2 == 0 { &MKDIR } else { &LOOKUP };
        let started = stage.start(&comm, move || match position % 2 {
            0 => drop(fs::create_dir(path)),
            _ => drop(fs::symlink_metadata(path)),
        })?;
        stage.admit(started, &comm, want)?;
    }
    Ok(Standing {
        lock: Lock {
            kind: LockKind::Rwsem,
            class: Some(LockClass::IRwsem),
            name: format!("i_rwsem of {}", dir.display()),
            path: Some("/".into()),
            ino: Some(ROOT_INO),
            tgid: None,
            comm: None,
        },
        state: LockState::WriteHeld,
        reader_count: None,
        holders: vec![holder],
        next: None,
        ends: None,
    })
}
