//! The distributions, by what tells them apart for a receiver.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::common::v1::KeyValue;

use super::{attributes::text, exponential::Exponential};
use crate::latency::{Distribution, SeriesKey, Snapshot};

/// What a series is told apart by, in the order of the instrument.
pub(super) fn attributes(key: &SeriesKey) -> Vec<KeyValue> {
    vec![
        text("class", &key.class.to_string()),
        text("kind", key.kind.word()),
        text("mode", key.mode.word()),
        text("caller", &key.caller.to_string()),
    ]
}

/// The distributions of a snapshot. Classes and callers that are written alike, as the two
/// kinds of unknown ones, are one series: the same attributes twice in a metric would be an
/// error.
pub(super) fn as_written(snapshot: &Snapshot) -> BTreeMap<SeriesKey, Vec<&Distribution>> {
    let mut series: BTreeMap<SeriesKey, Vec<&Distribution>> = BTreeMap::new();
    for (key, distribution) in &snapshot.series {
        series
            .entry(key.as_written())
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
