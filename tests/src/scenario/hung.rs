//! Tasks that hang in state D without a lock.
//!
//! A client of FUSE whose request the daemon has read waits it out: after a fatal signal, in
//! state D, which nothing but the answer ends (fs/fuse/dev.c, `request_wait_answer`). And
//! whoever opens a file of which somebody else is reading a page waits for that page. A client
//! of an NFS server waits for its answer, whatever it has asked: a hard mount asks for ever.

use std::{
    fs::{self, File},
    os::{fd::AsFd as _, unix::fs::FileExt as _},
    path::PathBuf,
};

use anyhow::{Context, Result};
use lockwatch_tests::truth::{Hung, HungCause, HungTask, Scenario, Tgid, Tid};
use rustix::fs::{AtFlags, StatxFlags, statx};

use super::{Cast, Scenery};
use crate::{
    beside, clock,
    fuse::{Node, Op, ROOT, Rule, Then, Tree, Which},
    nfs,
    stage::{STEP, Stage},
    target::{Actor, Part},
    task::{Look, Task},
};

const FILE: u64 = 2;
const FILE_NAME: &str = "asked";
const READER_COMM: &str = "lab-reader";
const REQUEST: &str = "request that hangs";

/// What hangs, without its cause and its end.
pub(crate) struct Hanging {
    cause: HungCause,
    tasks: Vec<HungTask>,
    /// Where the file system is mounted, and who serves it.
    mount: PathBuf,
    server: Tid,
}

impl Hanging {
    /// The truth about it.
    pub(crate) fn told(self, scenario: Scenario, ends_at_ns: u64) -> Result<Hung> {
        let mount = self.mount.display().to_string();
        Ok(Hung {
            scenario,
            pid: Tgid(nix::unistd::getpid().as_raw()),
            device: device(&mount)?,
            mount,
            server: self.server,
            cause: self.cause,
            tasks: self.tasks,
            ends_at_ns,
        })
    }
}

pub(super) fn killed_scenery(cast: Cast) -> Scenery {
    let rule = Rule {
        op: Op::Getattr,
        node: FILE,
        which: Which::All,
        times: cast.waiters,
        then: Then::Late(REQUEST),
    };
    let actors = (1..=cast.waiters)
        .map(|number| Actor {
            comm: client(number),
            part: Part::Stat { file: FILE_NAME },
        })
        .collect();
    Scenery {
        tree: Tree::new(&[Node::file(FILE, ROOT, FILE_NAME).volatile()], &[rule]),
        actors: Some(actors),
        rehearsal: None,
        beside: None,
        readers: 0,
    }
}

pub(super) fn folio_scenery() -> Scenery {
    let rule = Rule {
        op: Op::Read,
        node: FILE,
        which: Which::All,
        times: 1,
        then: Then::Late(REQUEST),
    };
    Scenery {
        tree: Tree::new(&[Node::file(FILE, ROOT, FILE_NAME)], &[rule]),
        actors: None,
        rehearsal: None,
        beside: None,
        readers: 0,
    }
}

fn client(number: u32) -> String {
    format!("lab-c{number}")
}

/// Clients of one mount, in one process that is killed.
pub(super) fn raise_killed(stage: &mut Stage, cast: Cast) -> Result<Hanging> {
    let target = stage.target.as_mut().context("there is no target")?;
    target.begin(STEP)?;
    let mut clients = Vec::new();
    for number in 1..=cast.waiters {
        let comm = client(number);
        let target = stage.target.as_ref().context("there is no target")?;
        let (task, _) = target.go(&comm)?;
        task.settle(&comm, STEP, Look::waits_for_fuse)?;
        clients.push((task, comm));
    }
    stage.server.wait_parked(REQUEST, STEP)?;
    stage.ends_by_kill = true;
    let before_ns = clock::monotonic_ns();
    let target = stage.target.as_ref().context("there is no target")?;
    nix::sys::signal::kill(target.pid(), nix::sys::signal::Signal::SIGKILL)
        .context("cannot kill the target")?;
    let tasks = clients
        .into_iter()
        .map(|(task, comm)| see(task, &comm, before_ns, Look::waits_for_fuse))
        .collect::<Result<_>>()?;
    Ok(of_fuse(stage, HungCause::FuseAnswer, tasks))
}

