//! The lines of `watch --format json`.

use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    commands::watch::{holders::HolderTimes, progress::Reason, words::name},
    graph::{Forecasts, Stall},
    lock::{LockClass, LockKind, LockMode},
    plan::Gap,
    report::{Chain, Daemon, Finding, Hung, Lock, Lockup, OwnStacks, Report, over_time::Why},
    stream::Wait,
    task::{Nanos, StuckClass, Tgid, Tid},
};

/// Name and version of the contract of these lines.
pub(super) const CONTRACT: &str = "lockwatch.watch/1";

/// One line: `event` tells which.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Line<'a> {
    /// Watching has begun: everything is attached.
    Watching(Watching<'a>),
    /// A stall stands.
    Stall(Box<Standing<'a>>),
    /// A stall has ended.
    StallEnded(Ended<'a>),
    /// Tasks or a CPU hang.
    Finding(Box<Found<'a>>),
    /// They do no longer.
    FindingEnded(FoundEnded<'a>),
    /// Watching is over.
    Summary(Totals<'a>),
}

/// What is watched, and how.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Watching<'a> {
    /// Name and version of the contract of all lines.
    #[schemars(extend("const" = CONTRACT))]
    pub(super) schema: &'static str,
    /// When, RFC 3339 in UTC.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub(super) at: jiff::Timestamp,
    /// A wait this long or longer is a stall, in ns.
    pub(super) threshold_ns: Nanos,
    /// A task this long in uninterruptible sleep hangs, in ns. Absent where that is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hung_task_ns: Option<Nanos>,
    /// A CPU this long in the kernel, while others should run there, is locked up, in ns. Absent
    /// where that is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) soft_lockup_ns: Option<Nanos>,
    /// A CPU this long without a timer interrupt is locked up, in ns. Absent where that is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hard_lockup_ns: Option<Nanos>,
    /// Where the knowledge comes from.
    pub(super) sources: &'a [String],
    /// What this kernel, or a policy on it, does not allow to be known.
    pub(super) gaps: &'a [Gap],
}

/// A stall that stands.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Standing<'a> {
    /// When, RFC 3339 in UTC.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub(super) at: jiff::Timestamp,
    /// Number of the stall in this run.
    pub(super) stall: u64,
    /// Why it is reported now.
    pub(super) reason: Reason,
    /// How long the longest wait has stood, in ns.
    pub(super) age_ns: Nanos,
    /// Tasks that wait now.
    pub(super) blocked_tasks: usize,
    /// The lock as the last survey found it. Absent where none has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lock: Option<Lock>,
    /// When that survey was taken, RFC 3339 in UTC. Absent with `lock`.
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) surveyed_at: Option<jiff::Timestamp>,
    /// The roots behind which this lock's waiters wait. Absent with `lock`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub(super) chains: Vec<&'a Chain>,
    /// Daemons that tasks wait for. Absent if there are none, and with `lock`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub(super) daemons: Vec<Daemon>,
    /// What the detectors say of this lock, and of circles that it leads into. Absent with
    /// `lock`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub(super) findings: Vec<&'a Finding>,
    /// Equal stacks, once; `lock` and `daemons` refer to them by index. No others. Absent with
    /// `lock`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub(super) stacks: Vec<&'a [String]>,
    /// How its holders have spent the time since a survey found them. Absent at first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub(super) holders: Vec<HolderSpent<'a>>,
    /// What is known without a survey. Absent with one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) unsurveyed: Option<Unsurveyed<'a>>,
}

/// A lock that no survey has found: its holder is not known.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Unsurveyed<'a> {
    /// Where it is in kernel memory, hexadecimal.
    pub(super) address: String,
    /// The primitive.
    pub(super) kind: LockKind,
    /// Who waits, the longest first.
    pub(super) waits: Vec<Waiting<'a>>,
}

/// A wait as the tracepoint told it.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Waiting<'a> {
    /// Thread id.
    pub(super) tid: Tid,
    /// Process id.
    pub(super) tgid: Tgid,
    /// Name of the thread.
    pub(super) comm: &'a str,
    /// How it wants the lock.
    pub(super) mode: LockMode,
    /// How long it has waited, in ns.
    pub(super) wait_ns: Nanos,
}

