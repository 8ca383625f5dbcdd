//! A [`State`] as a request of the protocol.
//!
//! The messages are those of the official crate `opentelemetry-proto`. The SDK of the same
//! project (`opentelemetry_sdk` 0.33, with `opentelemetry-otlp`) cannot be used: it counts
//! by itself, one call a measurement, and what it makes of that (`metrics::data`) has no
//! constructor and no public field, so that nothing that was counted in the kernel can be
//! handed to it.

use std::collections::BTreeSet;

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{InstrumentationScope, KeyValue},
    metrics::v1::{
        AggregationTemporality, DataPointFlags, ExponentialHistogram,
        ExponentialHistogramDataPoint, Gauge, Metric, NumberDataPoint, ResourceMetrics,
        ScopeMetrics, Sum, metric::Data, number_data_point::Value,
    },
    resource::v1::Resource,
};

use super::{
    attributes::text,
    exponential::{Exponential, SCALE},
    instrument::{self as all, Instrument, Kind},
    series,
};
use crate::{
    export::{
        Root, State,
        roots::{RootName, roots},
        sums,
    },
    latency::{Measure, SeriesKey},
};

/// What a request is made of.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) resource: &'a Resource,
    /// Taken in place of what the state has.
    pub(super) series: Vec<(SeriesKey, Exponential)>,
    pub(super) state: &'a State,
    /// Roots that the receiver may take for standing.
    pub(super) known_roots: &'a BTreeSet<RootName>,
    /// Nothing comes after it: what is a value of now has none any more.
    pub(super) is_last: bool,
}

/// The request that says all of it.
pub(super) fn request(parts: Parts<'_>) -> ExportMetricsServiceRequest {
    let points = Points::new(&parts);
    let scope = InstrumentationScope {
        name: "lockwatch".to_owned(),
        version: super::VERSION.to_owned(),
        ..InstrumentationScope::default()
    };
    let resource = parts.resource.clone();
    let scope_metrics = ScopeMetrics {
        scope: Some(scope),
        metrics: metrics(parts, &points),
        ..ScopeMetrics::default()
    };
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(resource),
            scope_metrics: vec![scope_metrics],
            ..ResourceMetrics::default()
        }],
    }
}

fn metrics(parts: Parts<'_>, points: &Points) -> Vec<Metric> {
    let state = parts.state;
    let lost = state.latency.lost;
    let (stalls, cost) = (&state.stalls, &state.cost);
    let is_wait = |(key, _): &(SeriesKey, Exponential)| key.measure == Measure::Wait;
    let (waits, holds) = parts.series.into_iter().partition(is_wait);
    let uncounted = [(Measure::Wait, lost.waits), (Measure::Hold, lost.holds)];
    let uncounted = uncounted.map(|(measure, count)| (measure.word(), count));
    let hangs = || state.hangs.iter();
    let total = hangs().map(|hang| (hang.detector, hang.total));
    let standing = hangs().map(|hang| (hang.detector, hang.standing));
    let start = state.since.as_microsecond() as f64 / 1e6;
    vec![
        points.histograms(&all::WAIT, waits),
        points.histograms(&all::HOLD, holds),
        points.by_name(&all::UNCOUNTED, uncounted),
        points.one(&all::STALLS, int(stalls.total)),
        points.one(&all::STALLS_STANDING, int(stalls.standing)),
        points.one(
            &all::LONGEST_STANDING,
            double(stalls.longest_standing.as_secs_f64()),
        ),
        points.one(&all::LONGEST, double(stalls.longest.as_secs_f64())),
        points.one(&all::THRESHOLD, double(stalls.threshold.as_secs_f64())),
        points.one(&all::BLOCKED_TASKS, int(state.blocked_tasks)),
        points.roots(&state.roots, parts.known_roots),
        points.by_name(&all::HANGS, total),
        points.by_name(&all::HANGS_STANDING, standing),
        points.by_name(&all::LOST, state.lost.iter().copied()),
        points.one(&all::CPU, double(cost.cpu.as_secs_f64())),
        points.one(&all::RESIDENT, int(cost.resident_bytes)),
        points.one(&all::MAPS, int(cost.map_bytes)),
        points.one(&all::START, double(start)),
    ]
}

/// A count. The protocol has no unsigned one.
fn int(value: u64) -> Value {
    Value::AsInt(i64::try_from(value).unwrap_or(i64::MAX))
}

fn double(value: f64) -> Value {
    Value::AsDouble(value)
}

