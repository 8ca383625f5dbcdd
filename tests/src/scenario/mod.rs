//! The stalls: which files they need, and how each is built task by task.

mod block_io_held;
mod daemon_threads;
mod deadlock_behind_writer;
mod deadlock_fuse;
mod deadlock_recursive_reader;
mod file_pos_held;
mod granted;
mod hung;
mod incident;
mod inode_read_held;
mod inode_write_held;
mod mkwrite;
mod mmap;
mod mmap_read_held;
mod mmap_write_held;
mod pi_futex_held;
mod pipe_held;
mod super_frozen;
mod super_read_held;
mod super_sync;
mod vma_read_held;

use std::{
    error::Error,
    fmt,
    time::{Duration, Instant},
};

use anyhow::Result;
use lockwatch_tests::truth::{Held, Holder, Lock, LockState, Scenario};

pub(crate) use self::hung::Hanging;
use crate::{beside, fuse::Tree, stage::Stage, target::Actor};

/// What the caller asked for.
#[derive(Clone, Copy)]
pub(crate) struct Cast {
    pub(crate) waiters: u32,
    pub(crate) decoys: bool,
    /// How long another task holds the lock first.
    pub(crate) before: Option<Duration>,
}

/// Comm of the task that holds the lock before.
const BEFORE_COMM: &str = "lab-before";
/// Its late answer.
const BEFORE: &str = "request of an earlier holder";

/// What stands on the stage before anybody acts.
pub(crate) struct Scenery {
    pub(crate) tree: Tree,
    /// Threads of the target process, if the scenario has one.
    pub(crate) actors: Option<Vec<Actor>>,
    /// Threads of a process that tries something out before the stall.
    pub(crate) rehearsal: Option<Vec<Actor>>,
    /// What is mounted beside the lab's file system.
    pub(crate) beside: Option<beside::Kind>,
    /// Readers in processes of their own, see [`crate::crowd`].
    pub(crate) readers: u32,
}

/// The lock of a stall that stands; the waiters and decoys are on the stage.
pub(crate) struct Standing {
    pub(crate) lock: Lock,
    pub(crate) state: LockState,
    pub(crate) reader_count: Option<u32>,
    pub(crate) holders: Vec<Holder>,
    /// What the holder waits for, if that is a lock.
    pub(crate) next: Option<Held>,
    /// When it falls by itself, if it does.
    pub(crate) ends: Option<Instant>,
}

/// Why this kernel cannot have a stall; the lab is not to blame.
#[derive(Debug)]
pub(crate) struct NotHere(pub(crate) String);

impl fmt::Display for NotHere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot be made here: {}", self.0)
    }
}

impl Error for NotHere {}

impl NotHere {
    pub(crate) fn because(reason: impl Into<String>) -> anyhow::Error {
        Self(reason.into()).into()
    }
}

/// How long the stall stands if nobody says how long, and at most.
pub(crate) fn hold_times(scenario: Scenario) -> (Duration, Duration) {
    match scenario {
        Scenario::Granted => (granted::spin_time(), granted::spin_time()),
        Scenario::InodeWriteHeld
        | Scenario::MmapReadHeld
        | Scenario::MmapWriteHeld
        | Scenario::InodeReadHeld
        | Scenario::InodeReadHeldOverlay
        | Scenario::SuperReadHeld
        | Scenario::SuperReadHeldSync
        | Scenario::FilePosHeld
        | Scenario::PipeHeld
        | Scenario::PiFutexHeld
        | Scenario::VmaReadHeld
        | Scenario::SuperFrozen
        | Scenario::SuperFreezing
        | Scenario::BlockIoHeld
        | Scenario::DaemonThreads
        | Scenario::DeadlockFuseDirectory
        | Scenario::DeadlockFuseTwoMounts
        | Scenario::DeadlockBehindWriter
        | Scenario::DeadlockRecursiveReader
        | Scenario::HungFuseKilled
        | Scenario::HungFolio
        | Scenario::HungNfs => (Duration::from_secs(20), Duration::from_secs(60)),
        // Whoever looks at it at full size needs time.
        Scenario::Incident => (Duration::from_secs(20), Duration::from_secs(600)),
    }
}

/// How many wait if nobody says how many.
pub(crate) fn waiters(scenario: Scenario) -> u32 {
    match scenario {
        Scenario::Incident => incident::WAITERS,
        _ => 3,
    }
}

