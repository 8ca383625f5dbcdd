//! Locks: what they are called, who has them, who waits.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::task::{Nanos, Stuck, TaskName, TaskState, Tgid, Tid};

/// Address of a lock in kernel memory: its identity while it exists.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct LockAddr(#[serde(with = "crate::hex")] pub u64);

impl fmt::Display for LockAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

/// The primitive.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum LockKind {
    /// `struct rw_semaphore`
    Rwsem,
    /// `struct mutex`
    Mutex,
    /// `struct percpu_rw_semaphore`
    PercpuRwsem,
    /// `struct rt_mutex`
    RtMutex,
    /// `struct semaphore`
    Semaphore,
    /// The lock of a VMA, whichever form it has
    VmaLock,
    /// Not told by the source.
    Unknown,
}

impl LockKind {
    /// The word of the JSON contracts and of metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Rwsem => "rwsem",
            Self::Mutex => "mutex",
            Self::PercpuRwsem => "percpu_rwsem",
            Self::RtMutex => "rt_mutex",
            Self::Semaphore => "semaphore",
            Self::VmaLock => "vma_lock",
            Self::Unknown => "unknown",
        }
    }

    /// What people call it.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Rwsem => "rwsem",
            Self::Mutex => "mutex",
            Self::PercpuRwsem => "per-CPU rwsem",
            Self::RtMutex => "rt_mutex",
            Self::Semaphore => "semaphore",
            Self::VmaLock => "VMA lock",
            Self::Unknown => "lock",
        }
    }

    /// Whether it can be held for read.
    pub const fn has_readers(self) -> bool {
        !matches!(self, Self::Mutex | Self::RtMutex | Self::Semaphore)
    }
}

/// How a task has or wants a lock.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum LockMode {
    /// Shared.
    Read,
    /// Exclusive.
    Write,
}

impl LockMode {
    /// The word for it, in text, in the JSON contracts and in metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// Which of the kernel's locks this is; instances of one class protect the same thing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LockClass {
    /// `mm_struct.mmap_lock`
    MmapLock,
    /// `inode.i_rwsem`
    InodeRwsem,
    /// `address_space.invalidate_lock`
    InvalidateLock,
    /// `address_space.i_mmap_rwsem`
    InodeMmapRwsem,
    /// `anon_vma.rwsem`
    AnonVma,
    /// `super_block.s_umount`
    SuperUmount,
    /// `super_block.s_writers`, by which a file system is frozen
    SuperWriters,
    /// The lock of a VMA: `vm_area_struct.vm_refcnt` or `.vm_lock`
    VmaLock,
    /// `file.f_pos_lock`
    FilePosition,
    /// `pipe_inode_info.mutex`
    Pipe,
    /// A lock with a symbol of its own.
    Symbol(String),
    /// Lies in kernel data, but the kernel's symbol table does not name it.
    KernelData,
    /// Lies in memory nobody could name.
    Unknown,
}

impl fmt::Display for LockClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MmapLock => "mmap_lock",
            Self::InodeRwsem => "i_rwsem",
            Self::InvalidateLock => "invalidate_lock",
            Self::InodeMmapRwsem => "i_mmap_rwsem",
            Self::AnonVma => "anon_vma",
            Self::SuperUmount => "s_umount",
            Self::SuperWriters => "s_writers",
            Self::VmaLock => "vma_lock",
            Self::FilePosition => "f_pos_lock",
            Self::Pipe => "pipe",
            Self::Symbol(name) => name,
            Self::KernelData | Self::Unknown => "unknown",
        })
    }
}

