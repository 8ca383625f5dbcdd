//! Locks in the report, with their holders and queues.

use schemars::JsonSchema;
use serde::Serialize;

use super::{Next, WayOut};
use crate::{
    lock::{
        Confidence, EvidenceKind, LockAddr, LockKind, LockMode, LockState, WaitSource,
        evidence_words,
    },
    task::{Nanos, StuckClass, Tgid, Tid},
};

/// A lock that tasks wait for.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Lock {
    /// Its name inside this report.
    pub id: String,
    /// Where it is in kernel memory, hexadecimal.
    pub address: String,
    /// The primitive.
    pub kind: LockKind,
    /// `mmap_lock`, `i_rwsem`, `invalidate_lock`, `s_umount`, `s_writers`, `vma_lock`,
    /// `f_pos_lock`, `pipe`, a symbol, or `unknown`.
    pub class: String,
    /// In words: `mmap_lock of filebeat[4424]`.
    pub name: String,
    /// What it belongs to. Absent where that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<Object>,
    /// What the lock word says.
    pub state: LockState,
    /// Readers that hold it, as the lock word says. Absent where the word does not count
    /// them, or the lock is not read-held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reader_count: Option<u32>,
    /// The lock word, hexadecimal; signed and decimal where it is a sum (rwsems up to 5.2).
    pub count: String,
    /// The owner word, hexadecimal: for a read-held lock only a hint.
    pub owner: String,
    /// Tasks that have it, best evidence first. Fewer than `reader_count` where the
    /// evidence does not carry more names.
    pub holders: Vec<Holder>,
    /// The queue, in order.
    pub waiters: Vec<Waiter>,
    /// Thread ids of tasks that spin for it.
    pub spinners: Vec<Tid>,
    /// Why no holder can be named, in words. Absent where there is nothing to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Long holds of it that are over, the last one first: who had it before, or while others
    /// waited already. None of them need have it now. Absent where no recorder ran
    /// (`--track-holds`), or it has none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub recent_holds: Vec<RecentHold>,
    /// Who gets it next. Absent where nobody is queued, or it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<Next>,
    /// What a person could do, each with its risk; lockwatch does none of it. Empty where
    /// nothing is known.
    pub ways_out: Vec<WayOut>,
    /// Its queue is in the order of priorities, not of arrival.
    #[serde(skip)]
    pub by_priority: bool,
    /// `address` as the graph knows it.
    #[serde(skip)]
    pub at: LockAddr,
    /// The chains that it is in: indexes into those of the report, in order.
    #[serde(skip)]
    pub(crate) in_chains: Vec<usize>,
}

/// What a lock belongs to: exactly one of these keys.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Object {
    /// An address space.
    Mm {
        /// Process id of its owner. Absent where no owner is left.
        #[serde(skip_serializing_if = "Option::is_none")]
        tgid: Option<Tgid>,
        /// Name of its owner. Absent where no owner is left.
        #[serde(skip_serializing_if = "Option::is_none")]
        comm: Option<String>,
    },
    /// A memory area of an address space.
    Vma {
        /// Process id of its owner. Absent where no owner is left.
        #[serde(skip_serializing_if = "Option::is_none")]
        tgid: Option<Tgid>,
        /// Name of its owner. Absent where no owner is left.
        #[serde(skip_serializing_if = "Option::is_none")]
        comm: Option<String>,
        /// Its first address, hexadecimal.
        start: String,
        /// The address behind it, hexadecimal.
        end: String,
    },
    /// A file or directory.
    Inode {
        /// File system type: `ext4`.
        fstype: String,
        /// File system instance: `nvme0n1p2`.
        sb: String,
        /// Inode number.
        ino: u64,
        /// Its path. Absent where it could not be read.
        #[serde(skip_serializing_if = "Option::is_none")]
        path: Option<String>,
    },
    /// A mounted file system.
    SuperBlock {
        /// File system type: `ext4`.
        fstype: String,
        /// File system instance: `nvme0n1p2`.
        id: String,
    },
    /// A kernel symbol.
    Symbol(String),
}

