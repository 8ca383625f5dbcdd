//! How long tasks waited for locks and held them, as `histogram` shows it: the contract
//! `lockwatch.histogram/1`. docs/histograms.md explains it.

pub mod csv;
#[cfg(test)]
pub(crate) mod example;
pub mod hgrm;
pub mod svg;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    figures::{Count, Span},
    latency::{CountsLost, Distribution, Measure, SeriesKey},
    lock::{LockKind, LockMode},
    task::Nanos,
};

/// Name and version of the contract.
pub const CONTRACT: &str = "lockwatch.histogram/1";

/// More hosts than these are counted, not named.
const HOSTS_NAMED: usize = 3;

/// What was counted, before anything is chosen from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Where it comes from.
    pub source: Source,
    /// The hosts it was counted on, as far as they are known.
    pub hosts: BTreeSet<String>,
    /// From when to when.
    pub span: Option<(jiff::Timestamp, jiff::Timestamp)>,
    /// What is missing, one line each.
    pub degraded: Vec<String>,
    /// What was measured and is in no series.
    pub lost: CountsLost,
    /// The distributions.
    pub series: Vec<(Name, Distribution)>,
}

/// Where counts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// Counted in the kernel just now.
    Live,
    /// Read from logs.
    Log,
}

/// What a distribution is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// Waits or holds that lockwatch has counted.
    Key(SeriesKey),
    /// Of another program's log: its tag, if it has one.
    Foreign(Option<String>),
}

/// What is told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum By {
    /// Locks by class, kind and mode.
    #[default]
    Class,
    /// Callers, too.
    Caller,
}

/// What is shown of what was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// What is told apart.
    pub by: By,
    /// Waits or holds; none: both.
    pub measure: Option<Measure>,
    /// Locks of one of these classes; empty: of any.
    pub classes: Vec<String>,
    /// One of these callers; empty: any.
    pub callers: Vec<String>,
}

impl Selection {
    fn has(&self, name: &Name) -> bool {
        let is_one_of = |words: &[String], word: &dyn Fn() -> String| {
            words.is_empty() || words.contains(&word())
        };
        match name {
            Name::Key(key) => {
                self.measure.is_none_or(|measure| measure == key.measure)
                    && is_one_of(&self.classes, &|| key.class.to_string())
                    && is_one_of(&self.callers, &|| key.caller.to_string())
            }
            // Nobody knows what it is of: shown, unless something is asked for.
            Name::Foreign(_) => {
                self.measure.is_none() && self.classes.is_empty() && self.callers.is_empty()
            }
        }
    }
}

/// How long waits and holds were.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Histograms {
    /// Name and version of this contract.
    #[schemars(extend("const" = CONTRACT))]
    pub schema: &'static str,
    /// Version of lockwatch that made it.
    pub lockwatch: &'static str,
    /// Where the counts come from.
    pub source: Source,
    /// The hosts they were counted on, as far as they are known.
    pub hosts: BTreeSet<String>,
    /// When counting began. Absent if there is no interval.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub from: Option<jiff::Timestamp>,
    /// When it ended. Absent if there is no interval.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub to: Option<jiff::Timestamp>,
    /// What is missing, one line each.
    pub degraded: Vec<String>,
    /// What was measured and is in no series: it found no room in the kernel's map.
    pub lost: Lost,
    /// True if sums of times are exact; a log has them to within half a bucket.
    pub sums_are_exact: bool,
    /// The distributions, the one with the longest sum first, waits before holds.
    pub series: Vec<Series>,
}

/// What is in no series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Lost {
    /// Waits.
    pub waits: u64,
    /// Holds.
    pub holds: u64,
}

/// One distribution.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Series {
    /// What it is of.
    #[serde(flatten)]
    pub label: Label,
    /// How many times.
    pub count: u64,
    /// All times together, in ns.
    pub sum_ns: Nanos,
    /// Half of the times were at most this long, in ns.
    pub p50_ns: Nanos,
    /// As `p50_ns`, for 90 %.
    pub p90_ns: Nanos,
    /// As `p50_ns`, for 99 %.
    pub p99_ns: Nanos,
    /// As `p50_ns`, for 99.9 %.
    pub p999_ns: Nanos,
    /// The longest, as its bucket tells it, in ns.
    pub max_ns: Nanos,
    /// The whole distribution: buckets that are not empty, the shortest times first.
    pub buckets: Vec<Bucket>,
    /// The same, to go on with.
    #[serde(skip)]
    #[schemars(skip)]
    pub distribution: Distribution,
    /// Of a class: its callers, the one with the longest sum first.
    #[serde(skip)]
    #[schemars(skip)]
    pub callers: Vec<(String, Distribution)>,
}