/// What a lock belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockObject {
    /// An address space.
    Mm {
        /// Address of the `mm_struct`.
        #[serde(with = "crate::hex")]
        mm: u64,
        /// The process that owns it, if one is left.
        owner: Option<(Tgid, String)>,
    },
    /// A memory area of an address space.
    Vma {
        /// Its first address.
        #[serde(with = "crate::hex")]
        start: u64,
        /// The address behind it.
        #[serde(with = "crate::hex")]
        end: u64,
        /// The process that owns the address space, if one is left.
        owner: Option<(Tgid, String)>,
    },
    /// A file or directory.
    Inode {
        /// Address of the inode.
        #[serde(with = "crate::hex")]
        inode: u64,
        /// File system type: `ext4`.
        fstype: String,
        /// File system instance (`s_id`): `nvme0n1p2`.
        sb: String,
        /// Inode number.
        ino: u64,
        /// Path from the root of our mount tree; none where it is not mounted there.
        path: Option<String>,
    },
    /// A mounted file system.
    SuperBlock {
        /// Address of the super block.
        #[serde(with = "crate::hex")]
        super_block: u64,
        /// File system type.
        fstype: String,
        /// File system instance (`s_id`).
        id: String,
        /// Where it is mounted (the first mount).
        mount: Option<String>,
    },
    /// A symbol.
    Symbol(String),
}

/// What the lock word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LockState {
    /// Held by one or more readers.
    ReadHeld,
    /// Held by one writer.
    WriteHeld,
    /// Held by nobody (a woken waiter may not have taken it yet).
    Free,
    /// The words contradict each other.
    Inconsistent,
}

/// How sure a name is. Computed by [`crate::survey::confidence`], never chosen.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Confidence {
    /// Something points to it; do not act on it.
    Possible,
    /// What we know of the code says so.
    Likely,
    /// The lock's own words, or code knowledge with the reader count closed, in two looks.
    Certain,
}

impl Confidence {
    /// True if the evidence carries the name: chains are followed, and detectors speak, on
    /// such names only.
    pub const fn carries_weight(self) -> bool {
        matches!(self, Self::Likely | Self::Certain)
    }

    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Possible => "possible",
            Self::Likely => "likely",
            Self::Certain => "certain",
        }
    }
}

/// One reason for naming a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// What kind of reason.
    pub kind: EvidenceKind,
    /// The function in whose frame it was found, if in one.
    pub frame: Option<String>,
    /// The value that was found, in words for a person: `0xa74 (TRIED, no VMA lock)`.
    pub value: Option<String>,
}

/// Kinds of evidence, strongest meaning in the doc of each.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum EvidenceKind {
    /// The owner field of a write-held lock names it.
    WriterOwner,
    /// The owner field of a read-held lock names it, on a kernel whose readers clear it on release.
    ReaderOwner,
    /// It was granted the lock in the queue and has not run yet.
    Granted,
    /// It was seen taking the lock, and not seen releasing it.
    TracedAcquire,
    /// It was seen taking the lock; that it released it may have been missed.
    TracedInPart,
    /// Its page fault holds the lock, by the flags of its `vm_fault`.
    FaultFlags,
    /// It is inside a function that holds this class of lock at that point.
    HoldFrame,
    /// It is at a place in a function where tasks were seen holding this class of lock.
    LearnedFrame,
    /// The lock remembers it as the last one that took it (a semaphore's `last_holder`).
    LastHolder,
    /// The lock's address lies in a live frame.
    LockWord,
    /// The address of the object that contains the lock lies in a live frame.
    ObjectWord,
}

/// The function of a frame, `function+0xoffset`, without its offset.
pub fn function_of(frame: &str) -> &str {
    frame.split_once('+').map_or(frame, |(name, _)| name)
}

