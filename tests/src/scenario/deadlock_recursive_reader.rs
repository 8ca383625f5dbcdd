//! A deadlock of one task: it holds its mmap_lock for read and asks for it again.
//!
//! It reads a BPF iterator over its own memory areas, whose program reads a page of a mapped
//! file. The kernel holds the mmap_lock for read meanwhile. The page fault gives up the lock
//! that it took itself, to wait for the file system; another thread's mmap queues; and when
//! the page is there, the fault asks for the mmap_lock for read once more. It queues behind
//! the writer, who waits for the first hold of the same task.
//!
//! Only a fatal signal ends it, and only where the fault can be killed: elsewhere nothing
//! would.

use anyhow::{Context, Result};
use lockwatch_tests::truth::{Cycle, LockState, Mode, Stuck};
use nix::sys::utsname::uname;

use super::{
    Cast, NotHere, Scenery, Standing,
    deadlock_behind_writer::{FAULT, WRITER_COMM},
    deadlock_fuse::is_holder,
    mmap,
};
use crate::{
    fuse::{Node, Op, ROOT, Rule, Then, Tree, Which},
    stage::{STEP, Stage},
    target::Part,
};

const FILE: u64 = 2;
const FILE_NAME: &str = "mapped";

/// `lock_mm_and_find_vma` came with it, whose wait a fatal signal ends.
const KILLABLE_SINCE: (u32, u32) = (6, 5);

pub(super) fn scenery(cast: Cast) -> Scenery {
    let rule = Rule {
        op: Op::Read,
        node: FILE,
        which: Which::Page(0),
        times: 1,
        then: Then::Late(mmap::HOLDER),
    };
    let mut actors = vec![
        mmap::actor(mmap::HOLDER_COMM, Part::Iterate { file: FILE_NAME }),
        mmap::actor(WRITER_COMM, Part::Map),
    ];
    if cast.decoys {
        actors.push(mmap::actor(mmap::FUTEX_COMM, Part::Futex));
    }
    Scenery {
        tree: Tree::new(&[Node::file(FILE, ROOT, FILE_NAME)], &[rule]),
        actors: Some(actors),
        rehearsal: None,
        beside: None,
        readers: 0,
    }
}

/// holder → mmap_lock (behind the writer) → holder.
pub(super) fn raise(stage: &mut Stage, cast: Cast) -> Result<Standing> {
    if !is_killable()? {
        return Err(NotHere::because(
            "no signal ends a page fault's wait for the mmap_lock before Linux 6.5",
        ));
    }
    mmap::begin(stage)?;
    if cast.decoys {
        mmap::left_decoy(stage)?;
        mmap::futex_decoy(stage)?;
    }
    let (task, _) = mmap::target(stage)?.go(mmap::HOLDER_COMM)?;
    stage.server.wait_parked(mmap::HOLDER, STEP)?;
    task.settle(mmap::HOLDER_COMM, STEP, |look| {
        look.has("filemap_fault") && look.has("task_vma_seq_show")
    })?;
    let writer = mmap::target(stage)?.go(WRITER_COMM)?;
    stage.admit(writer, WRITER_COMM, &mmap::MAP)?;

    stage.ends_by_kill = true;
    let released_ns = crate::clock::monotonic_ns();
    stage.server.release(mmap::HOLDER);
    stage.admit((task, released_ns), mmap::HOLDER_COMM, &FAULT)?;
    for _ in 1..cast.waiters {
        mmap::raise_reader(stage)?;
    }

    let look = task.look()?;
    let mut holder = mmap::holder(task, Mode::Read, &look);
    holder.stuck = Stuck::Lock;
    let lock = mmap::lock(stage)?;
    let (writer, _) = writer;
    stage.cycle = Some(Cycle {
        tasks: vec![is_holder(&holder)],
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

fn is_killable() -> Result<bool> {
    let kernel = uname().context("cannot ask for the kernel's version")?;
    let release = kernel.release().to_string_lossy();
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    let mut number = || numbers.next()?.parse().ok();
    let version = number().zip(number());
    let version = version.with_context(|| format!("{release} is no version of Linux"))?;
    Ok(version >= KILLABLE_SINCE)
}
