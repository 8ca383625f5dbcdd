//! A report as a stranger reads it: the contract `lockwatch.report/1`.
//!
//! Written down again on purpose, from the contract and not from lockwatch's
//! own types, so that a field that changes its form is noticed here. What the
//! tests do not ask for is left out.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::Ended;
use crate::truth::{LockKind, LockState, Mode, Tgid, Tid};

/// The contract's name.
const CONTRACT: &str = "lockwatch.report/1";

/// A report.
#[derive(Clone, Debug, Deserialize)]
pub struct Report {
    /// The contract's name.
    pub schema: String,
    /// How long it took to read the state, in ns.
    pub duration_ns: u64,
    /// What was looked at.
    pub coverage: Coverage,
    /// Equal stacks, once: `function+0xoffset`, innermost first.
    pub stacks: Vec<Vec<String>>,
    /// Locks that tasks wait for.
    pub locks: Vec<Lock>,
    /// User-space servers that tasks wait for.
    #[serde(default)]
    pub daemons: Vec<Daemon>,
    /// Tasks in uninterruptible sleep for longer than the threshold.
    #[serde(default)]
    pub hung: Vec<Hung>,
    /// Whom everybody waits for.
    pub chains: Vec<Chain>,
    /// What the detectors say.
    pub findings: Vec<Finding>,
}

/// What was looked at.
#[derive(Clone, Debug, Deserialize)]
pub struct Coverage {
    /// Where the facts come from.
    pub source: String,
    /// Looks that agree.
    pub looks: Option<u32>,
    /// Tasks seen.
    pub tasks: u32,
    /// What could not be read.
    pub degraded: Vec<String>,
}

/// A lock that tasks wait for.
#[derive(Clone, Debug, Deserialize)]
pub struct Lock {
    /// Its name inside the report.
    pub id: String,
    /// The primitive; `None` for one that the lab does not make.
    #[serde(deserialize_with = "known")]
    pub kind: Option<LockKind>,
    /// Which of the kernel's locks.
    pub class: String,
    /// In words.
    pub name: String,
    /// What it belongs to.
    pub object: Option<Object>,
    /// What the lock word says; `None` for what the lab does not make.
    #[serde(deserialize_with = "known")]
    pub state: Option<LockState>,
    /// Readers that hold it.
    pub reader_count: Option<u32>,
    /// Tasks that have it.
    pub holders: Vec<Holder>,
    /// The queue.
    pub waiters: Vec<Waiter>,
    /// Tasks that spin for it.
    pub spinners: Vec<Tid>,
    /// Holds that are over.
    #[serde(default)]
    pub recent_holds: Vec<RecentHold>,
}

/// A hold that is over.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct RecentHold {
    /// Its thread.
    pub tid: Tid,
    /// Its process.
    pub tgid: Tgid,
    /// Its comm.
    pub comm: String,
    /// How it held the lock.
    pub mode: Mode,
    /// For this long, in ns.
    pub held_ns: u64,
    /// It let go this long ago, in ns.
    pub ended_ago_ns: u64,
    /// Where it let go.
    pub released_in: Option<String>,
    /// Its stack then.
    pub stack: Option<usize>,
}

/// What a lock belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Object {
    /// An address space.
    Mm {
        /// Its process.
        tgid: Option<Tgid>,
        /// Name of the process.
        comm: Option<String>,
    },
    /// One area of an address space.
    Vma {
        /// Its process.
        tgid: Option<Tgid>,
        /// Name of the process.
        comm: Option<String>,
    },
    /// A file or directory.
    Inode {
        /// File system type.
        fstype: String,
        /// Inode number.
        ino: u64,
        /// Its path.
        path: Option<String>,
    },
    /// A mounted file system.
    SuperBlock {
        /// File system type.
        fstype: String,
        /// File system instance.
        id: String,
    },
    /// A kernel symbol.
    Symbol(String),
}

/// How sure a name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confidence {
    /// A hint.
    Possible,
    /// An accusation.
    Likely,
    /// A proof.
    Certain,
}

/// A task that has a lock.
#[derive(Clone, Debug, Deserialize)]
pub struct Holder {
    /// Its thread.
    pub tid: Tid,
    /// Its process.
    pub tgid: Tgid,
    /// Its comm.
    pub comm: String,
    /// Its control group.
    pub cgroup: Option<String>,
    /// How it holds the lock.
    pub mode: Mode,
    /// How sure the name is.
    pub confidence: Confidence,
    /// Why it is named.
    pub evidence: Vec<Evidence>,
    /// Letter of its state.
    pub state: char,
    /// Why it does not let go.
    pub stuck: Stuck,
    /// Held for this long, in ns.
    pub held_ns: Option<u64>,
    /// `held_ns` may be too short.
    pub held_is_lower_bound: Option<bool>,
    /// Its stack.
    pub stack: Option<usize>,
}

impl Holder {
    /// Its name carries weight.
    pub fn is_accused(&self) -> bool {
        self.confidence >= Confidence::Likely
    }
}

/// A reason for naming a holder.
#[derive(Clone, Debug, Deserialize)]
pub struct Evidence {
    /// What kind of reason.
    pub kind: String,
}

/// Why a task does not go on.
#[derive(Clone, Debug, Deserialize)]
pub struct Stuck {
    /// The class.
    pub class: String,
    /// Off the CPU for this long, in ns.
    pub since_ns: Option<u64>,
    /// The block device it waits for.
    pub device: Option<Device>,
}

/// A block device.
#[derive(Clone, Debug, Deserialize)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Requests that its driver has not completed.
    pub in_flight: Option<u64>,
}

