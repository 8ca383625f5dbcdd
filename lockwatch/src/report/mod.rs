//! The report: what was found, as the contract `lockwatch.report/1` writes it down.
//!
//! Every output format is made from these types. docs/report.md explains the contract,
//! docs/schema/ holds its JSON Schema, generated from here.

pub mod check;
mod daemon;
pub mod dot;
pub mod folded;
mod from_survey;
pub mod histogram;
mod host;
mod hung;
pub mod json;
mod lock;
pub mod lockup;
pub mod next;
pub mod over_time;
mod own_stacks;
pub mod perfetto;
pub mod recordings;
pub mod schema;
pub mod text;
pub mod ways_out;

#[cfg(test)]
pub(crate) mod example;
#[cfg(test)]
mod scale;

use std::collections::{BTreeMap, BTreeSet};

pub use daemon::{Client, Daemon, DaemonThread};
pub(crate) use from_survey::lock_id;
pub use host::Host;
pub use hung::{Awaits, Hung, HungTask};
pub use lock::{BlockDevice, Evidence, Holder, Lock, Object, RecentHold, Stuck, Waiter};
pub use lockup::Lockup;
pub use next::Next;
pub use own_stacks::{HasStacks, OwnStacks};
use schemars::JsonSchema;
use serde::Serialize;
pub use ways_out::WayOut;

use crate::{
    detect::{Deadlock, Detector as _, Severity, Subject},
    graph::chain::Chain as GraphChain,
    task::{Nanos, Tid},
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
    /// Tasks that have been in uninterruptible sleep for the threshold of `hung-task` or
    /// longer, by what they wait for, those that most wait for first.
    pub hung: Vec<Hung>,
    /// CPUs that do not go on, the worst first.
    pub lockups: Vec<Lockup>,
    /// Roots and what waits behind them, the one with most blocked tasks first.
    pub chains: Vec<Chain>,
    /// What the detectors say, the most severe first.
    pub findings: Vec<Finding>,
    /// A wait this long or longer is a stall.
    #[serde(skip)]
    pub threshold: Nanos,
    /// An uninterruptible sleep this long or longer is a hang; `None`: none is.
    #[serde(skip)]
    pub hung_threshold: Option<Nanos>,
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
    /// What the kernel's own detector said of the same, or why it did not, in words. Absent
    /// where it has none for this, or its messages could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub second_opinion: Option<String>,
    /// What it is about where that is no lock alone.
    #[serde(skip)]
    pub subject: Option<Subject>,
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
    /// True if a task has waited for the threshold or longer or hangs, tasks wait for each other,
    /// or a CPU does not go on: exit code 1.
    pub fn has_stall(&self) -> bool {
        self.stalled_locks().next().is_some()
            || self.deadlocks().next().is_some()
            || self.hangs().next().is_some()
            || self.locked_cpus().next().is_some()
    }

    /// The CPUs that do not go on and whose detector was asked.
    pub fn locked_cpus(&self) -> impl Iterator<Item = &Lockup> {
        let subjects = self.findings.iter().map(|finding| &finding.subject);
        let told: BTreeSet<u32> = subjects
            .filter_map(|subject| match subject {
                Some(Subject::Cpu(cpu)) => Some(*cpu),
                _ => None,
            })
            .collect();
        let is_told = move |lockup: &&Lockup| told.contains(&lockup.cpu);
        self.lockups.iter().filter(is_told)
    }

    /// The groups of hanging tasks that the detector was asked for.
    pub fn hangs(&self) -> impl Iterator<Item = &Hung> {
        let is_told = |hung: &&Hung| self.finding_of(hung).is_some();
        self.hung.iter().filter(is_told)
    }

    /// What the detector says of a group of hanging tasks; `None` if it was not asked.
    pub fn finding_of(&self, hung: &Hung) -> Option<&Finding> {
        self.findings.get(hung.finding?)
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

    /// The CPU that a finding is about, if it is about one.
    pub fn lockup_of(&self, finding: &Finding) -> Option<&Lockup> {
        let Some(Subject::Cpu(cpu)) = &finding.subject else {
            return None;
        };
        self.lockups.iter().find(|lockup| lockup.cpu == *cpu)
    }

    /// The hanging tasks that a finding is about, if it is about any.
    pub fn hung_of(&self, finding: &Finding) -> Option<&Hung> {
        let Some(Subject::Awaited(awaited)) = &finding.subject else {
            return None;
        };
        self.hangs().find(|hung| hung.awaited == *awaited)
    }

    /// The roots behind which tasks wait for the locks of a finding.
    pub fn chains_behind(&self, finding: &Finding) -> Vec<&Chain> {
        let locks = self.locks.iter();
        let of_them = locks.filter(|lock| finding.locks.contains(&lock.id));
        let indexes: BTreeSet<usize> = of_them
            .flat_map(|lock| lock.in_chains.iter().copied())
            .collect();
        let chains = indexes.into_iter();
        chains.filter_map(|index| self.chains.get(index)).collect()
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
