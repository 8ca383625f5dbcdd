//! A file system's s_umount, held for read by a ustat whose answer is late.
//!
//! ustat finds the file system by its device number and keeps its s_umount
//! while it asks it (fs/statfs.c, `vfs_ustat`). Then a remount queues as a
//! writer, and every reader after that queues behind it. (syncfs would be the
//! more usual holder; whether it waits for FUSE depends on the version.)
//!
//! A `sync` of somebody else joins the queue: it visits all file systems.

use std::{
    fs::{self, File},
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::Path,
};

use anyhow::{Context, Result};
use lockwatch_tests::truth::{
    DecoyKind, Holder, Lock, LockClass, LockKind, LockState, Mode, Stuck,
};
use nix::{
    errno::Errno,
    libc,
    mount::{MsFlags, mount},
};

use super::{Cast, Scenery, Standing};
use crate::{
    fuse::{MOUNT_FLAGS, Node, Op, ROOT, Rule, Then, Tree, Which},
    stage::{STEP, Stage, Want},
    task::{Look, Task},
};

const FILE: u64 = 2;
const FILE_NAME: &str = "file";
const SLOW_READ: u64 = 3;

const HOLDER: &str = "ustat of the holder";
const DECOY_STATFS: &str = "statfs of a file";
const DECOY_READ: &str = "read of a file";

/// mount(2) with `MS_REMOUNT`; compilers put `do_remount` into its caller.
const REMOUNT: Want = Want {
    mode: Mode::Write,
    killable: false,
    state: 'D',
    callers: &["do_remount", "path_mount", "do_mount"],
};

const SYNCFS: Want = Want {
    mode: Mode::Read,
    killable: false,
    state: 'D',
    callers: &["__x64_sys_syncfs", "__do_sys_syncfs", "ksys_syncfs"],
};

/// ustat; before 6.6 the lock is taken by its caller.
const USTAT: Want = Want {
    mode: Mode::Read,
    killable: false,
    state: 'D',
    callers: &["super_lock", "user_get_super"],
};