/// A stall that has ended.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Ended<'a> {
    /// When it was seen, RFC 3339 in UTC.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub(super) at: jiff::Timestamp,
    /// Number of the stall in this run.
    pub(super) stall: u64,
    /// Where the lock was in kernel memory, hexadecimal.
    pub(super) address: String,
    /// The primitive.
    pub(super) kind: LockKind,
    /// `mmap_lock`, `i_rwsem`, … or `unknown` where no survey found it.
    pub(super) class: String,
    /// In words.
    pub(super) name: String,
    /// From the begin of the first wait past the threshold to the end of the last, in ns.
    pub(super) length_ns: Nanos,
    /// True if the end was not seen as it happened.
    pub(super) length_is_upper_bound: bool,
    /// Tasks that were seen waiting.
    pub(super) blocked_tasks: usize,
    /// Who was found holding it, in order of discovery.
    pub(super) holders: Vec<HolderSpent<'a>>,
    /// Forecasts (`next`) that were checked when its queue moved. Absent if none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) forecasts: Option<Checked>,
}

/// Forecasts of who gets a lock next, checked against who got it.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Checked {
    /// The first of the queue to get the lock was one of those named.
    pub(super) right: u64,
    /// It was another one.
    pub(super) wrong: u64,
}

impl Checked {
    /// `None` if none was checked.
    pub(super) fn of(forecasts: Forecasts) -> Option<Self> {
        let Forecasts { right, wrong } = forecasts;
        (right + wrong > 0).then_some(Self { right, wrong })
    }
}

/// A holder, and how it spent the time since the survey that found it.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct HolderSpent<'a> {
    /// Thread id.
    pub(super) tid: Tid,
    /// Process id.
    pub(super) tgid: Tgid,
    /// Name of the thread.
    pub(super) comm: &'a str,
    /// Asleep, in ns.
    pub(super) asleep_ns: Nanos,
    /// On a CPU, in ns.
    pub(super) running_ns: Nanos,
    /// Ready, without a CPU, in ns.
    pub(super) runnable_ns: Nanos,
    /// Times it left the CPU.
    pub(super) switches: u32,
    /// What it slept in, the longest first; no more than a few stacks are told apart, so
    /// that the sum may be less than `asleep_ns`.
    pub(super) sleeps: Vec<SleptIn<'a>>,
}

/// Time that a holder spent asleep for one reason.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct SleptIn<'a> {
    /// What for.
    pub(super) class: StuckClass,
    /// The function that says so. Absent where no stack was to be had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) function: Option<&'a str>,
    /// How long, in ns.
    pub(super) ns: Nanos,
}

/// Tasks or a CPU that hang: what a detector says that is about no lock alone.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Found<'a> {
    /// When, RFC 3339 in UTC.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub(super) at: jiff::Timestamp,
    /// Number of the finding in this run.
    pub(super) finding: u64,
    /// Why it is reported now.
    pub(super) reason: Why,
    /// How long it has lasted, in ns.
    pub(super) age_ns: Nanos,
    /// What the detector says.
    #[serde(flatten)]
    pub(super) said: &'a Finding,
    /// The CPU. Absent where it is about tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lockup: Option<Lockup>,
    /// The tasks, and what they wait for. Absent where it is about a CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hung: Option<Hung>,
    /// The roots behind which tasks wait for its locks. Absent if it has none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub(super) chains: Vec<&'a Chain>,
    /// Equal stacks, once; `lockup` and `hung` refer to them by index. No others.
    pub(super) stacks: Vec<&'a [String]>,
}

/// A finding that has ended.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct FoundEnded<'a> {
    /// When that was seen, RFC 3339 in UTC.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub(super) at: jiff::Timestamp,
    /// Number of the finding in this run.
    pub(super) finding: u64,
    /// Name of the detector.
    pub(super) detector: &'a str,
    /// What it last said.
    pub(super) sentence: &'a str,
    /// How long it lasted, in ns.
    pub(super) length_ns: Nanos,
}

