//! A process's mmap_lock, held for read by the second attempt of a page fault.
//!
//! The first attempt drops the lock while it waits for the page. Its READ
//! fails, so the fault is tried again; the second attempt keeps the lock, and
//! its READ is late (mm/filemap.c, `filemap_fault`). Then a thread's mmap
//! queues as a writer, and every reader after that queues behind it.
//!
//! A write fault in `page_mkwrite` looks the same from outside: the kernel
//! overwrites the flags that it began with (mm/memory.c, `do_page_mkwrite`).

use anyhow::Result;
use lockwatch_tests::truth::{DecoyKind, LockState, Mode};
use nix::libc;

use super::{BEFORE, BEFORE_COMM, Cast, Scenery, Standing, mkwrite, mmap};
use crate::{
    fuse::{Node, Op, ROOT, Rule, Then, Tree, Which},
    stage::{STEP, Stage},
    target::{Actor, Part},
};

const FILE: u64 = 2;
const FILE_NAME: &str = "mapped";

/// First in the queue: without a writer no reader would wait.
const WRITER: u32 = 1;

const WRITTEN: u64 = 3;
const WRITTEN_NAME: &str = "written";

const EARLIER: u64 = 4;
const EARLIER_NAME: &str = "earlier";

const DECOY_PAGE: &str = "fault on another page";
const DECOY_WRITE: &str = "writeback of a page written again";

const MKWRITE_COMM: &str = "lab-d-mkwrite";

pub(super) fn scenery(cast: Cast) -> Scenery {
    let read = |node, page, then| Rule {
        op: Op::Read,
        node,
        which: Which::Page(page),
        times: 1,
        then,
    };
    let rules = [
        read(FILE, 0, Then::Fail(libc::EIO)),
        read(FILE, 0, Then::Late(mmap::HOLDER)),
        read(FILE, 1, Then::Late(DECOY_PAGE)),
        read(EARLIER, 0, Then::Fail(libc::EIO)),
        read(EARLIER, 0, Then::Late(BEFORE)),
        mkwrite::rule(WRITTEN, DECOY_WRITE),
        mkwrite::RULE,
        mmap::DECOY_RULE,
    ];
    let own = [
        Node::file(FILE, ROOT, FILE_NAME),
        Node::file(WRITTEN, ROOT, WRITTEN_NAME),
        Node::file(EARLIER, ROOT, EARLIER_NAME),
        mkwrite::NODE,
    ];
    let nodes = [&own[..], &mmap::DECOY_NODES[..]].concat();
    let touch = |page| Part::Touch {
        file: FILE_NAME,
        page,
    };
    let mut actors = mmap::actors(cast, touch(0), WRITER);
    if cast.before.is_some() {
        let part = Part::Touch {
            file: EARLIER_NAME,
            page: 0,
        };
        actors.push(mmap::actor(BEFORE_COMM, part));
    }
    if cast.decoys {
        let file = WRITTEN_NAME;
        let more = [
            ("lab-d-page", touch(1)),
            (MKWRITE_COMM, Part::WriteAgain { file }),
        ];
        actors.extend(more.map(|(comm, part)| Actor {
            comm: comm.into(),
            part,
        }));
    }
    Scenery {
        tree: Tree::new(&nodes, &rules),
        actors: Some(actors),
        rehearsal: cast.decoys.then(mkwrite::actors),
        beside: None,
        readers: 0,
    }
}

pub(super) fn raise(stage: &mut Stage, cast: Cast) -> Result<Standing> {
    mmap::begin(stage)?;
    if cast.decoys {
        mmap::raise_decoys(stage)?;
        mmap::fault_decoy(stage, "lab-d-page", DECOY_PAGE)?;
        raise_mkwrite_decoy(stage)?;
    }
    if let Some(time) = cast.before {
        let (task, _) = mmap::target(stage)?.go(BEFORE_COMM)?;
        let who = (BEFORE_COMM, Mode::Read, BEFORE);
        stage.hold_before(task, who, time, |look| !look.has("filemap_fault"))?;
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
        next: None,
        ends: None,
    })
}

/// Sends a thread of the target into `page_mkwrite`, where it waits for the
/// writeback of what it wrote before. It is left out on kernels that keep the
/// mmap_lock there: it would be a holder.
fn raise_mkwrite_decoy(stage: &mut Stage) -> Result<()> {
    if !mkwrite::leaves_mmap_lock(stage)? {
        eprintln!("stall-lab: page_mkwrite holds the mmap_lock here: no {MKWRITE_COMM}");
        stage.server.release(DECOY_WRITE);
        return Ok(());
    }
    stage.server.wait_parked(DECOY_WRITE, STEP)?;
    let (task, _) = mmap::target(stage)?.go(MKWRITE_COMM)?;
    stage.decoy(
        task,
        MKWRITE_COMM,
        DecoyKind::PageMkwrite,
        mkwrite::is_there,
    )
}
