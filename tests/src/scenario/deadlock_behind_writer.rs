//! A deadlock: a FUSE daemon whose client is a thread of its own process.
//!
//! The client's page fault holds the mmap_lock for read, in its second attempt as in
//! `mmap-read-held`. Another thread's mmap queues as a writer. Then the daemon, before it
//! answers, touches a page for the first time: its page fault wants the mmap_lock for read
//! as well, which it could have, were it not for the writer in front of it.

use anyhow::{Context, Result};
use lockwatch_tests::truth::{Cycle, LockState, Mode};
use nix::libc;

use super::{
    Cast, Scenery, Standing,
    deadlock_fuse::{is_daemon, is_holder},
    mmap,
};
use crate::{
    beside::Kind,
    fuse::{Node, Op, ROOT, Rule, Then, Tree, Which},
    stage::{STEP, Stage, Want},
    target::{ERRAND, Part, SERVER_COMM},
    task::Look,
};

const FILE: u64 = 2;
const FILE_NAME: &str = "mapped";

pub(super) const WRITER_COMM: &str = "lab-w1";
const SENDER_COMM: &str = "lab-sender";

/// A page fault; before 6.5 its wait is not killable, and in a function of another name
/// (`lock_mm_and_find_vma` in mm/memory.c).
pub(super) const FAULT: Want = Want {
    mode: Mode::Read,
    killable: true,
    state: 'D',
    callers: &["lock_mm_and_find_vma"],
};
const OLDER_FAULT: Want = Want {
    killable: false,
    callers: &["do_user_addr_fault", "exc_page_fault"],
    ..FAULT
};

pub(super) fn scenery(cast: Cast) -> Scenery {
    let read = |then| Rule {
        op: Op::Read,
        node: FILE,
        which: Which::Page(0),
        times: 1,
        then,
    };
    let rules = [read(Then::Fail(libc::EIO)), read(Then::Errand(ERRAND))];
    let nodes = [Node::file(FILE, ROOT, FILE_NAME)];
    let holder = Part::Pass {
        file: FILE_NAME,
        page: 0,
    };
    let mut actors = vec![
        mmap::actor(mmap::HOLDER_COMM, holder),
        mmap::actor(WRITER_COMM, Part::Map),
        mmap::actor(SENDER_COMM, Part::SendServer),
    ];
    if cast.decoys {
        actors.push(mmap::actor(mmap::FUTEX_COMM, Part::Futex));
    }
    Scenery {
        tree: Tree::new(&[], &[]),
        actors: Some(actors),
        rehearsal: None,
        beside: Some(Kind::OfTarget(Tree::new(&nodes, &rules))),
        readers: 0,
    }
}

/// client → daemon → mmap_lock (behind the writer) → client.
pub(super) fn raise(stage: &mut Stage, cast: Cast) -> Result<Standing> {
    stage.is_deadlock = true;
    mmap::begin(stage)?;
    if cast.decoys {
        mmap::left_decoy(stage)?;
        mmap::futex_decoy(stage)?;
    }
    let daemon = mmap::target(stage)?.server()?;
    let (client, _) = mmap::target(stage)?.go(mmap::HOLDER_COMM)?;
    daemon
        .settle(SERVER_COMM, STEP, Look::waits_for_futex)
        .context("the daemon does not have the request of the second attempt")?;
    let look = client.settle(mmap::HOLDER_COMM, STEP, |look| {
        look.waits_for_fuse() && look.has("filemap_fault")
    })?;
    let holder = mmap::holder(client, Mode::Read, &look);

    let writer = mmap::target(stage)?.go(WRITER_COMM)?;
    stage.admit(writer, WRITER_COMM, &mmap::MAP)?;
    let (_, sent_ns) = mmap::target(stage)?.go(SENDER_COMM)?;
    let look = daemon.settle(SERVER_COMM, STEP, |look| {
        FAULT.is_met(look) || OLDER_FAULT.is_met(look)
    })?;
    let fault = [FAULT, OLDER_FAULT]
        .into_iter()
        .find(|fault| fault.is_met(&look))
        .context("the daemon is in no page fault")?;
    stage.admit((daemon, sent_ns), SERVER_COMM, &fault)?;
    for _ in 1..cast.waiters {
        mmap::raise_reader(stage)?;
    }

    let lock = mmap::lock(stage)?;
    let (writer, _) = writer;
    stage.cycle = Some(Cycle {
        tasks: vec![is_holder(&holder), is_daemon(daemon, SERVER_COMM)],
        between: vec![writer.tid],
        locks: vec![lock.name.clone()],
    });
    Ok(Standing {
        lock,
        state: LockState::ReadHeld,
        reader_count: Some(1),
        holders: vec![holder],
        next: None,
        ends: None,
    })
}
