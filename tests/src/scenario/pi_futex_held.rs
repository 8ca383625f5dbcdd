//! A futex with priority inheritance, whose owner waits for FUSE.
//!
//! The kernel keeps an rt_mutex for such a futex as soon as somebody waits for it
//! (kernel/futex/pi.c, `attach_to_pi_owner`); the owner is taken from the futex word.

use std::{
    fs::File,
    io::Read,
    path::Path,
    ptr,
    sync::{Arc, atomic::AtomicU32},
};

use anyhow::Result;
use lockwatch_tests::truth::{DecoyKind, Lock, LockKind, LockState, Mode};
use nix::libc;

use super::{Cast, Scenery, Standing};
use crate::{
    fuse::{Node, Op, ROOT, Rule, Then, Tree, Which},
    stage::{Stage, Want},
};

const FILE: u64 = 2;
const OTHER: u64 = 3;
const UNLOCKED: u64 = 4;

const HOLDER: &str = "read of the holder";
const DECOY_OTHER: &str = "read of the owner of another futex";
const DECOY_READ: &str = "read of one who owns no futex";

const LOCK_PI: Want = Want {
    mode: Mode::Write,
    killable: true,
    state: 'S',
    callers: &["futex_lock_pi", "do_futex"],
};

/// A futex that the kernel locks.
#[derive(Default)]
struct Futex(AtomicU32);

impl Futex {
    /// Without an answer from the kernel there is no stall, which is noticed.
    fn call(&self, operation: i32) {
        // SAFETY: the word outlives the call; no timeout, no second futex.
        let _ = unsafe {
            libc::syscall(
                libc::SYS_futex,
                self.0.as_ptr(),
                operation | libc::FUTEX_PRIVATE_FLAG,
                0,
                ptr::null::<libc::timespec>(),
            )
        };
    }

    /// Does this with the futex locked.
    fn with(&self, work: impl FnOnce()) {
        self.call(libc::FUTEX_LOCK_PI);
        work();
        self.call(libc::FUTEX_UNLOCK_PI);
    }
}

pub(super) fn scenery() -> Scenery {
    let late = |node, label| Rule {
        op: Op::Read,
        node,
        which: Which::All,
        times: 1,
        then: Then::Late(label),
    };
    let nodes = [
        Node::file(FILE, ROOT, "file"),
        Node::file(OTHER, ROOT, "other"),
        Node::file(UNLOCKED, ROOT, "unlocked"),
    ];
    let rules = [
        late(FILE, HOLDER),
        late(OTHER, DECOY_OTHER),
        late(UNLOCKED, DECOY_READ),
    ];
    Scenery {
        tree: Tree::new(&nodes, &rules),
        actors: None,
        rehearsal: None,
        beside: None,
        readers: 0,
    }
}

pub(super) fn raise(stage: &mut Stage, cast: Cast) -> Result<Standing> {
    let futex = Arc::new(Futex::default());
    if cast.decoys {
        raise_decoys(stage, &futex)?;
    }
    let (held, path) = (Arc::clone(&futex), stage.path("file"));
    let holder = stage.fuse_holder("lab-holder", Mode::Write, HOLDER, move || {
        held.with(|| read(&path));
    })?;
    for position in 1..=cast.waiters {
        let comm = format!("lab-w{position}");
        let wanted = Arc::clone(&futex);
        let started = stage.start(&comm, move || wanted.with(|| ()))?;
        stage.admit(started, &comm, &LOCK_PI)?;
    }
    Ok(Standing {
        lock: Lock {
            kind: LockKind::RtMutex,
            class: None,
            name: "PI futex".into(),
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

fn raise_decoys(stage: &mut Stage, futex: &Arc<Futex>) -> Result<()> {
    let (other, path) = (Futex::default(), stage.path("other"));
    stage.fuse_decoy(
        "lab-d-other",
        DecoyKind::OtherObject,
        DECOY_OTHER,
        move || {
            other.with(|| read(&path));
        },
    )?;
    let (left, path) = (Arc::clone(futex), stage.path("unlocked"));
    stage.fuse_decoy("lab-d-read", DecoyKind::LeftReader, DECOY_READ, move || {
        left.with(|| ());
        read(&path);
    })?;
    let left = Arc::clone(futex);
    stage.resting_decoy("lab-d-left", DecoyKind::LeftReader, move || {
        left.with(|| ());
    })?;
    stage.resting_decoy("lab-d-futex", DecoyKind::Futex, || ())
}

/// What is read does not matter; an error ends the wait just as well.
fn read(path: &Path) {
    if let Ok(mut file) = File::open(path) {
        let _ = file.read(&mut [0; 16]);
    }
}
