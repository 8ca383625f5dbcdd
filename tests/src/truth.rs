//! The truth of a stall: made by the lab, printed as one line of JSON each.

mod cycle;
mod hung;
mod lockup;

use serde::{Deserialize, Serialize};

pub use self::cycle::{Crowd, Cycle, Member, Role};
pub use self::hung::{Hung, HungCause, HungTask};
pub use self::lockup::{Context, LockHeld, LockedUp, LockupEvent, LockupScenario, Second, Someone};

/// A kernel thread id, as seen in the lab's PID namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tid(pub i32);

/// A process (thread group) id, as seen in the lab's PID namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tgid(pub i32);

/// The stalls that the lab can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// A directory's i_rwsem, held for write by a mkdir that waits for FUSE
    InodeWriteHeld,
    /// A process's mmap_lock, held for read by a retried page fault that waits for FUSE
    MmapReadHeld,
    /// A process's mmap_lock, held for write by an unmap that waits for FUSE writeback
    MmapWriteHeld,
    /// A directory's i_rwsem, held for read by two listings that wait for FUSE
    InodeReadHeld,
    /// A file system's s_umount, held for read by a ustat that waits for FUSE
    SuperReadHeld,
    /// A directory's i_rwsem as in inode-read-held, with a waiter that comes through an overlay
    InodeReadHeldOverlay,
    /// A file system's s_umount as in super-read-held, with a sync stuck in another file system
    /// (Linux 6.18 and later)
    SuperReadHeldSync,
    /// A directory's i_rwsem, granted to a reader that gets no CPU (shorter than 5 s)
    Granted,
    /// The mutex of an open file's position, held by a read that waits for FUSE
    FilePosHeld,
    /// The mutex of a pipe, held by a write whose bytes are a page fault that waits for FUSE
    PipeHeld,
    /// A PI futex (an rt_mutex), held by a thread that waits for FUSE
    PiFutexHeld,
    /// A frozen ext4 file system, whose writers wait: no task holds the lock
    SuperFrozen,
    /// An ext4 file system whose freeze waits for a write that waits for FUSE
    SuperFreezing,
    /// A process's mmap_lock, held by an madvise that waits for the lock of a memory area,
    /// which a write fault that waits for FUSE writeback has (Linux 6.7 and later)
    VmaReadHeld,
    /// A deadlock: a directory's i_rwsem, held by a mkdir that waits for a FUSE daemon, which
    /// waits for that directory
    DeadlockFuseDirectory,
    /// A deadlock: as before with two FUSE file systems, each daemon waiting for a directory
    /// of the other's
    DeadlockFuseTwoMounts,
    /// A deadlock: a process's mmap_lock, held for read by a page fault that waits for a FUSE
    /// daemon in the same process, which queues behind a writer
    DeadlockBehindWriter,
    /// A directory's i_rwsem, held by a mkdir that waits for a FUSE daemon, of which one thread
    /// waits for that directory and another will answer: no deadlock
    DaemonThreads,
    /// A directory's i_rwsem, held by a mkdir that waits for a block device
    BlockIoHeld,
    /// A deadlock: a process's mmap_lock, held for read by a BPF iterator of a thread that
    /// asks for it again in a page fault, behind a writer (Linux 6.5 and later)
    DeadlockRecursiveReader,
    /// Clients of one FUSE mount that hang after a fatal signal, without a lock
    HungFuseKilled,
    /// Who opens a file hangs for a page of it that is being read, without a lock
    HungFolio,
    /// Who asks a mute NFS server for attributes or pages, without a lock
    HungNfs,
    /// A process's mmap_lock as in mmap-read-held, a writer, and more than a thousand readers
    Incident,
}

impl Scenario {
    /// Its name on the command line and in the events.
    pub fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self)
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Exit code of the lab where the kernel cannot have the stall.
pub const NOT_HERE: u8 = 3;

/// One line of the lab's standard output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The stall stands, exactly as described.
    Ready(Box<Ready>),
    /// Tasks hang without a lock, exactly as described.
    Hung(Box<Hung>),
    /// The stall is gone.
    Cleared(Cleared),
}

