//! A process's mmap_lock, held for read by the second attempt of a page fault.
//!
//! The first attempt drops the lock while it waits for the page. Its READ
//! fails, so the fault is tried again; the second attempt keeps the lock, and
//! its READ is late (mm/filemap.c, `filemap_fault`). Then a thread's mmap
//! queues as a writer, and every reader after that queues behind it.

use anyhow::Result;
use lockwatch_tests::truth::{LockState, Mode};
use nix::libc;

use super::{Cast, Scenery, Standing, mmap};
use crate::{
    fuse::{Node, Op, ROOT, Rule, Then, Tree, Which},
    stage::{STEP, Stage},
    target::{Actor, Part},
};

const FILE: u64 = 2;
const FILE_NAME: &str = "mapped";

/// First in the queue: without a writer no reader would wait.
const WRITER: u32 = 1;

const DECOY_PAGE: &str = "fault on another page";

pub(super) fn scenery(cast: Cast) -> Scenery {
    let read = |page, then| Rule {
        op: Op::Read,
        node: FILE,
        which: Which::Page(page),
        times: 1,
        then,
    };
    let rules = [
        read(0, Then::Fail(libc::EIO)),
        read(0, Then::Late(mmap::HOLDER)),
        read(1, Then::Late(DECOY_PAGE)),
        mmap::DECOY_RULE,
    ];
    let nodes = [&[Node::file(FILE, ROOT, FILE_NAME)], &mmap::DECOY_NODES[..]].concat();
    let touch = |page| Part::Touch {
        file: FILE_NAME,
        page,
    };
    let mut actors = mmap::actors(cast, touch(0), WRITER);
    if cast.decoys {
        actors.push(Actor {
            comm: "lab-d-page".into(),
            part: touch(1),
        });
    }
    Scenery {
        tree: Tree::new(&nodes, &rules),
        actors: Some(actors),
    }
}

pub(super) fn raise(stage: &mut Stage, cast: Cast) -> Result<Standing> {
    mmap::begin(stage)?;
    if cast.decoys {
        mmap::raise_decoys(stage)?;
        mmap::fault_decoy(stage, "lab-d-page", DECOY_PAGE)?;
    }
    let task = mmap::start_holder(stage)?;
    let look = task.settle(mmap::HOLDER_COMM, STEP, |look| {
        look.waits_for_fuse() && look.has("filemap_fault")
    })?;
    mmap::raise_waiters(stage, cast, WRITER)?;
    Ok(Standing {
        lock: mmap::lock(stage)?,
        state: LockState::ReadHeld,
        reader_count: Some(1),
        holders: vec![mmap::holder(task, Mode::Read, &look)],
        ends: None,
    })
}
