//! A file system's `s_writers`, held by a freeze or by what the freeze waits for.
//!
//! Whoever writes holds a percpu_rw_semaphore of the file system for read, and a freeze
//! takes it for write and keeps it beyond its system call (fs/super.c, `freeze_super`):
//! then no task holds it. A freeze that comes while a write waits for the bytes it is to
//! write, a page of a FUSE file, has to wait for it, and later writers for both.

use std::{
    env,
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    process,
    sync::{Arc, mpsc},
};

use anyhow::{Context, Result};
use lockwatch_tests::truth::{DecoyKind, Holder, Lock, LockClass, LockKind, LockState, Mode};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
    unistd::mkfifo,
};

use super::{Cast, Scenery, Standing};
use crate::{
    beside::Kind,
    freeze::{freeze, thaw},
    fuse::{Node, Op, ROOT, Rule, Then, Tree, Which},
    mapping::Source,
    stage::{STEP, Stage, Want},
    task::Look,
};

const FILE: u64 = 2;
const FILE_NAME: &str = "source";

const HOLDER: &str = "page of the holder";
const DECOY_TOUCH: &str = "page that is only touched";
const DECOY_OTHER: &str = "page that is written elsewhere";

const TOUCH_PAGE: u64 = 1;
const OTHER_PAGE: u64 = 2;

/// pwrite and mkdir; compilers put the function that locks into its callers.
const WRITE: Want = Want {
    mode: Mode::Read,
    killable: false,
    state: 'D',
    callers: &[
        "vfs_write",
        "ksys_pwrite64",
        "__x64_sys_pwrite64",
        "mnt_want_write",
        "filename_create",
    ],
};

const FREEZE: Want = Want {
    mode: Mode::Write,
    killable: false,
    state: 'D',
    callers: &["freeze_super", "sb_wait_write", "ioctl_fsfreeze"],
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
        late(TOUCH_PAGE, DECOY_TOUCH),
        late(OTHER_PAGE, DECOY_OTHER),
    ];
    Scenery {
        tree: Tree::new(&[Node::file(FILE, ROOT, FILE_NAME)], &rules),
        actors: None,
        rehearsal: None,
        beside: Some(Kind::Ext2),
        readers: 0,
    }
}

pub(super) fn raise(stage: &mut Stage, cast: Cast) -> Result<Standing> {
    let file = Arc::new(create(stage, "file")?);
    if cast.decoys {
        raise_decoys(stage, &file)?;
    }
    raise_freezer(stage, cast)?;
    raise_writers(stage, 1..=cast.waiters, &file)?;
    standing(stage, LockState::WriteHeld, None)
}

pub(super) fn raise_freezing(stage: &mut Stage, cast: Cast) -> Result<Standing> {
    let file = Arc::new(create(stage, "file")?);
    if cast.decoys {
        raise_decoys(stage, &file)?;
    }
    let source = Source::new(&stage.path(FILE_NAME))?;
    if cast.decoys {
        let (comm, from) = ("lab-d-fault", Arc::clone(&source));
        let (task, _) = stage.start(comm, move || from.touch(TOUCH_PAGE))?;
        stage.server.wait_parked(DECOY_TOUCH, STEP)?;
        let what = DecoyKind::FirstAttemptFault;
        stage.decoy(task, comm, what, Look::waits_for_fuse)?;
        raise_fifo_decoy(stage, &file)?;
        raise_other_decoy(stage, &source)?;
    }
    // Its own file: it holds the lock of that inode as well.
    let own = create(stage, "own")?;
    let holder = stage.fuse_holder("lab-holder", Mode::Read, HOLDER, move || {
        source.write(0, &own);
    })?;

    let comm = "lab-w1";
    let dir = open_root(stage)?;
    let started = stage.start(comm, move || {
        if freeze(&dir).is_ok() {
            // Nobody else could do it: the writers wait for just this.
            let _ = thaw(&dir);
        }
    })?;
    stage.admit(started, comm, &FREEZE)?;
    raise_writers(stage, 2..=cast.waiters, &file)?;
    standing(stage, LockState::ReadHeld, Some(holder))
}

fn standing(stage: &Stage, state: LockState, holder: Option<Holder>) -> Result<Standing> {
    let beside = stage.beside()?;
    let (device, mount) = (beside.device()?, beside.mount.display());
    Ok(Standing {
        lock: Lock {
            kind: LockKind::PercpuRwsem,
            class: Some(LockClass::SWriters),
            name: format!("s_writers (write level) of ext4 {device} on {mount}"),
            path: None,
            ino: None,
            tgid: None,
            comm: None,
        },
        state,
        reader_count: None,
        holders: holder.into_iter().collect(),
        next: None,
        ends: None,
    })
}