/// A stall that stands: every task named here was seen in its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Which stall.
    pub scenario: Scenario,
    /// Process id of the lab.
    pub pid: Tgid,
    /// Mount point of the lab's FUSE file system.
    pub mount: String,
    /// The lock that everybody waits for.
    pub lock: Lock,
    /// How the lock is held.
    pub state: LockState,
    /// Number of readers that hold the lock; `None` when a writer does, or when a lock has
    /// no one count of them (percpu_rw_semaphore).
    pub reader_count: Option<u32>,
    /// Every task that holds the lock.
    pub holders: Vec<Holder>,
    /// The queue, in the order in which it was built.
    pub waiters: Vec<Waiter>,
    /// Tasks that look like holders or waiters and are neither.
    pub decoys: Vec<Decoy>,
    /// The lock's owner field does not name a holder (any more): true holders
    /// may stay unknown, but nobody may be named in their place.
    #[serde(default)]
    pub owner_hidden: bool,
    /// The lock that the holder of this one waits for, if it waits for one, or the daemon
    /// that it waits for does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Held>,
    /// The block device that the holder waits for, with a request in flight at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The deadlock, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cycle: Option<Cycle>,
    /// Waiters behind those of `waiters`, in no known order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub crowd: Vec<Crowd>,
    /// Who held the lock for long before, and let go; it is among the decoys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Before>,
    /// When the stall will end by itself, `CLOCK_MONOTONIC`.
    pub ends_at_ns: u64,
}

/// A hold that was over before the stall began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// Its thread.
    pub tid: Tid,
    /// Its process.
    pub tgid: Tgid,
    /// Its comm.
    pub comm: String,
    /// How it held the lock.
    pub mode: Mode,
    /// For this long at least, and little more.
    pub held_ns: u64,
    /// When it was let go on, `CLOCK_MONOTONIC`.
    pub until_ns: u64,
}

/// A lock in the middle of a chain: its only waiter holds the lock before, or serves the
/// request that the holder of the lock before waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The lock.
    pub lock: Lock,
    /// How it is held.
    pub state: LockState,
    /// As [`Ready::reader_count`].
    pub reader_count: Option<u32>,
    /// Every task that holds it.
    pub holders: Vec<Holder>,
    /// Its only waiter.
    pub waiter: Waiter,
}

impl Ready {
    /// How many tasks wait for the lock.
    pub fn blocked_tasks(&self) -> usize {
        let crowd: u32 = self.crowd.iter().map(|crowd| crowd.tasks).sum();
        self.waiters.len() + crowd as usize
    }

    /// The truth about the next lock of the chain, with the same decoys.
    pub fn of_next(&self) -> Option<Self> {
        let next = self.next.clone()?;
        Some(Self {
            lock: next.lock,
            state: next.state,
            reader_count: next.reader_count,
            holders: next.holders,
            waiters: vec![next.waiter],
            crowd: Vec::new(),
            before: None,
            next: None,
            ..self.clone()
        })
    }
}

/// The lock of a stall.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// Which primitive.
    pub kind: LockKind,
    /// Which member of which kernel object the lock is; `None` for one that is a member of
    /// none that lockwatch knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<LockClass>,
    /// The name a person would give it, e.g. `mmap_lock of lab-target[123]`. For a VMA
    /// lock, the name's beginning: the lab does not know the address.
    pub name: String,
    /// For an i_rwsem: the directory's path inside its file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// For an i_rwsem: the inode number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ino: Option<u64>,
    /// For an mmap_lock: the process whose address space it guards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tgid: Option<Tgid>,
    /// For an mmap_lock: the comm of that process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
}

/// Kind of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockKind {
    /// `struct rw_semaphore`.
    Rwsem,
    /// `struct mutex`.
    Mutex,
    /// `struct rt_mutex`.
    RtMutex,
    /// `struct percpu_rw_semaphore`.
    PercpuRwsem,
    /// The lock of one `vm_area_struct`.
    VmaLock,
}

/// Class of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockClass {
    /// `mm_struct.mmap_lock`.
    #[serde(rename = "mmap_lock")]
    MmapLock,
    /// `inode.i_rwsem`.
    #[serde(rename = "i_rwsem")]
    IRwsem,
    /// `super_block.s_umount`.
    #[serde(rename = "s_umount")]
    SUmount,
    /// `file.f_pos_lock`.
    #[serde(rename = "f_pos_lock")]
    FPosLock,
    /// `pipe_inode_info.mutex`.
    #[serde(rename = "pipe")]
    Pipe,
    /// The lock of one `vm_area_struct`.
    #[serde(rename = "vma_lock")]
    VmaLock,
    /// `super_block.s_writers`, of one level.
    #[serde(rename = "s_writers")]
    SWriters,
}

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LockState {
    /// By one or more readers.
    ReadHeld,
    /// By one writer.
    WriteHeld,
}

/// How a task holds or wants a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Shared.
    Read,
    /// Exclusive.
    Write,
}

