//! The distributions, by what tells them apart for a receiver.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::common::v1::KeyValue;

use super::{attributes::text, exponential::Exponential};
use crate::{
    latency::{Distribution, Measure, SeriesKey, Snapshot},
    lock::{LockKind, LockMode},
};

/// What tells one distribution from another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Labels {
    pub(super) measure: Measure,
    class: String,
    kind: LockKind,
    mode: LockMode,
    caller: String,
}

impl Labels {
    /// As attributes, in the order of the instrument.
    pub(super) fn attributes(&self) -> Vec<KeyValue> {
        vec![
            text("class", &self.class),
            text("kind", kind_word(self.kind)),
            text("mode", mode_word(self.mode)),
            text("caller", &self.caller),
        ]
    }
}

impl From<&SeriesKey> for Labels {
    fn from(key: &SeriesKey) -> Self {
        Self {
            measure: key.measure,
            class: key.class.to_string(),
            kind: key.kind,
            mode: key.mode,
            caller: key.caller.to_string(),
        }
    }
}

/// The distributions of a snapshot. Classes and callers that are written alike, as the two
/// kinds of unknown ones, are one series: the same attributes twice in a metric would be an
/// error.
pub(super) fn by_labels(snapshot: &Snapshot) -> BTreeMap<Labels, Vec<&Distribution>> {
    let mut series: BTreeMap<Labels, Vec<&Distribution>> = BTreeMap::new();
    for (key, distribution) in &snapshot.series {
        series
            .entry(Labels::from(key))
            .or_default()
            .push(distribution);
    }
    series
}

/// What was counted in all of them together.
pub(super) fn together(distributions: &[&Distribution]) -> Exponential {
    if let [only] = distributions {
        return (*only).into();
    }
    let mut all = Distribution::default();
    for distribution in distributions {
        all.merge(distribution);
    }
    (&all).into()
}

/// The words of the JSON contract.
const fn kind_word(kind: LockKind) -> &'static str {
    match kind {
        LockKind::Rwsem => "rwsem",
        LockKind::Mutex => "mutex",
        LockKind::PercpuRwsem => "percpu_rwsem",
        LockKind::RtMutex => "rt_mutex",
        LockKind::Semaphore => "semaphore",
        LockKind::VmaLock => "vma_lock",
        LockKind::Unknown => "unknown",
    }
}

/// The words of the JSON contract.
const fn mode_word(mode: LockMode) -> &'static str {
    match mode {
        LockMode::Read => "read",
        LockMode::Write => "write",
    }
}
