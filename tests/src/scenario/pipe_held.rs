//! The mutex of a pipe, held by a write whose bytes come late.
//!
//! A write copies into the pipe under its mutex (fs/pipe.c, `pipe_write`). The bytes are a
//! page of a mapped FUSE file, so the copy is a page fault. That fault is a first attempt:
//! it has dropped the mmap_lock while it waits.

use std::{
    fs::File,
    io::{Read, Write},
    sync::Arc,
};

use anyhow::{Context, Result};
use lockwatch_tests::truth::{DecoyKind, Lock, LockClass, LockKind, LockState, Mode};
use nix::{fcntl::OFlag, unistd::pipe2};

use super::{Cast, Scenery, Standing};
use crate::{
    fuse::{Node, Op, ROOT, Rule, Then, Tree, Which},
    mapping::Source,
    stage::{STEP, Stage, Want},
    task::Look,
};

const FILE: u64 = 2;
const FILE_NAME: &str = "source";

const HOLDER: &str = "page of the holder";
const DECOY_OTHER: &str = "page of a writer to another pipe";
const DECOY_TOUCH: &str = "page that is only touched";

const OTHER_PAGE: u64 = 1;
const TOUCH_PAGE: u64 = 2;

/// read and write; from 6.16 on nameless pipes have functions of their own.
const TRANSFER: Want = Want {
    mode: Mode::Write,
    killable: false,
    state: 'D',
    callers: &[
        "pipe_write",
        "pipe_read",
        "anon_pipe_write",
        "anon_pipe_read",
    ],
};

/// Both ends of a pipe.
struct Pipe {
    out: File,
    into: File,
}

impl Pipe {
    fn new() -> Result<Arc<Self>> {
        let (out, into) = pipe2(OFlag::O_CLOEXEC).context("cannot make a pipe")?;
        Ok(Arc::new(Self {
            out: out.into(),
            into: into.into(),
        }))
    }

    /// An error ends the wait just as well, here and below.
    fn write(&self) {
        let _ = (&self.into).write(&[0]);
    }

    fn read(&self) {
        let _ = (&self.out).read(&mut [0]);
    }
}

pub(super) fn scenery() -> Scenery {
    let late = |page, label| Rule {
        op: Op::Read,
        node: FILE,
        which: Which::Page(page),
        times: 1,
        then: Then::Late(label),
    };
    let rules = [
        late(0, HOLDER),
        late(OTHER_PAGE, DECOY_OTHER),
        late(TOUCH_PAGE, DECOY_TOUCH),
    ];
    Scenery {
        tree: Tree::new(&[Node::file(FILE, ROOT, FILE_NAME)], &rules),
        actors: None,
        rehearsal: None,
        beside: None,
        readers: 0,
    }
}

pub(super) fn raise(stage: &mut Stage, cast: Cast) -> Result<Standing> {
    let source = Source::new(&stage.path(FILE_NAME))?;
    let pipe = Pipe::new()?;
    if cast.decoys {
        raise_decoys(stage, &source, &pipe)?;
    }
    let into = Arc::clone(&pipe);
    let holder = stage.fuse_holder("lab-holder", Mode::Write, HOLDER, move || {
        source.write(0, &into.into);
    })?;
    for position in 1..=cast.waiters {
        let comm = format!("lab-w{position}");
        let pipe = Arc::clone(&pipe);
        // A reader finds what the holder has written.
        let started = stage.start(&comm, move || match position % 2 {
            0 => pipe.write(),
            _ => pipe.read(),
        })?;
        stage.admit(started, &comm, &TRANSFER)?;
    }
    Ok(Standing {
        lock: Lock {
            kind: LockKind::Mutex,
            class: Some(LockClass::Pipe),
            name: "mutex of a pipe".into(),
            path: None,
            ino: None,
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

fn raise_decoys(stage: &mut Stage, source: &Arc<Source>, pipe: &Arc<Pipe>) -> Result<()> {
    // One who waits on the pipe itself, and is woken to find nothing before the stall.
    let empty = Pipe::new()?;
    let (comm, at, rest) = ("lab-d-empty", Arc::clone(&empty), stage.rest.clone());
    let (task, _) = stage.start(comm, move || at.read())?;
    stage.decoy(task, comm, DecoyKind::SameObject, |look| {
        look.state == 'S' && look.frames.iter().any(|frame| frame.contains("pipe_read"))
    })?;
    stage.start("lab-feeder", move || {
        rest.wait();
        empty.write();
    })?;

    let (other, from) = (Pipe::new()?, Arc::clone(source));
    stage.fuse_decoy(
        "lab-d-other",
        DecoyKind::OtherObject,
        DECOY_OTHER,
        move || {
            from.write(OTHER_PAGE, &other.into);
        },
    )?;

    let (comm, from) = ("lab-d-fault", Arc::clone(source));
    let (task, _) = stage.start(comm, move || from.touch(TOUCH_PAGE))?;
    stage.server.wait_parked(DECOY_TOUCH, STEP)?;
    stage.decoy(
        task,
        comm,
        DecoyKind::FirstAttemptFault,
        Look::waits_for_fuse,
    )?;

    let left = Arc::clone(pipe);
    stage.resting_decoy("lab-d-left", DecoyKind::LeftReader, move || left.write())?;
    stage.resting_decoy("lab-d-futex", DecoyKind::Futex, || ())?;

    let gone = Arc::clone(pipe);
    let (task, _) = stage.start("lab-d-gone", move || gone.write())?;
    stage.gone_decoy(task, "lab-d-gone", DecoyKind::LeftReader)
}