/// Who opens the file behind the first, who has asked for a page.
pub(super) fn raise_folio(stage: &mut Stage, cast: Cast) -> Result<Hanging> {
    let path = stage.path(FILE_NAME);
    let start = |stage: &mut Stage, comm: &str| {
        let path = path.clone();
        stage.start(comm, move || drop(fs::read(path)))
    };
    start(stage, READER_COMM)?;
    stage.server.wait_parked(REQUEST, STEP)?;
    let mut tasks = Vec::new();
    for number in 1..=cast.waiters {
        let comm = client(number);
        let (task, before_ns) = start(stage, &comm)?;
        tasks.push(see(task, &comm, before_ns, waits_for_folio)?);
    }
    Ok(of_fuse(stage, HungCause::Folio, tasks))
}

fn of_fuse(stage: &Stage, cause: HungCause, tasks: Vec<HungTask>) -> Hanging {
    Hanging {
        cause,
        tasks,
        mount: stage.mount.clone(),
        server: stage.server.task().tid,
    }
}

pub(super) fn nfs_scenery() -> Scenery {
    Scenery {
        tree: Tree::new(&[], &[]),
        actors: None,
        rehearsal: None,
        beside: Some(beside::Kind::Nfs),
        readers: 0,
    }
}

/// Who asks for the attributes of an open file, and who reads it, by turns; each of the latter a
/// page of its own.
pub(super) fn raise_nfs(stage: &mut Stage, cast: Cast) -> Result<Hanging> {
    let mount = stage.beside()?.mount.clone();
    let path = mount.join(nfs::FILE_NAME);
    let mut files = Vec::new();
    for number in 1..=cast.waiters {
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        files.push((number, file));
    }
    stage.beside()?.nfs()?.be_mute();
    let mut tasks = Vec::new();
    for (number, file) in files {
        let comm = client(number);
        let (task, before_ns) = stage.start(&comm, move || ask(&file, number))?;
        let seen = see(task, &comm, before_ns, Look::waits_for_nfs)?;
        tasks.push(HungTask {
            killable: true,
            ..seen
        });
    }
    let nfs = stage.beside()?.nfs()?;
    nfs.wait_kept(tasks.len(), STEP)?;
    Ok(Hanging {
        cause: HungCause::NfsAnswer,
        tasks,
        mount,
        server: nfs.task().tid,
    })
}

/// One question that nobody but the server can answer.
fn ask(file: &File, number: u32) {
    /// Further apart than is read ahead.
    const APART: u64 = 1 << 20;
    // The answer is of no interest, nor is that there is none.
    if number % 2 == 1 {
        let fresh = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
        let _ = statx(file.as_fd(), "", fresh, StatxFlags::BASIC_STATS);
    } else {
        let at = u64::from(number) * APART % nfs::FILE_BYTES;
        let _ = file.read_at(&mut [0], at);
    }
}

/// An open that drops what the cache has of the file takes each of its pages, whatever comes:
/// no signal ends that wait (mm/truncate.c, `invalidate_inode_pages2_range`).
fn waits_for_folio(look: &Look) -> bool {
    look.state == 'D' && look.has("invalidate_inode_pages2_range")
}

fn see(
    task: Task,
    comm: &str,
    before_ns: u64,
    is_there: impl Fn(&Look) -> bool,
) -> Result<HungTask> {
    let look = task.settle(comm, STEP, |look| look.state == 'D' && is_there(look))?;
    Ok(HungTask {
        tid: task.tid,
        tgid: task.tgid,
        comm: comm.to_owned(),
        killable: false,
        frame: look.top().to_owned(),
        before_ns,
        seen_ns: clock::monotonic_ns(),
    })
}

/// Out of mountinfo: asking the file system itself would be one more request.
fn device(mount: &str) -> Result<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("cannot list the mounts")?;
    text.lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|words| words.get(4) == Some(&mount))
        .and_then(|words| words.get(2).map(|device| (*device).to_owned()))
        .with_context(|| format!("{mount} is no mount"))
}
