//! The mutex of an open file's position, held by a read whose answer is late.
//!
//! A read through an open file that several threads can use keeps the mutex of its
//! position until it is done (fs/file.c, `fdget_pos`). A second opening of the same file
//! has a position of its own, and pread has none.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    sync::Arc,
};

use anyhow::{Context, Result};
use lockwatch_tests::truth::{DecoyKind, Lock, LockClass, LockKind, LockState, Mode};

use super::{Cast, Scenery, Standing};
use crate::{
    fuse::{Node, Op, PAGE, ROOT, Rule, Then, Tree, Which},
    stage::{Stage, Want},
};

const FILE: u64 = 2;
const FILE_NAME: &str = "shared";

const HOLDER: &str = "read of the holder";
const DECOY_OWN: &str = "read through another opening";
const DECOY_PREAD: &str = "pread through the same opening";

const OWN_PAGE: u64 = 1;
const PREAD_PAGE: u64 = 2;

/// read and lseek; compilers put `fdget_pos` into its callers.
const POSITION: Want = Want {
    mode: Mode::Write,
    killable: false,
    state: 'D',
    callers: &[
        "__fdget_pos",
        "fdget_pos",
        "ksys_read",
        "ksys_lseek",
        "__x64_sys_lseek",
    ],
};

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
        late(OWN_PAGE, DECOY_OWN),
        late(PREAD_PAGE, DECOY_PREAD),
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
    let path = stage.path(FILE_NAME);
    let open = || File::open(&path).with_context(|| format!("cannot open {}", path.display()));
    let shared = Arc::new(open()?);
    if cast.decoys {
        raise_decoys(stage, open()?, &shared)?;
    }
    let file = Arc::clone(&shared);
    let holder = stage.fuse_holder("lab-holder", Mode::Write, HOLDER, move || read(&file))?;
    for position in 1..=cast.waiters {
        let comm = format!("lab-w{position}");
        let file = Arc::clone(&shared);
        let started = stage.start(&comm, move || match position % 2 {
            0 => tell(&file),
            _ => read(&file),
        })?;
        stage.admit(started, &comm, &POSITION)?;
    }
    Ok(Standing {
        lock: Lock {
            kind: LockKind::Mutex,
            class: Some(LockClass::FPosLock),
            name: format!("f_pos_lock of {}", path.display()),
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

fn raise_decoys(stage: &mut Stage, own: File, shared: &Arc<File>) -> Result<()> {
    (&own)
        .seek(SeekFrom::Start(OWN_PAGE * PAGE))
        .context("cannot seek in a file of the lab")?;
    let what = DecoyKind::OtherObject;
    stage.fuse_decoy("lab-d-own", what, DECOY_OWN, move || read(&own))?;

    let (file, what) = (Arc::clone(shared), DecoyKind::SameDescription);
    stage.fuse_decoy("lab-d-pread", what, DECOY_PREAD, move || {
        let _ = file.read_at(&mut [0; 16], PREAD_PAGE * PAGE);
    })?;

    let file = Arc::clone(shared);
    stage.resting_decoy("lab-d-left", DecoyKind::LeftReader, move || tell(&file))?;
    stage.resting_decoy("lab-d-futex", DecoyKind::Futex, || ())?;

    let file = Arc::clone(shared);
    let (task, _) = stage.start("lab-d-gone", move || tell(&file))?;
    stage.gone_decoy(task, "lab-d-gone", DecoyKind::LeftReader)
}

/// What is read does not matter here and below; an error ends the wait just as well.
fn read(mut file: &File) {
    let _ = file.read(&mut [0; 16]);
}

fn tell(mut file: &File) {
    let _ = file.stream_position();
}