pub(crate) fn scenery(scenario: Scenario, cast: Cast) -> Scenery {
    match scenario {
        Scenario::InodeWriteHeld | Scenario::Granted => inode_write_held::scenery(),
        Scenario::InodeReadHeld => inode_read_held::scenery(),
        Scenario::InodeReadHeldOverlay => inode_read_held::scenery_with_overlay(),
        Scenario::SuperReadHeld => super_read_held::scenery(),
        Scenario::SuperReadHeldSync => super_sync::scenery(),
        Scenario::MmapReadHeld => mmap_read_held::scenery(cast),
        Scenario::MmapWriteHeld => mmap_write_held::scenery(cast),
        Scenario::FilePosHeld => file_pos_held::scenery(),
        Scenario::PipeHeld => pipe_held::scenery(),
        Scenario::PiFutexHeld => pi_futex_held::scenery(),
        Scenario::VmaReadHeld => vma_read_held::scenery(cast),
        Scenario::SuperFrozen | Scenario::SuperFreezing => super_frozen::scenery(),
        Scenario::DeadlockFuseDirectory => deadlock_fuse::scenery(),
        Scenario::DeadlockFuseTwoMounts => deadlock_fuse::scenery_of_two(),
        Scenario::DeadlockBehindWriter => deadlock_behind_writer::scenery(cast),
        Scenario::BlockIoHeld => block_io_held::scenery(),
        Scenario::DaemonThreads => daemon_threads::scenery(),
        Scenario::DeadlockRecursiveReader => deadlock_recursive_reader::scenery(cast),
        Scenario::Incident => incident::scenery(cast),
        Scenario::HungFuseKilled => hung::killed_scenery(cast),
        Scenario::HungFolio => hung::folio_scenery(),
        Scenario::HungNfs => hung::nfs_scenery(),
    }
}

/// Makes tasks hang without a lock, if it is that. On an error the stage must be cleared all
/// the same.
pub(crate) fn hang(scenario: Scenario, stage: &mut Stage, cast: Cast) -> Option<Result<Hanging>> {
    match scenario {
        Scenario::HungFuseKilled => Some(hung::raise_killed(stage, cast)),
        Scenario::HungFolio => Some(hung::raise_folio(stage, cast)),
        Scenario::HungNfs => Some(hung::raise_nfs(stage, cast)),
        _ => None,
    }
}

/// Makes the stall. On an error the stage must be cleared all the same.
pub(crate) fn raise(scenario: Scenario, stage: &mut Stage, cast: Cast) -> Result<Standing> {
    match scenario {
        Scenario::InodeWriteHeld => inode_write_held::raise(stage, cast),
        Scenario::InodeReadHeld => inode_read_held::raise(stage, cast),
        Scenario::InodeReadHeldOverlay => inode_read_held::raise_with_overlay(stage, cast),
        Scenario::SuperReadHeld => super_read_held::raise(stage, cast),
        Scenario::SuperReadHeldSync => super_sync::raise(stage, cast),
        Scenario::MmapReadHeld => mmap_read_held::raise(stage, cast),
        Scenario::MmapWriteHeld => mmap_write_held::raise(stage, cast),
        Scenario::Granted => granted::raise(stage, cast),
        Scenario::FilePosHeld => file_pos_held::raise(stage, cast),
        Scenario::PipeHeld => pipe_held::raise(stage, cast),
        Scenario::PiFutexHeld => pi_futex_held::raise(stage, cast),
        Scenario::VmaReadHeld => vma_read_held::raise(stage, cast),
        Scenario::SuperFrozen => super_frozen::raise(stage, cast),
        Scenario::SuperFreezing => super_frozen::raise_freezing(stage, cast),
        Scenario::DeadlockFuseDirectory => deadlock_fuse::raise(stage, cast),
        Scenario::DeadlockFuseTwoMounts => deadlock_fuse::raise_two(stage, cast),
        Scenario::DeadlockBehindWriter => deadlock_behind_writer::raise(stage, cast),
        Scenario::BlockIoHeld => block_io_held::raise(stage, cast),
        Scenario::DaemonThreads => daemon_threads::raise(stage, cast),
        Scenario::DeadlockRecursiveReader => deadlock_recursive_reader::raise(stage, cast),
        Scenario::Incident => incident::raise(stage, cast),
        Scenario::HungFuseKilled | Scenario::HungFolio | Scenario::HungNfs => {
            anyhow::bail!("nobody waits for a lock there")
        }
    }
}
