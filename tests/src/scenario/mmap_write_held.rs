//! A process's mmap_lock, held for write by an mmap that waits for a late WRITE.
//!
//! A FUSE file that was opened for direct I/O is mapped without what the page cache has of
//! it: the kernel drops those pages under the lock, and writes back the dirty ones first
//! (fs/fuse/file.c, `fuse_file_mmap` and `fuse_launder_folio`, the same from 5.10 to 7.3).

use anyhow::Result;
use lockwatch_tests::truth::{LockState, Mode};

use super::{Cast, Scenery, Standing, mmap};
use crate::{
    fuse::{Node, Op, ROOT, Rule, Then, Tree, Which},
    stage::{STEP, Stage},
    target::Part,
};

const FILE: u64 = 2;
const FILE_NAME: &str = "dirty";

/// Second in the queue, so that readers wait on both sides of it.
const WRITER: u32 = 2;

pub(super) fn scenery(cast: Cast) -> Scenery {
    let rules = [
        Rule {
            op: Op::Write,
            node: FILE,
            which: Which::All,
            times: 1,
            then: Then::Late(mmap::HOLDER),
        },
        mmap::DECOY_RULE,
    ];
    let nodes = [&[Node::file(FILE, ROOT, FILE_NAME)], &mmap::DECOY_NODES[..]].concat();
    let actors = mmap::actors(cast, Part::MapDirect { file: FILE_NAME }, WRITER);
    Scenery {
        tree: Tree::new(&nodes, &rules),
        actors: Some(actors),
        rehearsal: None,
        beside: None,
        readers: 0,
    }
}

pub(super) fn raise(stage: &mut Stage, cast: Cast) -> Result<Standing> {
    mmap::begin(stage)?;
    if cast.decoys {
        mmap::raise_decoys(stage)?;
    }
    let task = mmap::start_holder(stage)?;
    let look = task.settle(mmap::HOLDER_COMM, STEP, |look| {
        matches!(look.state, 'S' | 'D')
            && look.has("vm_mmap_pgoff")
            && look.top() != "vm_mmap_pgoff"
    })?;
    mmap::raise_waiters(stage, cast, WRITER)?;
    Ok(Standing {
        lock: mmap::lock(stage)?,
        state: LockState::WriteHeld,
        reader_count: None,
        holders: vec![mmap::holder(task, Mode::Write, &look)],
        next: None,
        ends: None,
    })
}
