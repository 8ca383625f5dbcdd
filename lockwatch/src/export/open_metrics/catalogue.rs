//! All metrics there are: what they are called, and what they mean.

use prometheus_client::{metrics::MetricType, registry::Unit};

/// Before each name.
const PREFIX: &str = "lockwatch_";

/// A family of metrics.
#[derive(Debug)]
pub struct Metric {
    /// Without prefix, unit and suffix.
    stem: &'static str,
    pub(super) unit: Option<Unit>,
    pub(super) kind: MetricType,
    /// Names of its labels, beside `le`.
    pub labels: &'static [&'static str],
    /// What it is, one sentence.
    pub help: &'static str,
}

impl Metric {
    const fn of(
        kind: MetricType,
        stem: &'static str,
        unit: Option<Unit>,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self {
            stem,
            unit,
            kind,
            labels,
            help,
        }
    }

    /// The name without unit, as the encoder wants it.
    pub(super) fn family(&self) -> String {
        format!("{PREFIX}{}", self.stem)
    }

    /// The name that one queries by; a histogram's has `_bucket`, `_sum` or `_count` behind it.
    pub fn name(&self) -> String {
        let unit = self.unit.as_ref().map_or("", Unit::as_str);
        let separator = if unit.is_empty() { "" } else { "_" };
        let suffix = match self.kind {
            MetricType::Counter => "_total",
            MetricType::Info => "_info",
            MetricType::Gauge | MetricType::Histogram | MetricType::Unknown => "",
        };
        format!("{PREFIX}{}{separator}{unit}{suffix}", self.stem)
    }

    /// Its type in one word: `counter`, `gauge`, `histogram`, `info`.
    pub fn kind(&self) -> &str {
        self.kind.as_str()
    }
}

const OF_LOCKS: &[&str] = &["class", "kind", "mode", "caller"];

pub(super) static WAIT: Metric = Metric::of(
    MetricType::Histogram,
    "lock_wait",
    Some(Unit::Seconds),
    OF_LOCKS,
    "How long tasks waited for locks that they found taken.",
);
pub(super) static HOLD: Metric = Metric::of(
    MetricType::Histogram,
    "lock_hold",
    Some(Unit::Seconds),
    OF_LOCKS,
    "How long tasks held locks, where holds are tracked.",
);
pub(super) static UNCOUNTED: Metric = Metric::of(
    MetricType::Counter,
    "uncounted",
    None,
    &["measure"],
    "Waits and holds that are in no histogram, as the map of counts was full.",
);
pub(super) static OTHER_CALLERS: Metric = Metric::of(
    MetricType::Gauge,
    "other_callers",
    None,
    &[],
    "Callers that are not told apart but counted as other.",
);
pub(super) static STALLS: Metric = Metric::of(
    MetricType::Counter,
    "stalls",
    None,
    &[],
    "Locks that tasks waited for longer than the threshold, those that stand included.",
);
pub(super) static STALLS_STANDING: Metric = Metric::of(
    MetricType::Gauge,
    "stalls_standing",
    None,
    &[],
    "Locks that tasks are waiting for longer than the threshold.",
);
pub(super) static LONGEST_STANDING: Metric = Metric::of(
    MetricType::Gauge,
    "stall_longest_standing",
    Some(Unit::Seconds),
    &[],
    "The longest wait so far in the stalls that stand; 0 if none does.",
);
pub(super) static LONGEST: Metric = Metric::of(
    MetricType::Gauge,
    "stall_longest",
    Some(Unit::Seconds),
    &[],
    "The longest wait in any stall of the run.",
);
pub(super) static THRESHOLD: Metric = Metric::of(
    MetricType::Gauge,
    "stall_threshold",
    Some(Unit::Seconds),
    &[],
    "How long a wait has to be for a stall.",
);
pub(super) static BLOCKED_TASKS: Metric = Metric::of(
    MetricType::Gauge,
    "blocked_tasks",
    None,
    &[],
    "Tasks that wait in the stalls that stand.",
);
pub(super) static ROOT_BLOCKED_TASKS: Metric = Metric::of(
    MetricType::Gauge,
    "root_blocked_tasks",
    None,
    &["class", "stuck", "comm"],
    "Tasks that wait, through any number of locks, for tasks of this name.",
);
pub(super) static HANGS: Metric = Metric::of(
    MetricType::Counter,
    "hangs",
    None,
    &["detector"],
    "Findings of hanging tasks and CPUs, those that stand included.",
);
pub(super) static HANGS_STANDING: Metric = Metric::of(
    MetricType::Gauge,
    "hangs_standing",
    None,
    &["detector"],
    "Findings of hanging tasks and CPUs that stand.",
);
pub(super) static LOST: Metric = Metric::of(
    MetricType::Counter,
    "lost",
    None,
    &["kind"],
    "What could not be sent, kept or read.",
);
pub(super) static CPU: Metric = Metric::of(
    MetricType::Counter,
    "cpu",
    Some(Unit::Seconds),
    &[],
    "CPU time of lockwatch itself.",
);
pub(super) static RESIDENT: Metric = Metric::of(
    MetricType::Gauge,
    "resident_memory",
    Some(Unit::Bytes),
    &[],
    "Resident memory of lockwatch itself.",
);
pub(super) static MAPS: Metric = Metric::of(
    MetricType::Gauge,
    "map_memory",
    Some(Unit::Bytes),
    &[],
    "Memory of lockwatch's maps in the kernel.",
);
pub(super) static START: Metric = Metric::of(
    MetricType::Gauge,
    "start_time",
    Some(Unit::Seconds),
    &[],
    "When the run began, since the Unix epoch.",
);
pub(super) static BUILD: Metric = Metric::of(
    MetricType::Info,
    "build",
    None,
    &["version", "kernel"],
    "Which lockwatch this is, and the kernel that it runs on.",
);

/// Every metric, in the order in which they are exported.
pub static ALL: [&Metric; 19] = [
    &WAIT,
    &HOLD,
    &UNCOUNTED,
    &OTHER_CALLERS,
    &STALLS,
    &STALLS_STANDING,
    &LONGEST_STANDING,
    &LONGEST,
    &THRESHOLD,
    &BLOCKED_TASKS,
    &ROOT_BLOCKED_TASKS,
    &HANGS,
    &HANGS_STANDING,
    &LOST,
    &CPU,
    &RESIDENT,
    &MAPS,
    &START,
    &BUILD,
];