/// Why a holder is named, in words for a person, from the parts of an [`Evidence`].
pub fn evidence_words(kind: EvidenceKind, frame: Option<&str>, value: Option<&str>) -> String {
    let frame = frame.map(function_of);
    let words = match (kind, frame) {
        (EvidenceKind::WriterOwner, _) => "the lock's owner field names it".to_owned(),
        (EvidenceKind::ReaderOwner, _) => {
            "the lock's owner field names it, and readers of this kernel clear it".to_owned()
        }
        (EvidenceKind::Granted, _) => "granted the lock in the queue, has not run yet".to_owned(),
        (EvidenceKind::TracedAcquire, _) => "it was seen taking the lock".to_owned(),
        (EvidenceKind::TracedInPart, _) => {
            "it was seen taking the lock, and its release may have been missed".to_owned()
        }
        (EvidenceKind::FaultFlags, _) => "its page fault holds the lock".to_owned(),
        (EvidenceKind::HoldFrame, Some(frame)) => format!("{frame} holds this lock there"),
        (EvidenceKind::LearnedFrame, Some(frame)) => match value {
            Some(kernels) => format!("{frame} was seen holding this lock there, on {kernels}"),
            None => format!("{frame} was seen holding this lock there"),
        },
        (EvidenceKind::LearnedFrame, None) => "it is where tasks hold this lock".to_owned(),
        (EvidenceKind::HoldFrame, None) => "it is in code that holds this lock".to_owned(),
        (EvidenceKind::LastHolder, _) => "the last one that took it".to_owned(),
        (EvidenceKind::LockWord, Some(frame)) => {
            format!("the lock's address is in its frame of {frame}")
        }
        (EvidenceKind::LockWord, None) => "the lock's address is on its stack".to_owned(),
        (EvidenceKind::ObjectWord, Some(frame)) => {
            format!("the address of what the lock protects is in its frame of {frame}")
        }
        (EvidenceKind::ObjectWord, None) => {
            "the address of what the lock protects is on its stack".to_owned()
        }
    };
    match (kind, value) {
        // The owner word adds nothing for a person; where it was learned is told above.
        (
            EvidenceKind::WriterOwner
            | EvidenceKind::ReaderOwner
            | EvidenceKind::LastHolder
            | EvidenceKind::LearnedFrame,
            _,
        )
        | (_, None) => words,
        (EvidenceKind::FaultFlags, Some(flags)) => format!("{words}, flags {flags}"),
        (_, Some(value)) => format!("{words}: {value}"),
    }
}

impl Evidence {
    /// In words for a person.
    pub fn words(&self) -> String {
        evidence_words(self.kind, self.frame.as_deref(), self.value.as_deref())
    }
}

/// Index into [`Stacks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StackId(pub u32);

/// Equal stacks, kept once. A frame is `function+0xoffset`, innermost first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Vec<String>>", into = "Vec<Vec<String>>")]
pub struct Stacks {
    stacks: Vec<Vec<String>>,
    index: rustc_hash::FxHashMap<Vec<String>, StackId>,
}

impl Stacks {
    /// The id of this stack, new or known.
    pub fn intern(&mut self, stack: Vec<String>) -> StackId {
        if let Some(&id) = self.index.get(&stack) {
            return id;
        }
        let id = StackId(u32::try_from(self.stacks.len()).unwrap_or(u32::MAX));
        self.index.insert(stack.clone(), id);
        self.stacks.push(stack);
        id
    }

    /// The frames of a stack; none for an id of another table.
    pub fn frames(&self, id: StackId) -> &[String] {
        self.stacks.get(id.0 as usize).map_or(&[], Vec::as_slice)
    }

    /// All stacks in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &[String]> {
        self.stacks.iter().map(Vec::as_slice)
    }
}

impl From<Stacks> for Vec<Vec<String>> {
    fn from(stacks: Stacks) -> Self {
        stacks.stacks
    }
}

/// Each keeps its place, equal ones too: others refer to it by that.
impl From<Vec<Vec<String>>> for Stacks {
    fn from(stacks: Vec<Vec<String>>) -> Self {
        let ids = (0..).map(StackId);
        let index = stacks.iter().cloned().zip(ids).collect();
        Self { stacks, index }
    }
}

/// A task that has the lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Who.
    pub task: TaskName,
    /// How it holds it.
    pub mode: LockMode,
    /// How sure we are.
    pub confidence: Confidence,
    /// Why we say so.
    pub evidence: Vec<Evidence>,
    /// Found for the same reason in both looks, and it did not let go in between.
    pub stood: bool,
    /// Its control group: the path below the root of the v2 hierarchy, `/` for the root,
    /// which says nothing where only v1 hierarchies are used. `None` where it could not be
    /// read.
    pub cgroup: Option<String>,
    /// What the scheduler says of it.
    pub state: TaskState,
    /// Why it does not let go.
    pub stuck: Stuck,
    /// Held for at least this long, where that is known.
    pub held: Option<Nanos>,
    /// True if `held` is only a lower bound.
    pub held_is_lower_bound: bool,
    /// Its kernel stack.
    pub stack: StackId,
}

