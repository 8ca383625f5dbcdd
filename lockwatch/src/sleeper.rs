//! Sleepers: tasks in uninterruptible sleep (state D), and what they wait for.

use std::{
    cmp::{Ordering, Reverse},
    fmt,
    hash::{Hash, Hasher},
};

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use crate::{
    daemon::ConnectionAddr,
    lock::{LockAddr, StackId},
    task::{Nanos, Stuck, TaskName},
};

/// A task that was in uninterruptible sleep in both looks and did not run in between.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sleeper {
    /// Who.
    pub task: TaskName,
    /// A fatal signal ends the sleep (`TASK_KILLABLE`): the kernel's own detector leaves
    /// these out.
    pub killable: bool,
    /// The scheduler counts the sleep as waiting for I/O (`in_iowait`).
    pub io_wait: bool,
    /// For how long it has slept, at least.
    pub asleep: Nanos,
    /// What for.
    pub awaits: Awaited,
    /// What it is stuck in.
    pub stuck: Stuck,
    /// Where.
    pub stack: StackId,
}

impl Sleeper {
    /// Whether it has slept long enough to hang; `None`: however long, none does.
    pub fn hangs(&self, threshold: Option<Nanos>) -> bool {
        threshold.is_some_and(|threshold| self.asleep >= threshold)
    }
}

/// What a sleeper waits for; equal for those that wait for the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Awaited {
    /// A lock, among the survey's.
    Lock(LockAddr),
    /// I/O of a block device, by its name: `nvme0n1`.
    Device(String),
    /// The server of a FUSE file system, among the survey's daemons.
    Fuse(ConnectionAddr),
    /// A server of a network file system, by its name or address.
    Server {
        /// `nfs`, `cifs`, …
        fstype: String,
        /// As the mount has it.
        name: String,
    },
    /// Something that many can wait for.
    Queue(Queue),
    /// No more is known than the function they sleep in.
    Function(String),
    /// Nothing is known.
    Unknown,
}

/// Something that many can wait for: the same if it lies at the same address, whoever waits
/// for it in whichever function.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Queue {
    /// What kind of thing.
    pub kind: QueueKind,
    /// Where.
    #[serde(with = "crate::hex")]
    pub address: u64,
    /// Which bit of the word at hand; 0 for what is none. (Recordings from before it was
    /// written down have 0 for all.)
    #[serde(default)]
    pub bit: u32,
    /// The innermost function outside of the scheduler in which the longest sleeper waits for
    /// it: not a part of what it is.
    pub function: String,
}

impl Queue {
    /// What makes it the same.
    const fn identity(&self) -> (QueueKind, u64, u32) {
        (self.kind, self.address, self.bit)
    }
}

impl PartialEq for Queue {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for Queue {}

impl Hash for Queue {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl PartialOrd for Queue {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queue {
    fn cmp(&self, other: &Self) -> Ordering {
        self.identity().cmp(&other.identity())
    }
}

/// What tasks can queue on that is no lock.
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
pub enum QueueKind {
    /// `struct completion`
    Completion,
    /// `wait_queue_head_t`
    WaitQueue,
    /// A bit of a word (`wait_on_bit`), a page's among them; its address is that of its
    /// byte.
    Bit,
}

impl fmt::Display for QueueKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Completion => "completion",
            Self::WaitQueue => "wait queue",
            Self::Bit => "bit",
        })
    }
}

/// Tasks that wait for the same.
#[derive(Clone, Debug)]
pub struct Hanging<'a> {
    /// What for.
    pub awaits: &'a Awaited,
    /// Who, the longest first.
    pub sleepers: Vec<&'a Sleeper>,
}

/// The sleepers that have slept for the threshold or longer, by what they wait for: those
/// that most wait for first, of equally many the longest.
pub fn hanging(sleepers: &[Sleeper], threshold: Nanos) -> Vec<Hanging<'_>> {
    let mut groups: Vec<Hanging<'_>> = Vec::new();
    let mut places: FxHashMap<&Awaited, usize> = FxHashMap::default();
    for sleeper in sleepers.iter().filter(|it| it.hangs(Some(threshold))) {
        let place = *places.entry(&sleeper.awaits).or_insert_with(|| {
            groups.push(Hanging {
                awaits: &sleeper.awaits,
                sleepers: Vec::new(),
            });
            groups.len() - 1
        });
        groups[place].sleepers.push(sleeper);
    }
    for group in &mut groups {
        let by_age = |sleeper: &&Sleeper| (Reverse(sleeper.asleep), sleeper.task.key);
        group.sleepers.sort_by_key(by_age);
    }
    groups.sort_by(|a, b| {
        let count = |group: &Hanging<'_>| Reverse(group.sleepers.len());
        let oldest = |group: &Hanging<'_>| Reverse(group.sleepers[0].asleep);
        (count(a), oldest(a), a.awaits).cmp(&(count(b), oldest(b), b.awaits))
    });
    groups
}