/// What keeps a holder from going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stuck {
    /// An answer of the FUSE server.
    Fuse,
    /// A CPU: it could run and does not.
    Runnable,
    /// Another lock: [`Ready::next`].
    Lock,
    /// A block device: [`Ready::device`].
    BlockIo,
}

/// A task that holds the lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its thread.
    pub tid: Tid,
    /// Its process.
    pub tgid: Tgid,
    /// Its comm.
    pub comm: String,
    /// How it holds the lock.
    pub mode: Mode,
    /// What it waits for.
    pub stuck: Stuck,
    /// Top of its kernel stack when it was seen there.
    pub frame: String,
    /// The lock was handed to it and it has not run since.
    pub granted: bool,
}

/// A task in the queue of the lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiter {
    /// Place in the queue, from 1.
    pub position: u32,
    /// Its thread.
    pub tid: Tid,
    /// Its process.
    pub tgid: Tgid,
    /// Its comm.
    pub comm: String,
    /// How it wants the lock.
    pub mode: Mode,
    /// A fatal signal ends its wait.
    pub killable: bool,
    /// Top of its kernel stack when it was seen in the queue.
    pub frame: String,
    /// When it was told to start, `CLOCK_MONOTONIC`: it queued after this.
    pub started_ns: u64,
    /// When it was seen queued, `CLOCK_MONOTONIC`: it queued before this.
    pub queued_ns: u64,
}

/// A task that must not be accused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decoy {
    /// Its thread.
    pub tid: Tid,
    /// Its process.
    pub tgid: Tgid,
    /// Its comm.
    pub comm: String,
    /// Why it looks guilty.
    pub what: DecoyKind,
    /// It has exited: its tid names nobody, or by now somebody else.
    pub exited: bool,
}

/// Why a decoy looks guilty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DecoyKind {
    /// Waits for FUSE in a page fault of the same address space, having
    /// dropped the mmap_lock (or never taken it).
    FirstAttemptFault,
    /// Sleeps in a futex; its address space is the stalled one, if there is one.
    Futex,
    /// Held the lock for read, gave it back, and sleeps elsewhere or is gone.
    LeftReader,
    /// Held the lock for long before anybody waited, and sleeps elsewhere.
    LeftHolder,
    /// Waits for FUSE while it holds the i_rwsem of another directory.
    OtherDirectory,
    /// Waits for FUSE on a file in the stalled directory, without its lock.
    OtherFile,
    /// Waits for FUSE in a read through the same open file, without the lock of its
    /// position (pread).
    SameDescription,
    /// Has made the kernel hold the lock, for nobody, and sleeps elsewhere.
    Freezer,
    /// Waits for FUSE with the same lock of another object held, that nobody waits for.
    OtherObject,
    /// Sleeps on the same object for another reason than the lock.
    SameObject,
    /// Waits for FUSE with the request that the holder waits with, without a lock.
    SameRequest,
    /// Sleeps in `page_mkwrite` of a write fault of the same address space,
    /// under the lock of the mapping's area instead of the mmap_lock.
    PageMkwrite,
    /// Waits for FUSE while it holds the same lock of another file system; a `sync` has
    /// held and given back the stalled one, too.
    OtherSuperBlock,
}

/// The end of a stall.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleared {
    /// How long the stall stood after [`Ready`] was printed.
    pub held_ns: u64,
    /// Every task ended by itself, and mount and directory are gone.
    pub clean: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_the_published_form() {
        let event = Event::Cleared(Cleared {
            held_ns: 5,
            clean: true,
        });
        let line = serde_json::to_string(&event).unwrap();
        assert_eq!(line, r#"{"event":"cleared","held_ns":5,"clean":true}"#);
        assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
    }

    #[test]
    fn a_lock_says_only_what_its_class_has() {
        let lock = Lock {
            kind: LockKind::Rwsem,
            class: Some(LockClass::IRwsem),
            name: "i_rwsem of /mnt/dir".into(),
            path: Some("/dir".into()),
            ino: Some(2),
            tgid: None,
            comm: None,
        };
        assert_eq!(
            serde_json::to_string(&lock).unwrap(),
            r#"{"kind":"rwsem","class":"i_rwsem","name":"i_rwsem of /mnt/dir","path":"/dir","ino":2}"#
        );
    }

    #[test]
    fn scenarios_are_named_as_on_the_command_line() {
        assert_eq!(
            serde_json::to_string(&Scenario::MmapReadHeld).unwrap(),
            r#""mmap-read-held""#
        );
    }
}