/// A task in a queue.
#[derive(Clone, Debug, Deserialize)]
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
    /// How long it has waited, in ns.
    pub wait_ns: u64,
    /// How that was measured.
    pub wait_source: String,
    /// A fatal signal would end the wait.
    pub killable: bool,
    /// It holds the lock already and has not run since.
    pub granted: bool,
    /// Its stack.
    pub stack: Option<usize>,
}

/// A user-space server that tasks wait for.
#[derive(Clone, Debug, Deserialize)]
pub struct Daemon {
    /// Who waits for an answer.
    pub clients: Vec<Task>,
    /// Threads that have its connection open.
    pub threads: Vec<Task>,
}

/// Hanging tasks that wait for the same.
#[derive(Clone, Debug, Deserialize)]
pub struct Hung {
    /// What for.
    pub awaits: Awaits,
    /// What for, in words.
    pub name: String,
    /// Who, the longest first.
    pub tasks: Vec<HungTask>,
}

/// What hanging tasks wait for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Awaits {
    /// A lock, by its `id`.
    Lock(String),
    /// A block device.
    Device(String),
    /// A FUSE daemon.
    Fuse {
        /// Number of the connection.
        connection: Option<u32>,
    },
    /// A server on the network.
    Server {
        /// File system type.
        fstype: String,
        /// As the mount names it.
        #[serde(default)]
        name: Option<String>,
    },
    /// Something else with a queue.
    Queue {
        /// Which kind of thing.
        kind: String,
        /// Where.
        address: String,
    },
    /// Nobody knows.
    Unknown {
        /// Where they sleep.
        function: Option<String>,
    },
}

/// A task that hangs.
#[derive(Clone, Debug, Deserialize)]
pub struct HungTask {
    /// Its thread.
    pub tid: Tid,
    /// Its comm.
    pub comm: String,
    /// A fatal signal would end the sleep.
    pub killable: bool,
    /// Counted as waiting for I/O.
    pub io_wait: bool,
    /// For how long at least, in ns.
    pub asleep_ns: u64,
}

/// A root and what waits behind it.
#[derive(Clone, Debug, Deserialize)]
pub struct Chain {
    /// The task that everything on the chain waits for.
    pub root: Task,
    /// How many tasks wait for it.
    pub blocked_tasks: usize,
    /// The way from a lock to the root.
    pub path: Vec<Step>,
    /// In words.
    pub sentence: String,
}

impl Chain {
    /// The daemon that is its root, if a daemon is.
    pub fn daemon<'a>(&self, daemons: &'a [Daemon]) -> Option<&'a Daemon> {
        let Some(Step::Daemon(root)) = self.path.last() else {
            return None;
        };
        let serves = |daemon: &&Daemon| daemon.threads.iter().any(|thread| thread.tid == *root);
        daemons.iter().find(serves)
    }

    /// The tasks of which it says that all others wait for them in the end: its root, or the
    /// clients of the daemon that is its root.
    pub fn ends(&self, daemons: &[Daemon]) -> BTreeSet<Tid> {
        match self.daemon(daemons) {
            Some(daemon) => daemon.clients.iter().map(|client| client.tid).collect(),
            None => BTreeSet::from([self.root.tid]),
        }
    }
}

/// Who a task is.
#[derive(Clone, Debug, Deserialize)]
pub struct Task {
    /// Its thread.
    pub tid: Tid,
    /// Its comm.
    pub comm: String,
}

/// One link of a path.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// A task.
    Task(Tid),
    /// A lock, by its `id`.
    Lock(String),
    /// The user-space server that the task before it waits for.
    Daemon(Tid),
}

/// What a detector says.
#[derive(Clone, Debug, Deserialize)]
pub struct Finding {
    /// The detector.
    pub detector: String,
    /// In words.
    pub sentence: String,
    /// Locks it is about.
    pub locks: Vec<String>,
    /// Tasks it is about.
    pub tasks: Vec<Tid>,
    /// For a deadlock: the ring, each waiting for the next.
    #[serde(default)]
    pub path: Vec<Step>,
    /// What the kernel's own detector said of it.
    pub second_opinion: Option<String>,
}

impl Report {
    /// Reads what `diagnose --format json` wrote: one object of this contract.
    ///
    /// # Errors
    /// When it is none; with everything that the program said.
    pub fn read(ended: &Ended) -> Result<Self> {
        let report: Self = serde_json::from_str(&ended.stdout)
            .with_context(|| format!("no report: {}", ended.describe()))?;
        if report.schema != CONTRACT {
            bail!("the report follows {}, not {CONTRACT}", report.schema);
        }
        Ok(report)
    }

    /// The functions of a stack, without their offsets; `None` if there is no
    /// such stack.
    pub fn functions(&self, stack: Option<usize>) -> Option<Vec<&str>> {
        let frames = self.stacks.get(stack?)?;
        let stem = |frame: &'_ String| -> usize {
            let name = frame.split('+').next().unwrap_or_default();
            name.split('.').next().unwrap_or_default().len()
        };
        Some(frames.iter().map(|frame| &frame[..stem(frame)]).collect())
    }
}

/// `None` for a word that is not known here.
fn known<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: serde::de::DeserializeOwned,
{
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_not_known_is_no_error() {
        #[derive(Deserialize)]
        struct Only {
            #[serde(deserialize_with = "known")]
            state: Option<LockState>,
        }
        let read = |text| serde_json::from_str::<Only>(text).unwrap().state;
        assert_eq!(read(r#"{"state":"read-held"}"#), Some(LockState::ReadHeld));
        assert_eq!(read(r#"{"state":"inconsistent"}"#), None);
    }
}
