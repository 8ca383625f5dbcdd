//! A directory's i_rwsem, held for write by a mkdir whose answer is late.

use std::{
    fs::{self, File},
    io::Read,
    path::Path,
};

use anyhow::Result;
use lockwatch_tests::truth::{
    DecoyKind, Holder, Lock, LockClass, LockKind, LockState, Mode, Stuck,
};

use super::{BEFORE, BEFORE_COMM, Cast, Scenery, Standing};
use crate::{
    fuse::{Node, Op, Rule, Then, Tree, Which},
    stage::{STEP, Stage, Want},
    task::{Look, Task},
};

pub(super) const DIR: u64 = 2;
const SIBLING: u64 = 3;
const SLOW_READ: u64 = 4;
const SLOW_STAT: u64 = 5;

const NODES: &[Node] = &[
    Node::dir(DIR, "dir"),
    Node::dir(SIBLING, "sibling"),
    Node::file(SLOW_READ, DIR, "slow-read"),
    Node::file(SLOW_STAT, DIR, "slow-stat").volatile(),
    Node::file(6, SIBLING, "file"),
];

pub(super) const HOLDER: &str = "mkdir of the holder";
const DECOY_LIST: &str = "listing of the sibling";
const DECOY_READ: &str = "read in the directory";
const DECOY_STAT: &str = "stat in the directory";

/// Stat of a name that the kernel does not know; compilers put `lookup_slow`
/// into `walk_component`.
pub(super) const LOOKUP: Want = Want {
    mode: Mode::Read,
    killable: false,
    state: 'D',
    callers: &["lookup_slow", "walk_component", "path_lookupat"],
};

/// getdents.
pub(super) const LIST: Want = Want {
    mode: Mode::Read,
    killable: true,
    state: 'D',
    callers: &["iterate_dir"],
};

/// mkdir; from 7.x on the directory is locked in `start_dirop`.
pub(super) const MKDIR: Want = Want {
    mode: Mode::Write,
    killable: false,
    state: 'D',
    callers: &[
        "filename_create",
        "start_dirop",
        "__start_dirop",
        "do_mkdirat",
    ],
};

pub(super) fn scenery() -> Scenery {
    scenery_with(&[
        late(Op::Mkdir, DIR, Which::Name("late"), HOLDER),
        late(Op::Mkdir, DIR, Which::Name("earlier"), BEFORE),
    ])
}

/// The holder's mkdir, for which the server has to do something itself.
pub(super) const ERRAND: Rule = Rule {
    op: Op::Mkdir,
    node: DIR,
    which: Which::Name("late"),
    times: 1,
    then: Then::Errand(HOLDER),
};

/// The files and decoys of every i_rwsem scenario, and what keeps its holders.
pub(super) fn scenery_with(holders: &[Rule]) -> Scenery {
    let decoys = [
        late(Op::Readdir, SIBLING, Which::All, DECOY_LIST),
        late(Op::Read, SLOW_READ, Which::All, DECOY_READ),
        late(Op::Getattr, SLOW_STAT, Which::All, DECOY_STAT),
    ];
    Scenery {
        tree: Tree::new(NODES, &[holders, &decoys].concat()),
        actors: None,
        rehearsal: None,
        beside: None,
        readers: 0,
    }
}

/// The first such request is answered late.
pub(super) const fn late(op: Op, node: u64, which: Which, label: &'static str) -> Rule {
    Rule {
        op,
        node,
        which,
        times: 1,
        then: Then::Late(label),
    }
}

pub(super) fn raise(stage: &mut Stage, cast: Cast) -> Result<Standing> {
    if cast.decoys {
        raise_decoys(stage, list)?;
    }
    if let Some(time) = cast.before {
        let (rest, path) = (stage.rest.clone(), stage.path("dir/earlier"));
        let (task, _) = stage.start(BEFORE_COMM, move || {
            drop(fs::create_dir(path));
            rest.wait();
        })?;
        let who = (BEFORE_COMM, Mode::Write, BEFORE);
        stage.hold_before(task, who, time, Look::waits_for_futex)?;
    }
    let holder = raise_holder(stage)?;
    let turns = [Visit::Stat, Visit::List, Visit::Mkdir];
    raise_waiters(stage, cast, turns.into_iter().cycle())?;
    Ok(Standing {
        lock: lock(stage),
        state: LockState::WriteHeld,
        reader_count: None,
        holders: vec![holder],
        next: None,
        ends: None,
    })
}

/// What a waiter wants to do in the directory.
#[derive(Clone, Copy)]
pub(super) enum Visit {
    Stat,
    List,
    Mkdir,
    /// Lists it through the overlay.
    ListOverlay,
}