/// Freezes, in a thread that stays as a decoy.
fn raise_freezer(stage: &mut Stage, cast: Cast) -> Result<()> {
    let dir = open_root(stage)?;
    stage.frozen = Some(dir.try_clone().context("cannot copy a descriptor")?);
    let (report, reported) = mpsc::channel();
    let work = move || {
        // The lab waits for just this.
        let _ = report.send(freeze(&dir));
    };
    if cast.decoys {
        stage.resting_decoy("lab-d-freezer", DecoyKind::Freezer, work)?;
    } else {
        stage.start("lab-freezer", work)?;
    }
    reported
        .recv()
        .context("the freezing thread ended too early")?
        .context("cannot freeze an ext4 file system")
}

fn raise_writers(
    stage: &mut Stage,
    positions: impl Iterator<Item = u32>,
    file: &Arc<File>,
) -> Result<()> {
    for position in positions {
        let comm = format!("lab-w{position}");
        let file = Arc::clone(file);
        let dir = stage.beside()?.mount.join(format!("dir-{position}"));
        let started = stage.start(&comm, move || match position % 2 {
            0 => write(&file),
            // An error ends the wait just as well, here and below.
            _ => drop(fs::create_dir(dir)),
        })?;
        stage.admit(started, &comm, &WRITE)?;
    }
    Ok(())
}

fn raise_decoys(stage: &mut Stage, file: &Arc<File>) -> Result<()> {
    let left = Arc::clone(file);
    stage.resting_decoy("lab-d-left", DecoyKind::LeftReader, move || write(&left))?;
    let read = Arc::clone(file);
    stage.resting_decoy("lab-d-read", DecoyKind::SameObject, move || {
        let _ = read.read_at(&mut [0; 1], 0);
    })?;
    stage.resting_decoy("lab-d-futex", DecoyKind::Futex, || ())?;
    let gone = Arc::clone(file);
    let (task, _) = stage.start("lab-d-gone", move || write(&gone))?;
    stage.gone_decoy(task, "lab-d-gone", DecoyKind::LeftReader)
}

/// Writes to the same file system, as it seems: to a pipe that has a name there, and is no
/// file. It has written to a file before, which may have left its traces.
fn raise_fifo_decoy(stage: &mut Stage, file: &Arc<File>) -> Result<()> {
    let path = stage.beside()?.mount.join("fifo");
    mkfifo(&path, nix::sys::stat::Mode::S_IRWXU)
        .with_context(|| format!("cannot make {}", path.display()))?;
    let open = |options: &mut fs::OpenOptions| {
        let opened = options.custom_flags(libc::O_NONBLOCK).open(&path);
        opened.with_context(|| format!("cannot open {}", path.display()))
    };
    let reader = open(File::options().read(true))?;
    let writer = open(File::options().write(true))?;
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).context("cannot make a pipe wait")?;
    // The write ends with an error when the last reader goes, which is at the end.
    let rest = stage.rest.clone();
    stage.start("lab-reader", move || {
        rest.wait();
        drop(reader);
    })?;
    let comm = "lab-d-fifo";
    let before = Arc::clone(file);
    let (task, _) = stage.start(comm, move || {
        write(&before);
        let _ = (&writer).write_all(&[0; 1 << 20]);
    })?;
    stage.decoy(task, comm, DecoyKind::SameObject, |look| {
        look.state == 'S' && look.top().contains("pipe_write")
    })
}

/// Writes to another file system, and waits as the holder does.
fn raise_other_decoy(stage: &mut Stage, source: &Arc<Source>) -> Result<()> {
    let path = env::temp_dir().join(format!("stall-lab-{}", process::id()));
    let other = File::create_new(&path);
    let other = other.with_context(|| format!("cannot create {}", path.display()))?;
    fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    let from = Arc::clone(source);
    let what = DecoyKind::OtherSuperBlock;
    stage.fuse_decoy("lab-d-other", what, DECOY_OTHER, move || {
        from.write(OTHER_PAGE, &other);
    })
}

fn create(stage: &Stage, name: &str) -> Result<File> {
    let path = stage.beside()?.mount.join(name);
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .with_context(|| format!("cannot create {}", path.display()))
}

fn open_root(stage: &Stage) -> Result<File> {
    let at = &stage.beside()?.mount;
    File::open(at).with_context(|| format!("cannot open {}", at.display()))
}

fn write(file: &File) {
    let _ = file.write_at(&[0], 0);
}
