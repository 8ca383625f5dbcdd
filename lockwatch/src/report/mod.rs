//! The report: what was found, as the contract `lockwatch.report/1` writes it down.
//!
//! Every output format is made from these types. docs/report.md explains the contract,
//! docs/schema/ holds its JSON Schema, generated from here.

pub mod check;
pub mod dot;
pub mod folded;
mod from_survey;
mod host;
pub mod json;
pub mod next;
pub mod perfetto;
pub mod schema;
pub mod text;
pub mod ways_out;

#[cfg(test)]
pub(crate) mod example;
#[cfg(test)]
mod scale;

use std::collections::BTreeMap;

pub use host::Host;
pub use next::Next;
use schemars::JsonSchema;
use serde::Serialize;
pub use ways_out::WayOut;

use crate::{
    daemon::ServesEvidence,
    detect::{Deadlock, Detector as _, Severity},
    graph::chain::Chain as GraphChain,
    lock::{
        Confidence, EvidenceKind, LockAddr, LockKind, LockMode, LockState, WaitSource,
        evidence_words,
    },
    task::{Nanos, StuckClass, Tgid, Tid},
};

/// Name and version of the contract.
pub const CONTRACT: &str = "lockwatch.report/1";

/// A report of lockwatch.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Report {
    /// Name and version of this contract.
    #[schemars(extend("const" = CONTRACT))]
    pub schema: &'static str,
    /// Version of lockwatch that made the report.
    pub lockwatch: &'static str,
    /// When the report's state was read (for a survey: its second look), RFC 3339 in UTC.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub taken_at: jiff::Timestamp,
    /// How long it took to read it, in ns.
    pub duration_ns: Nanos,
    /// The host.
    pub host: Host,
    /// What was looked at, and what could not be.
    pub coverage: Coverage,
    /// Equal stacks, once; others refer to them by index. Frames are
    /// `function+0xoffset`, innermost first.
    pub stacks: Vec<Vec<String>>,
    /// Locks that tasks wait for, the worst first.
    pub locks: Vec<Lock>,
    /// User-space servers that tasks wait for, those with most clients first.
    pub daemons: Vec<Daemon>,
    /// Roots and what waits behind them, the one with most blocked tasks first.
    pub chains: Vec<Chain>,
    /// What the detectors say, the most severe first.
    pub findings: Vec<Finding>,
    /// A wait this long or longer is a stall.
    #[serde(skip)]
    pub threshold: Nanos,
}

/// What was looked at, and what could not be.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Coverage {
    /// Where the facts come from.
    pub source: Source,
    /// Looks that agree. Absent where the source does not take looks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub looks: Option<u32>,
    /// Tasks seen.
    pub tasks: u32,
    /// What could not be read or known, one line each, with what that costs.
    pub degraded: Vec<String>,
    /// Events lost, by kind. Absent where there are no events to lose (a survey).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<BTreeMap<String, u64>>,
}

/// Where the facts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The state at one instant, read from the running kernel.
    Survey,
    /// Events of the running kernel.
    Stream,
    /// A file of surveys and events.
    Recording,
    /// A memory image.
    Core,
}

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

/// A user-space server that tasks wait for: that of a FUSE connection.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Daemon {
    /// Number of the connection: its directory under `/sys/fs/fuse/connections`. Absent
    /// where it could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<u32>,
    /// In words: `fuse.sshfs on /mnt/share`.
    pub name: String,
    /// Tasks that wait for an answer, the longest wait first.
    pub clients: Vec<Client>,
    /// Threads of the processes that have the connection open, except its clients.
    pub threads: Vec<DaemonThread>,
}

/// A task that waits for a daemon's answer.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Client {
    /// Thread id.
    pub tid: Tid,
    /// Process id.
    pub tgid: Tgid,
    /// Name of the thread.
    pub comm: String,
    /// Off the CPU for this long, in ns: it has waited no longer for this answer.
    pub wait_ns: Nanos,
    /// The daemon has read the request; otherwise it lies in its queue.
    pub is_sent: bool,
    /// A fatal signal would end the wait.
    pub killable: bool,
    /// Index of its kernel stack in `stacks`. Absent where it was not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack: Option<u32>,
}

/// A thread of a daemon.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct DaemonThread {
    /// Thread id.
    pub tid: Tid,
    /// Process id.
    pub tgid: Tgid,
    /// Name of the thread.
    pub comm: String,
    /// How sure it is that the clients wait for this thread. Absent if they do not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serves: Option<Confidence>,
    /// Why.
    pub evidence: ServesEvidence,
    /// State letter as `ps` shows it: `R`, `S`, `D`, `I`, `T`, `X`, or `?`.
    pub state: char,
    /// Why it does not answer.
    pub stuck: Stuck,
    /// Index of its kernel stack in `stacks`. Absent where it was not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack: Option<u32>,
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