/// What a distribution is of.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
pub struct Label {
    /// What the time was spent with. Absent for another program's log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measure: Option<Measure>,
    /// Class of the locks: `mmap_lock`, a symbol, or `unknown`. Absent for another program's log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Their primitive. Absent for another program's log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<LockKind>,
    /// How the lock was wanted or had. Absent for another program's log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<LockMode>,
    /// From where: a function, or `short`, `unknown`, `other`. Absent where callers are not
    /// told apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// Tag in another program's log. Absent otherwise, and where it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

/// Times that are not told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Bucket {
    /// The shortest of them, in ns.
    pub from_ns: Nanos,
    /// The longest of them, in ns.
    pub to_ns: Nanos,
    /// How many there were.
    pub count: u64,
    /// How long they were together, in ns.
    pub sum_ns: Nanos,
}

impl Label {
    /// What people are told alike is one series: two classes are both called `unknown`.
    fn of(name: &Name, by: By) -> Self {
        match name {
            Name::Key(key) => Self {
                measure: Some(key.measure),
                class: Some(key.class.to_string()),
                kind: Some(key.kind),
                mode: Some(key.mode),
                caller: (by == By::Caller).then(|| key.caller.to_string()),
                tag: None,
            },
            Name::Foreign(tag) => Self {
                tag: tag.clone(),
                ..Self::default()
            },
        }
    }

    /// In words: `mmap_lock read`; of a caller `do_exit: mmap_lock read`.
    pub fn words(&self) -> String {
        let Some(class) = &self.class else {
            return match &self.tag {
                Some(tag) => tag.clone(),
                None => "without a tag".to_owned(),
            };
        };
        // Of a lock that nobody could name: which primitive it is, at least.
        let class = match self.kind {
            Some(kind) if class == "unknown" => format!("unknown {}", kind.words()),
            _ => class.clone(),
        };
        let mut words = match &self.caller {
            Some(caller) => format!("{caller}: {class}"),
            None => class,
        };
        // A mutex is held by one task, however it was asked for.
        if self.kind.is_none_or(LockKind::has_readers) {
            let mode = match self.mode {
                Some(LockMode::Read) => " read",
                Some(LockMode::Write) => " write",
                None => "",
            };
            words.push_str(mode);
        }
        words
    }
}

impl Lost {
    /// All of them.
    pub const fn total(self) -> u64 {
        self.waits.saturating_add(self.holds)
    }
}

impl Histograms {
    /// The hosts in words, some by name and many by their number; `None` if none is known.
    pub(super) fn hosts_in_words(&self) -> Option<String> {
        let hosts: Vec<&str> = self.hosts.iter().map(String::as_str).collect();
        match hosts.as_slice() {
            [] => None,
            few if few.len() <= HOSTS_NAMED => Some(few.join(", ")),
            many => Some(format!("{} hosts", Count::of(many.len()))),
        }
    }

    /// For how long was counted, and from when on: `1h00m from 2026-03-01T03:12:09Z`; `None`
    /// if there is no interval.
    pub(super) fn span_in_words(&self) -> Option<String> {
        let (from, to) = self.from.zip(self.to)?;
        let length = Nanos(to.duration_since(from).as_nanos().try_into().unwrap_or(0));
        Some(format!("{} from {}", Span(length), from.strftime("%FT%TZ")))
    }