/// Queues waiters that do these things, one each.
pub(super) fn raise_waiters(
    stage: &mut Stage,
    cast: Cast,
    visits: impl Iterator<Item = Visit>,
) -> Result<()> {
    let dir = stage.path("dir");
    let first = stage.next_position();
    for (position, visit) in (first..first + cast.waiters).zip(visits) {
        let comm = format!("lab-w{position}");
        let path = dir.join(format!("unknown-{position}"));
        match visit {
            Visit::Stat => {
                let started = stage.start(&comm, move || drop(fs::symlink_metadata(path)))?;
                stage.admit(started, &comm, &LOOKUP)?;
            }
            Visit::List => {
                let dir = dir.clone();
                let started = stage.start(&comm, move || list(&dir))?;
                stage.admit(started, &comm, &LIST)?;
            }
            Visit::ListOverlay => {
                let dir = stage.beside()?.mount.join("dir");
                let started = stage.start(&comm, move || list(&dir))?;
                stage.admit(started, &comm, &LIST)?;
            }
            Visit::Mkdir => {
                let started = stage.start(&comm, move || drop(fs::create_dir(path)))?;
                stage.admit(started, &comm, &MKDIR)?;
            }
        }
    }
    Ok(())
}

/// Starts the mkdir that holds the directory, and sees it wait.
pub(super) fn raise_holder(stage: &mut Stage) -> Result<Holder> {
    let comm = "lab-holder";
    let path = stage.path("dir/late");
    let (task, _) = stage.start(comm, move || drop(fs::create_dir(path)))?;
    stage.server.wait_parked(HOLDER, STEP)?;
    seen_making(task, comm)
}

/// Sees a task wait in the mkdir that holds the directory.
pub(super) fn seen_making(task: Task, comm: &str) -> Result<Holder> {
    let look = task.settle(comm, STEP, |look| {
        look.waits_for_fuse() && look.has("fuse_mkdir")
    })?;
    Ok(Holder {
        tid: task.tid,
        tgid: task.tgid,
        comm: comm.into(),
        mode: Mode::Write,
        stuck: Stuck::Fuse,
        frame: look.top().to_owned(),
        granted: false,
    })
}

pub(super) fn holder_task(holder: &Holder) -> Task {
    Task {
        tgid: holder.tgid,
        tid: holder.tid,
    }
}

pub(super) fn release_holder(stage: &Stage) {
    stage.server.release(HOLDER);
}

pub(super) fn lock(stage: &Stage) -> Lock {
    lock_below(&stage.mount)
}

/// The lock of the directory in the file system that is mounted there.
pub(super) fn lock_below(mount: &Path) -> Lock {
    Lock {
        kind: LockKind::Rwsem,
        class: Some(LockClass::IRwsem),
        name: format!("i_rwsem of {}", mount.join("dir").display()),
        path: Some("/dir".into()),
        ino: Some(DIR),
        tgid: None,
        comm: None,
    }
}

/// The decoys of every i_rwsem scenario, before the lock is held for longer;
/// `visit` takes the directory's lock for read and gives it back.
pub(super) fn raise_decoys(stage: &mut Stage, visit: fn(&Path)) -> Result<()> {
    let dir = stage.path("dir");

    let sibling = stage.path("sibling");
    let (task, _) = stage.start("lab-d-other", move || list(&sibling))?;
    stage.server.wait_parked(DECOY_LIST, STEP)?;
    stage.decoy(task, "lab-d-other", DecoyKind::OtherDirectory, |look| {
        look.waits_for_fuse() && look.has("iterate_dir")
    })?;

    let file = dir.join("slow-read");
    let (task, _) = stage.start("lab-d-read", move || read_some(&file))?;
    stage.server.wait_parked(DECOY_READ, STEP)?;
    stage.decoy(
        task,
        "lab-d-read",
        DecoyKind::OtherFile,
        Look::waits_for_fuse,
    )?;

    let file = dir.join("slow-stat");
    let (task, _) = stage.start("lab-d-stat", move || drop(fs::symlink_metadata(file)))?;
    stage.server.wait_parked(DECOY_STAT, STEP)?;
    stage.decoy(
        task,
        "lab-d-stat",
        DecoyKind::OtherFile,
        Look::waits_for_fuse,
    )?;

    let rest = stage.rest.clone();
    let (task, _) = stage.start("lab-d-futex", move || rest.wait())?;
    stage.decoy(task, "lab-d-futex", DecoyKind::Futex, Look::waits_for_futex)?;

    let (rest, visited) = (stage.rest.clone(), dir.clone());
    let (task, _) = stage.start("lab-d-left", move || {
        visit(&visited);
        rest.wait();
    })?;
    stage.decoy(
        task,
        "lab-d-left",
        DecoyKind::LeftReader,
        Look::waits_for_futex,
    )?;

    let (task, _) = stage.start("lab-d-gone", move || visit(&dir))?;
    stage.gone_decoy(task, "lab-d-gone", DecoyKind::LeftReader)
}

pub(super) fn list(dir: &Path) {
    // What is listed does not matter; an error ends the wait just as well.
    if let Ok(entries) = fs::read_dir(dir) {
        entries.for_each(drop);
    }
}

fn read_some(file: &Path) {
    if let Ok(mut file) = File::open(file) {
        let _ = file.read(&mut [0; 16]);
    }
}