/// A task that has a lock.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Holder {
    /// Thread id.
    pub tid: Tid,
    /// Process id.
    pub tgid: Tgid,
    /// Name of the thread.
    pub comm: String,
    /// Its cgroup. Absent where the source does not tell it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// How it holds the lock.
    pub mode: LockMode,
    /// How sure the name is. Nobody should act on `possible`.
    pub confidence: Confidence,
    /// Why it is named.
    pub evidence: Vec<Evidence>,
    /// State letter as `ps` shows it: `R`, `S`, `D`, `I`, `T`, `X`, or `?`.
    pub state: char,
    /// Why it does not let go.
    pub stuck: Stuck,
    /// Held for this long, in ns. Absent where that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_ns: Option<Nanos>,
    /// True if `held_ns` is only a lower bound. Absent with `held_ns`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_is_lower_bound: Option<bool>,
    /// Index of its kernel stack in `stacks`. Absent where it was not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack: Option<u32>,
}

/// A hold that is over.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct RecentHold {
    /// Thread id; it may be another's by now.
    pub tid: Tid,
    /// Process id; it may be another's by now.
    pub tgid: Tgid,
    /// Name of the thread, when it let go.
    pub comm: String,
    /// How it held the lock.
    pub mode: LockMode,
    /// For how long, in ns.
    pub held_ns: Nanos,
    /// How long ago it let go, in ns.
    pub ended_ago_ns: Nanos,
    /// The function in which it let go, the lock's own left out. Absent where that is not
    /// known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub released_in: Option<String>,
    /// Index of its kernel stack at that moment in `stacks`. Absent where it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack: Option<u32>,
}

/// One reason for naming a holder.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Evidence {
    /// What kind of reason.
    pub kind: EvidenceKind,
    /// The function in whose frame it was found. Absent if not found in one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frame: Option<String>,
    /// The value that was found, in words for a person. Absent if it adds nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

impl Evidence {
    /// In words for a person.
    pub fn words(&self) -> String {
        evidence_words(self.kind, self.frame.as_deref(), self.value.as_deref())
    }
}

/// Why a task does not go on.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Stuck {
    /// The class.
    pub class: StuckClass,
    /// The function that says so. Absent if none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frame: Option<String>,
    /// Off the CPU for this long, in ns. Absent if it is on a CPU, or not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_ns: Option<Nanos>,
    /// The block device it waits for. Absent if it waits for none, or for which is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<BlockDevice>,
}

/// A block device that a task waits for.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct BlockDevice {
    /// Its name: `nvme0n1`.
    pub name: String,
    /// Requests that its driver had not completed. Absent where that could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u64>,
}

/// A task queued on a lock.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Waiter {
    /// Place in the queue, from 1.
    pub position: u32,
    /// Thread id.
    pub tid: Tid,
    /// Process id.
    pub tgid: Tgid,
    /// Name of the thread.
    pub comm: String,
    /// Its cgroup. Absent where the source does not tell it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// How it wants the lock.
    pub mode: LockMode,
    /// How long it has waited, in ns.
    pub wait_ns: Nanos,
    /// How that was measured.
    pub wait_source: WaitSource,
    /// A fatal signal would end the wait.
    pub killable: bool,
    /// It has been granted the lock already and has not run since.
    pub granted: bool,
    /// Index of its kernel stack in `stacks`. Absent where it was not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack: Option<u32>,
    /// First function outside the lock code, without suffix and offset. Absent where it
    /// is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
}

impl Lock {
    /// True if a task has waited for this lock for `threshold` or longer.
    pub fn is_stalled(&self, threshold: Nanos) -> bool {
        self.waiters
            .iter()
            .any(|waiter| waiter.wait_ns >= threshold)
    }

    /// The waiters that do not have the lock yet, in order.
    pub fn blocked(&self) -> impl Iterator<Item = &Waiter> {
        self.waiters.iter().filter(|waiter| !waiter.granted)
    }

    /// Holders whose names carry weight: `likely` or `certain`.
    pub fn known_holders(&self) -> impl Iterator<Item = &Holder> {
        self.holders
            .iter()
            .filter(|holder| holder.confidence.carries_weight())
    }
}