    /// What is selected of what was counted.
    pub fn of(counted: Counted, selection: &Selection) -> Self {
        let mut series: BTreeMap<Label, (Distribution, BTreeMap<String, Distribution>)> =
            BTreeMap::new();
        for (name, distribution) in &counted.series {
            if !selection.has(name) {
                continue;
            }
            let (all, callers) = series.entry(Label::of(name, selection.by)).or_default();
            all.merge(distribution);
            if let (Name::Key(key), By::Class) = (name, selection.by) {
                let caller = callers.entry(key.caller.to_string()).or_default();
                caller.merge(distribution);
            }
        }
        let mut series: Vec<Series> = series
            .into_iter()
            .map(|(label, (distribution, callers))| Series::new(label, distribution, callers))
            .collect();
        series.sort_by_key(|series| (series.label.measure, Reverse(series.sum_ns)));
        let (from, to) = counted.span.unzip();
        Self {
            schema: CONTRACT,
            lockwatch: env!("CARGO_PKG_VERSION"),
            source: counted.source,
            hosts: counted.hosts,
            from,
            to,
            degraded: counted.degraded,
            lost: Lost {
                waits: counted.lost.waits,
                holds: counted.lost.holds,
            },
            sums_are_exact: counted.source == Source::Live,
            series,
        }
    }
}

impl Series {
    fn new(
        label: Label,
        distribution: Distribution,
        callers: BTreeMap<String, Distribution>,
    ) -> Self {
        let mut callers: Vec<(String, Distribution)> = callers.into_iter().collect();
        callers.sort_by_key(|(_, distribution)| Reverse(distribution.sum()));
        let buckets = distribution
            .buckets()
            .map(|(from_ns, to_ns, counted)| Bucket {
                from_ns,
                to_ns,
                count: counted.count,
                sum_ns: Nanos(counted.sum_ns),
            });
        Self {
            count: distribution.count(),
            sum_ns: distribution.sum(),
            p50_ns: distribution.quantile(0.5),
            p90_ns: distribution.quantile(0.9),
            p99_ns: distribution.quantile(0.99),
            p999_ns: distribution.quantile(0.999),
            max_ns: distribution.max(),
            buckets: buckets.collect(),
            label,
            distribution,
            callers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(histograms: &Histograms) -> Vec<(String, u64)> {
        let series = histograms.series.iter();
        series
            .map(|series| (series.label.words(), series.count))
            .collect()
    }

    #[test]
    fn what_is_told_apart_and_what_is_left() {
        let all = |selection: &Selection| words(&Histograms::of(example::counted(), selection));
        let total = |selection: &Selection| all(selection).iter().map(|it| it.1).sum::<u64>();
        let by_class = Selection::default();
        let by_caller = Selection {
            by: By::Caller,
            ..Selection::default()
        };
        assert_eq!(total(&by_class), total(&by_caller));
        assert_eq!(
            all(&by_class)[0],
            ("mmap_lock read".to_owned(), example::MMAP_READS)
        );
        assert!(all(&by_caller).len() > all(&by_class).len());
        let of_class = Selection {
            classes: vec!["mmap_lock".to_owned()],
            measure: Some(Measure::Hold),
            ..Selection::default()
        };
        assert_eq!(all(&of_class), [("mmap_lock write".to_owned(), 40)]);
        let of_caller = Selection {
            callers: vec!["do_user_addr_fault".to_owned()],
            ..by_caller
        };
        assert_eq!(all(&of_caller).len(), 1);
    }

    #[test]
    fn two_kinds_of_unknown_are_one_to_a_reader() {
        let counted = example::counted();
        let is_unknown = |name: &&(Name, Distribution)| match &name.0 {
            Name::Key(key) => key.class.to_string() == "unknown",
            Name::Foreign(_) => false,
        };
        assert_eq!(counted.series.iter().filter(is_unknown).count(), 2);
        let shown = words(&Histograms::of(counted, &Selection::default()));
        let unknown = shown.iter().filter(|it| it.0.starts_with("unknown"));
        assert_eq!(
            unknown.collect::<Vec<_>>(),
            [&("unknown mutex".to_owned(), 7)]
        );
    }

    #[test]
    fn the_contract_by_example() {
        let mut histograms = Histograms::of(example::counted(), &Selection::default());
        histograms.lockwatch = "0.0.0";
        for series in &mut histograms.series {
            series.buckets.truncate(2);
        }
        let mut out = Vec::new();
        crate::report::json::write_pretty(&mut out, &histograms).unwrap();
        insta::assert_snapshot!(String::from_utf8(out).unwrap());
    }
}
