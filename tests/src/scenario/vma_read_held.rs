//! A process's mmap_lock behind the lock of one of its memory areas.
//!
//! A write fault keeps the lock of its area for read while `page_mkwrite` waits for the
//! writeback of what was written before (mm/memory.c, `do_page_mkwrite`). An madvise that
//! changes the area holds the mmap_lock for write and waits for the fault
//! (mm/mmap_lock.c, `__vma_start_write`); everybody else waits for the madvise.

use anyhow::Result;
use lockwatch_tests::truth::{
    Held, Holder, Lock, LockClass, LockKind, LockState, Mode, Stuck, Waiter,
};

use super::{Cast, NotHere, Scenery, Standing, mkwrite, mmap};
use crate::{
    clock,
    fuse::{Node, ROOT, Tree},
    stage::{STEP, Stage},
    target::{Actor, COMM, Part},
    task::Task,
};

const FILE: u64 = 2;
const FILE_NAME: &str = "written";

/// Holds the mmap_lock and waits for the area.
const ADVISER_COMM: &str = "lab-adviser";

/// Second in the queue, so that readers wait on both sides of it.
const WRITER: u32 = 2;

pub(super) fn scenery(cast: Cast) -> Scenery {
    let rules = [
        mkwrite::rule(FILE, mmap::HOLDER),
        mkwrite::RULE,
        mmap::DECOY_RULE,
    ];
    let nodes = [
        &[Node::file(FILE, ROOT, FILE_NAME), mkwrite::NODE],
        &mmap::DECOY_NODES[..],
    ]
    .concat();
    let mut actors = mmap::actors(cast, Part::WriteAgain { file: FILE_NAME }, WRITER);
    actors.push(Actor {
        comm: ADVISER_COMM.into(),
        part: Part::Advise,
    });
    Scenery {
        tree: Tree::new(&nodes, &rules),
        actors: Some(actors),
        rehearsal: Some(mkwrite::actors()),
        beside: None,
        readers: 0,
    }
}

pub(super) fn raise(stage: &mut Stage, cast: Cast) -> Result<Standing> {
    if !mkwrite::leaves_mmap_lock(stage)? {
        return Err(NotHere::because(
            "a write fault keeps the mmap_lock itself before Linux 6.7",
        ));
    }
    mmap::begin(stage)?;
    if cast.decoys {
        mmap::raise_decoys(stage)?;
    }
    let fault = mmap::start_holder(stage)?;
    let look = fault.settle(mmap::HOLDER_COMM, STEP, mkwrite::is_there)?;
    let fault = mmap::holder(fault, Mode::Read, &look);
    let (adviser, waiter) = raise_adviser(stage)?;
    mmap::raise_waiters(stage, cast, WRITER)?;
    Ok(Standing {
        lock: mmap::lock(stage)?,
        state: LockState::WriteHeld,
        reader_count: None,
        holders: vec![adviser],
        next: Some(Held {
            lock: lock(stage)?,
            state: LockState::ReadHeld,
            reader_count: Some(1),
            holders: vec![fault],
            waiter,
        }),
        ends: None,
    })
}

/// The one in the middle: holder of the first lock, waiter of the second.
fn raise_adviser(stage: &Stage) -> Result<(Holder, Waiter)> {
    let (Task { tgid, tid }, started_ns) = mmap::target(stage)?.go(ADVISER_COMM)?;
    let look = Task { tgid, tid }.settle(ADVISER_COMM, STEP, |look| {
        look.state == 'D' && look.has("do_madvise")
    })?;
    let frame = look.top().to_owned();
    let comm = ADVISER_COMM.to_owned();
    let holder = Holder {
        tid,
        tgid,
        comm: comm.clone(),
        mode: Mode::Write,
        stuck: Stuck::Lock,
        frame: frame.clone(),
        granted: false,
    };
    let waiter = Waiter {
        position: 1,
        tid,
        tgid,
        comm,
        mode: Mode::Write,
        killable: false,
        frame,
        started_ns,
        queued_ns: clock::monotonic_ns(),
    };
    Ok((holder, waiter))
}

fn lock(stage: &Stage) -> Result<Lock> {
    let tgid = mmap::target(stage)?.tgid();
    Ok(Lock {
        kind: LockKind::VmaLock,
        class: Some(LockClass::VmaLock),
        name: format!("VMA lock of {COMM}[{}] at 0x", tgid.0),
        path: None,
        ino: None,
        tgid: Some(tgid),
        comm: Some(COMM.into()),
    })
}