/// Who a task is.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Task {
    /// Thread id.
    pub tid: Tid,
    /// Name of the thread.
    pub comm: String,
}

/// One link of a path: exactly one of these keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Thread id of a task.
    Task(Tid),
    /// `id` of a lock.
    Lock(String),
    /// Thread id of the user-space server that the task before it waits for.
    Daemon(Tid),
}

/// A root and what waits behind it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Chain {
    /// The task that everything else on the chain waits for. In a cycle, its member with
    /// the lowest thread id.
    pub root: Task,
    /// Distinct tasks that wait for the root, directly or through others.
    pub blocked_tasks: u32,
    /// From the lock farthest away to the root. A cycle begins and ends with the root.
    pub path: Vec<Step>,
    /// True if the tasks on `path` wait for each other. Absent if not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    pub cycle: bool,
    /// Why the root does not go on.
    pub stuck: Stuck,
    /// In words, without a full stop.
    pub sentence: String,
    /// The chain as the graph knows it: the way of *every* lock to the root.
    #[serde(skip)]
    pub graph: GraphChain,
}

/// What a detector says.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Finding {
    /// Name of the detector: `deadlock`, `long-wait`, `convoy`, … (docs/report.md has all).
    pub detector: String,
    /// How much it matters.
    pub severity: Severity,
    /// In words, without a full stop.
    pub sentence: String,
    /// `id`s of the locks it is about.
    pub locks: Vec<String>,
    /// Thread ids of the tasks it is about.
    pub tasks: Vec<Tid>,
    /// The path it is about. Absent if it is about none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub path: Vec<Step>,
    /// For each link of the path, in words, what it rests on. Absent with `path`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub evidence: Vec<String>,
}

impl Step {
    /// The thread, if it is one.
    pub const fn tid(&self) -> Option<Tid> {
        match self {
            Self::Task(tid) | Self::Daemon(tid) => Some(*tid),
            Self::Lock(_) => None,
        }
    }
}

impl Report {
    /// True if a task has waited for the threshold or longer, or tasks wait for each other:
    /// exit code 1.
    pub fn has_stall(&self) -> bool {
        self.stalled_locks().next().is_some() || self.deadlocks().next().is_some()
    }

    /// The circles of tasks that wait for each other.
    pub fn deadlocks(&self) -> impl Iterator<Item = &Finding> {
        let findings = self.findings.iter();
        findings.filter(|finding| finding.detector == Deadlock.name())
    }

    /// The circles that this lock is on, or that its waiters wait for.
    pub fn deadlocks_on(&self, lock: &Lock) -> impl Iterator<Item = &Finding> {
        let is_deadlock = |finding: &&Finding| finding.detector == Deadlock.name();
        self.findings_on(lock).into_iter().filter(is_deadlock)
    }

    /// What the detectors say of a lock, and of circles that its waiters wait for.
    pub fn findings_on(&self, lock: &Lock) -> Vec<&Finding> {
        let leads_to = |finding: &Finding| {
            let mut chains = self.chains_of(lock);
            !finding.path.is_empty()
                && chains.any(|chain| chain.cycle && chain.path == finding.path)
        };
        let findings = self.findings.iter();
        findings
            .filter(|finding| finding.locks.contains(&lock.id) || leads_to(finding))
            .collect()
    }

    /// The locks with such a task, the worst first.
    pub fn stalled_locks(&self) -> impl Iterator<Item = &Lock> {
        self.locks
            .iter()
            .filter(|lock| lock.is_stalled(self.threshold))
    }

    /// The chains that this lock is in, the one with most blocked tasks first.
    pub fn chains_of(&self, lock: &Lock) -> impl Iterator<Item = &Chain> {
        let indexes = lock.in_chains.iter();
        indexes.filter_map(|&index| self.chains.get(index))
    }

    /// The lock that this task is queued on.
    pub fn lock_awaited_by(&self, tid: Tid) -> Option<&Lock> {
        self.locks
            .iter()
            .find(|lock| lock.blocked().any(|waiter| waiter.tid == tid))
    }

    /// The daemon whose answer this task waits for.
    pub fn daemon_awaited_by(&self, tid: Tid) -> Option<&Daemon> {
        let awaits = |daemon: &&Daemon| daemon.clients.iter().any(|client| client.tid == tid);
        self.daemons.iter().find(awaits)
    }

    /// Number of waits below the threshold.
    pub fn short_waits(&self) -> usize {
        self.locks
            .iter()
            .flat_map(|lock| &lock.waiters)
            .filter(|waiter| waiter.wait_ns < self.threshold)
            .count()
    }
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
            .filter(|holder| holder.confidence >= Confidence::Likely)
    }
}