/// The counts of a run.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Totals<'a> {
    /// When, RFC 3339 in UTC.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub(super) at: jiff::Timestamp,
    /// Waits that were recorded, long or short. Absent where no tracepoint counts them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) waits: Option<u64>,
    /// Stalls that were reported.
    pub(super) stalls: u64,
    /// Findings about tasks or CPUs that were reported.
    pub(super) findings: u64,
    /// Surveys that were taken.
    pub(super) surveys: u64,
    /// Forecasts that were checked. Absent if none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) forecasts: Option<Checked>,
    /// What could not be sent, kept or read, by kind.
    pub(super) lost: std::collections::BTreeMap<&'a str, u64>,
}

/// What is written of a stall that stands. `found`: its lock, and the report that has it.
pub(super) fn standing<'a>(
    at: jiff::Timestamp,
    stall: &Stall,
    waits: &[&'a Wait],
    reason: Reason,
    now_ns: u64,
    found: Option<(&'a Report, &'a Lock)>,
) -> Standing<'a> {
    let waiting = |wait: &&'a Wait| Waiting {
        tid: wait.task.key.tid,
        tgid: wait.task.tgid,
        comm: &wait.task.comm,
        mode: wait.mode,
        wait_ns: Nanos::between(wait.since_ns, now_ns),
    };
    let unsurveyed = || Unsurveyed {
        address: stall.lock.to_string(),
        kind: stall.kind,
        waits: waits.iter().map(waiting).collect(),
    };
    let mut stacks = found.map(|(report, _)| OwnStacks::of(report));
    let lock = found
        .zip(stacks.as_mut())
        .map(|((_, lock), stacks)| stacks.with(lock));
    let daemons = found.zip(stacks.as_mut());
    let daemons = daemons.map(|((report, _), stacks)| {
        let daemons = report.daemons.iter();
        daemons.map(|daemon| stacks.with(daemon)).collect()
    });
    Standing {
        at,
        stall: stall.id.0,
        reason,
        age_ns: stall.age(now_ns),
        blocked_tasks: waits.len(),
        lock,
        surveyed_at: found.map(|(report, _)| report.taken_at),
        chains: found.map_or_else(Vec::new, |(report, lock)| {
            let leads_on = |chain: &&'a Chain| chain.graph.route(lock.at).is_some();
            report.chains.iter().filter(leads_on).collect()
        }),
        daemons: daemons.unwrap_or_default(),
        findings: found.map_or_else(Vec::new, |(report, lock)| report.findings_on(lock)),
        stacks: stacks.map(OwnStacks::into_table).unwrap_or_default(),
        holders: Vec::new(),
        unsurveyed: found.is_none().then(unsurveyed),
    }
}

/// What is written of a stall that has ended.
pub(super) fn ended<'a>(
    at: jiff::Timestamp,
    stall: &Stall,
    holders: &'a [HolderTimes],
) -> Ended<'a> {
    let class = stall
        .facts
        .as_ref()
        .map_or(&LockClass::Unknown, |facts| &facts.lock().class);
    Ended {
        at,
        stall: stall.id.0,
        address: stall.lock.to_string(),
        kind: stall.kind,
        class: class.to_string(),
        name: name(stall),
        length_ns: stall.length(),
        length_is_upper_bound: !stall.is_length_exact(),
        blocked_tasks: stall.blocked.len(),
        holders: holders.iter().map(holder_spent).collect(),
        forecasts: Checked::of(stall.forecasts),
    }
}

/// How a holder spent its time, as it is written.
pub(super) fn holder_spent(holder: &HolderTimes) -> HolderSpent<'_> {
    let HolderTimes {
        task,
        times,
        sleeps,
    } = holder;
    HolderSpent {
        tid: task.key.tid,
        tgid: task.tgid,
        comm: &task.comm,
        asleep_ns: times.asleep,
        running_ns: times.running,
        runnable_ns: times.runnable,
        switches: times.switches,
        sleeps: sleeps
            .iter()
            .map(|sleep| SleptIn {
                class: sleep.class,
                function: sleep.function.as_deref(),
                ns: sleep.time,
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{json, schema::committed};

    #[test]
    fn the_committed_schema_and_page_are_those_of_the_types() {
        let mut schema = schemars::schema_for!(Line<'_>);
        schema.insert("title".to_owned(), CONTRACT.into());
        let mut out = Vec::new();
        json::write_pretty(&mut out, &schema).unwrap();
        committed::check(
            CONTRACT,
            &["watch.md", "report.md"],
            &String::from_utf8(out).unwrap(),
        );
    }
}