pub(super) fn scenery() -> Scenery {
    let late = |op, node, label| Rule {
        op,
        node,
        which: Which::All,
        times: 1,
        then: Then::Late(label),
    };
    let nodes = [
        Node::file(FILE, ROOT, FILE_NAME),
        Node::file(SLOW_READ, ROOT, "slow-read"),
    ];
    // ustat asks at the root; the decoy asks at a file.
    let rules = [
        late(Op::Statfs, ROOT, HOLDER),
        late(Op::Statfs, FILE, DECOY_STATFS),
        late(Op::Read, SLOW_READ, DECOY_READ),
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
    raise_with(stage, cast, |_| Ok(()))
}

/// `after_holder` may still come and go before the queue stands.
pub(super) fn raise_with(
    stage: &mut Stage,
    cast: Cast,
    after_holder: fn(&mut Stage) -> Result<()>,
) -> Result<Standing> {
    if cast.decoys {
        raise_decoys(stage)?;
    }
    let device = fs::metadata(&stage.mount)
        .with_context(|| format!("cannot stat {}", stage.mount.display()))?
        .dev();
    let holder = raise_holder(stage, device)?;
    if cast.decoys {
        after_holder(stage)?;
    }
    raise_waiters(stage, cast, device)?;
    Ok(Standing {
        lock: Lock {
            kind: LockKind::Rwsem,
            class: Some(LockClass::SUmount),
            name: format!("s_umount of fuse fuse on {}", stage.mount.display()),
            path: None,
            ino: None,
            tgid: None,
            comm: None,
        },
        state: LockState::ReadHeld,
        reader_count: Some(1),
        holders: vec![holder],
        next: None,
        ends: None,
    })
}

fn raise_holder(stage: &mut Stage, device: u64) -> Result<Holder> {
    let comm = "lab-holder";
    let (task, _) = stage.start(comm, move || ustat(device))?;
    stage.server.wait_parked(HOLDER, STEP)?;
    let look = settle(task, comm, "ustat")?;
    Ok(Holder {
        tid: task.tid,
        tgid: task.tgid,
        comm: comm.into(),
        mode: Mode::Read,
        stuck: Stuck::Fuse,
        frame: look.top().to_owned(),
        granted: false,
    })
}

/// Waits until the task waits for FUSE in this system call.
fn settle(task: Task, comm: &str, call: &str) -> Result<Look> {
    task.settle(comm, STEP, |look| {
        let in_call = look.frames.iter().any(|frame| frame.contains(call));
        look.waits_for_fuse() && in_call
    })
}

/// A writer in front; without it no reader would wait.
fn raise_waiters(stage: &mut Stage, cast: Cast, device: u64) -> Result<()> {
    for position in 1..=cast.waiters {
        let comm = format!("lab-w{position}");
        let at = stage.mount.clone();
        match position % 3 {
            1 => {
                let started = stage.start(&comm, move || remount(&at))?;
                stage.admit(started, &comm, &REMOUNT)?;
            }
            2 => {
                let started = stage.start(&comm, move || sync(&at))?;
                stage.admit(started, &comm, &SYNCFS)?;
            }
            _ => {
                let started = stage.start(&comm, move || ustat(device))?;
                stage.admit(started, &comm, &USTAT)?;
            }
        }
    }
    Ok(())
}

fn raise_decoys(stage: &mut Stage) -> Result<()> {
    let path = stage.path(FILE_NAME);
    let comm = "lab-d-statfs";
    // It gets its answer or an error at the end of the stall.
    let (task, _) = stage.start(comm, move || {
        let _ = nix::sys::statfs::statfs(&path);
    })?;
    stage.server.wait_parked(DECOY_STATFS, STEP)?;
    stage.decoy(task, comm, DecoyKind::SameRequest, |look| {
        look.waits_for_fuse() && look.frames.iter().any(|frame| frame.contains("statfs"))
    })?;

    let path = stage.path("slow-read");
    let comm = "lab-d-read";
    let (task, _) = stage.start(comm, move || drop(fs::read(path)))?;
    stage.server.wait_parked(DECOY_READ, STEP)?;
    stage.decoy(task, comm, DecoyKind::OtherFile, Look::waits_for_fuse)?;

    let rest = stage.rest.clone();
    let comm = "lab-d-futex";
    let (task, _) = stage.start(comm, move || rest.wait())?;
    stage.decoy(task, comm, DecoyKind::Futex, Look::waits_for_futex)?;

    let (rest, at) = (stage.rest.clone(), stage.mount.clone());
    let comm = "lab-d-left";
    let (task, _) = stage.start(comm, move || {
        sync(&at);
        rest.wait();
    })?;
    stage.decoy(task, comm, DecoyKind::LeftReader, Look::waits_for_futex)?;

    let at = stage.mount.clone();
    let comm = "lab-d-gone";
    let (task, _) = stage.start(comm, move || sync(&at))?;
    stage.gone_decoy(task, comm, DecoyKind::LeftReader)
}

/// Errors do not matter here and below: they end the wait just as well.
fn remount(at: &Path) {
    let flags = MsFlags::MS_REMOUNT | MOUNT_FLAGS;
    let _ = mount(None::<&str>, at, None::<&str>, flags, None::<&str>);
}

pub(super) fn sync(at: &Path) {
    if let Ok(dir) = File::open(at) {
        // SAFETY: the descriptor is open for the time of the call.
        let _ = Errno::result(unsafe { libc::syncfs(dir.as_raw_fd()) });
    }
}

fn ustat(device: u64) {
    // struct ustat: 32 bytes.
    let mut answer = [0_u64; 4];
    // SAFETY: the kernel writes one struct ustat to the buffer, which is as large.
    let _ = unsafe { libc::syscall(libc::SYS_ustat, device, answer.as_mut_ptr()) };
}