/// Makes the points of one time.
struct Points {
    /// In ns since 1970, as in the protocol.
    since: u64,
    at: u64,
    is_last: bool,
}

impl Points {
    fn new(parts: &Parts<'_>) -> Self {
        let nanos = |time: jiff::Timestamp| u64::try_from(time.as_nanosecond()).unwrap_or(0);
        let since = nanos(parts.state.since);
        Self {
            since,
            // If the clock was set back, a point must still not end before it begins.
            at: nanos(parts.state.at).max(since),
            is_last: parts.is_last,
        }
    }

    fn one(&self, instrument: &Instrument, value: Value) -> Metric {
        self.numbers(instrument, vec![self.number(instrument, Vec::new(), value)])
    }

    fn by_name<'a>(
        &self,
        instrument: &Instrument,
        values: impl IntoIterator<Item = (&'a str, u64)>,
    ) -> Metric {
        let points = sums(values)
            .into_iter()
            .map(|(name, value)| self.number(instrument, named(instrument, &[name]), int(value)));
        self.numbers(instrument, points.collect())
    }

    /// A root that is gone is told to be: it would seem to stand for as long as a receiver
    /// takes the last value for the present one (Prometheus: 5 minutes).
    fn roots(&self, now: &[Root], known: &BTreeSet<RootName>) -> Metric {
        let instrument = &all::ROOT_BLOCKED_TASKS;
        let standing = roots(now);
        let point = |name: &RootName, blocked| {
            let attributes = named(instrument, &name.each_ref().map(String::as_str));
            self.number(instrument, attributes, int(blocked))
        };
        let gone = known.iter().filter(|name| !standing.contains_key(*name));
        let gone = gone.map(|name| without_value(point(name, 0)));
        let points = standing.iter().map(|(name, &blocked)| point(name, blocked));
        self.numbers(instrument, points.chain(gone).collect())
    }

    fn number(
        &self,
        instrument: &Instrument,
        attributes: Vec<KeyValue>,
        value: Value,
    ) -> NumberDataPoint {
        let is_of_now = matches!(instrument.kind, Kind::UpDownCounter | Kind::Gauge);
        let point = NumberDataPoint {
            attributes,
            // A gauge has no beginning.
            start_time_unix_nano: if instrument.kind == Kind::Gauge {
                0
            } else {
                self.since
            },
            time_unix_nano: self.at,
            value: Some(value),
            ..NumberDataPoint::default()
        };
        if is_of_now && self.is_last {
            without_value(point)
        } else {
            point
        }
    }

    fn numbers(&self, instrument: &Instrument, data_points: Vec<NumberDataPoint>) -> Metric {
        let data = match instrument.kind {
            Kind::Gauge => Data::Gauge(Gauge { data_points }),
            kind => Data::Sum(Sum {
                data_points,
                aggregation_temporality: AggregationTemporality::Cumulative.into(),
                is_monotonic: kind == Kind::Counter,
            }),
        };
        metric(instrument, data)
    }

    fn histograms(&self, instrument: &Instrument, series: Vec<(SeriesKey, Exponential)>) -> Metric {
        let points = series
            .into_iter()
            .map(|(key, counted)| ExponentialHistogramDataPoint {
                attributes: series::attributes(&key),
                start_time_unix_nano: self.since,
                time_unix_nano: self.at,
                count: counted.count,
                sum: Some(counted.sum_s),
                scale: SCALE,
                zero_count: counted.zero_count,
                positive: Some(counted.positive),
                min: Some(counted.min_s),
                max: Some(counted.max_s),
                ..ExponentialHistogramDataPoint::default()
            });
        let histogram = ExponentialHistogram {
            data_points: points.collect(),
            aggregation_temporality: AggregationTemporality::Cumulative.into(),
        };
        metric(instrument, Data::ExponentialHistogram(histogram))
    }
}

/// A point that says that there is no value any more.
fn without_value(point: NumberDataPoint) -> NumberDataPoint {
    NumberDataPoint {
        flags: DataPointFlags::NoRecordedValueMask as u32,
        value: None,
        ..point
    }
}

fn metric(instrument: &Instrument, data: Data) -> Metric {
    Metric {
        name: instrument.name.to_owned(),
        description: instrument.description.to_owned(),
        unit: instrument.unit.to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}

/// The attributes of an instrument with their values.
fn named(instrument: &Instrument, values: &[&str]) -> Vec<KeyValue> {
    let names = instrument.attributes.iter();
    names
        .zip(values)
        .map(|(name, value)| text(name, value))
        .collect()
}

#[cfg(test)]
mod tests;