/// How a wait time was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WaitSource {
    /// The queue entry's time-out, in jiffies: up to one jiffy too short.
    QueueEntry,
    /// The time it last left the CPU, confirmed by the queue entry.
    LastArrival,
    /// The contention tracepoint.
    Tracepoint,
}

/// A task queued on the lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiter {
    /// Who.
    pub task: TaskName,
    /// Place in the queue, from 1.
    pub position: u32,
    /// How it wants it.
    pub mode: LockMode,
    /// How long it has waited.
    pub wait: Nanos,
    /// How that was measured.
    pub wait_source: WaitSource,
    /// A fatal signal would end the wait.
    pub killable: bool,
    /// It has been granted the lock already and has not run.
    pub granted: bool,
    /// What the scheduler says of it.
    pub state: TaskState,
    /// First function outside the lock code.
    pub caller: Option<String>,
    /// Its kernel stack.
    pub stack: StackId,
}

/// One lock that tasks wait for, as a survey found it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// Where it is.
    pub address: LockAddr,
    /// Which primitive.
    pub kind: LockKind,
    /// Which of the kernel's locks.
    pub class: LockClass,
    /// In words: `mmap_lock of filebeat[4424]`.
    pub name: String,
    /// What it belongs to.
    pub object: Option<LockObject>,
    /// What the lock word says.
    pub state: LockState,
    /// Readers that hold it, as the lock word says.
    pub reader_count: Option<u32>,
    /// The raw lock word.
    #[serde(with = "crate::hex")]
    pub count: u64,
    /// It is a sum that can be negative (rwsems up to 5.2).
    #[serde(default)]
    pub count_is_signed: bool,
    /// The raw owner word.
    #[serde(with = "crate::hex")]
    pub owner: u64,
    /// Tasks that have it, best evidence first. May be fewer than `reader_count`.
    pub holders: Vec<Holder>,
    /// The queue, in order.
    pub waiters: Vec<Waiter>,
    /// Tasks that spin for it.
    pub spinners: Vec<Tid>,
    /// Its queue is in the order of priorities, not of arrival (rt_mutexes, and what
    /// PREEMPT_RT makes of them).
    pub by_priority: bool,
    /// Between the two looks another task took it, while the writer in front of the queue
    /// stood.
    #[serde(default)]
    pub first_was_overtaken: bool,
    /// Why no holder can be named, where that is known.
    pub note: Option<String>,
    /// Long holds of it that were over when the survey was taken, the last one first, as far
    /// as a recorder ran and still has them. None of these tasks need have it now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recent_holds: Vec<RecentHold>,
}

/// A hold that is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentHold {
    /// Who had the lock. It may have ended since.
    pub task: TaskName,
    /// How.
    pub mode: LockMode,
    /// For how long.
    pub held: Nanos,
    /// It let go this long before the survey was taken.
    pub ended_ago: Nanos,
    /// The first function outside of the lock code in which it let go.
    pub released_in: Option<String>,
    /// Its kernel stack when it let go, from that function on.
    pub stack: StackId,
}

impl Lock {
    /// The lock word as people write it: `0x102`, but `-4294967295` where it is a sum.
    pub fn count_text(&self) -> String {
        if self.count_is_signed {
            (self.count as i64).to_string()
        } else {
            format!("{:#x}", self.count)
        }
    }

    /// The longest wait in the queue.
    pub fn oldest_wait(&self) -> Nanos {
        self.waiters
            .iter()
            .map(|waiter| waiter.wait)
            .max()
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_contract() {
        for kind in [
            LockKind::Rwsem,
            LockKind::Mutex,
            LockKind::PercpuRwsem,
            LockKind::RtMutex,
            LockKind::Semaphore,
            LockKind::VmaLock,
            LockKind::Unknown,
        ] {
            assert_eq!(serde_json::json!(kind), kind.word());
        }
        for mode in [LockMode::Read, LockMode::Write] {
            assert_eq!(serde_json::json!(mode), mode.word());
        }
    }
}
