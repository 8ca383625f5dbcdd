//! The families of metrics, as the encoder takes them.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet},
};

use super::{
    bounds,
    catalogue::{self as all, Metric},
};
use crate::{
    export::{State, roots::roots, sums},
    latency::{CountsLost, Distribution, Measure, SeriesKey},
};

/// One histogram as it is written.
#[derive(Debug)]
pub(super) struct Histogram {
    key: SeriesKey,
    /// In seconds.
    sum: f64,
    count: u64,
    /// See [`bounds::counts`].
    counts: Vec<(f64, u64)>,
}

impl Histogram {
    pub(super) fn of((key, counted): (&SeriesKey, &Distribution)) -> Self {
        Self {
            key: key.clone(),
            sum: counted.sum().as_secs_f64(),
            count: counted.count(),
            counts: bounds::counts(counted),
        }
    }
}

/// All that is written at one time.
#[derive(Debug)]
pub(super) struct Families {
    pub(super) histograms: Vec<Histogram>,
    pub(super) other_callers: u64,
    pub(super) uncounted: CountsLost,
    pub(super) kernel: String,
    pub(super) state: State,
}

impl Collector for Families {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        let state = &self.state;
        for (metric, measure) in [(&all::WAIT, Measure::Wait), (&all::HOLD, Measure::Hold)] {
            let histograms = self.histograms.iter();
            writer.histograms(
                metric,
                histograms.filter(|histogram| histogram.key.measure == measure),
            )?;
        }
        let uncounted = [
            (Measure::Wait.word(), self.uncounted.waits),
            (Measure::Hold.word(), self.uncounted.holds),
        ];
        writer.counters(&all::UNCOUNTED, sums(uncounted))?;
        writer.gauge(&all::OTHER_CALLERS, self.other_callers)?;

        let stalls = &state.stalls;
        writer.counter(&all::STALLS, stalls.total)?;
        writer.gauge(&all::STALLS_STANDING, stalls.standing)?;
        writer.gauge_of_seconds(
            &all::LONGEST_STANDING,
            stalls.longest_standing.as_secs_f64(),
        )?;
        writer.gauge_of_seconds(&all::LONGEST, stalls.longest.as_secs_f64())?;
        writer.gauge_of_seconds(&all::THRESHOLD, stalls.threshold.as_secs_f64())?;
        writer.gauge(&all::BLOCKED_TASKS, state.blocked_tasks)?;
        writer.gauges(&all::ROOT_BLOCKED_TASKS, roots(&state.roots).into_iter())?;

        let hangs = || state.hangs.iter();
        let total = hangs().map(|hang| (hang.detector, hang.total));
        writer.counters(&all::HANGS, sums(total))?;
        let standing = sums(hangs().map(|hang| (hang.detector, hang.standing)));
        let standing = standing.into_iter().map(|(name, count)| ([name], count));
        writer.gauges(&all::HANGS_STANDING, standing)?;
        writer.counters(&all::LOST, sums(state.lost.iter().copied()))?;

        let cost = &state.cost;
        writer.counter_of_seconds(&all::CPU, cost.cpu.as_secs_f64())?;
        writer.gauge(&all::RESIDENT, cost.resident_bytes)?;
        writer.gauge(&all::MAPS, cost.map_bytes)?;
        let start = state.since.as_microsecond() as f64 / 1e6;
        writer.gauge_of_seconds(&all::START, start)?;
        writer.info(
            &all::BUILD,
            [env!("CARGO_PKG_VERSION"), self.kernel.as_str()],
        )
    }
}

/// Writes families.
struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    /// Writes one family, whose header needs the name for as long as it is written.
    fn family(
        &mut self,
        metric: &Metric,
        members: impl FnOnce(MetricEncoder<'_>) -> fmt::Result,
    ) -> fmt::Result {
        let (name, unit) = (metric.family(), metric.unit.as_ref());
        members(
            self.0
                .encode_descriptor(&name, metric.help, unit, metric.kind)?,
        )
    }

    fn histograms<'h>(
        &mut self,
        metric: &Metric,
        histograms: impl Iterator<Item = &'h Histogram>,
    ) -> fmt::Result {
        self.family(metric, |mut encoder| {
            for histogram in histograms {
                let key = &histogram.key;
                let (class, caller) = (key.class.to_string(), key.caller.to_string());
                let values = [&class, key.kind.word(), key.mode.word(), &caller];
                let labels = named(metric, &values);
                encoder
                    .encode_family(&labels)?
                    .encode_histogram::<NoLabelSet>(
                        histogram.sum,
                        histogram.count,
                        &histogram.counts,
                        None,
                    )?;
            }
            Ok(())
        })
    }

    fn counter(&mut self, metric: &Metric, value: u64) -> fmt::Result {
        self.family(metric, |mut encoder| count(&mut encoder, value))
    }

    fn counter_of_seconds(&mut self, metric: &Metric, value: f64) -> fmt::Result {
        self.family(metric, |mut encoder| {
            encoder.encode_counter::<NoLabelSet, f64, f64>(&value, None)
        })
    }

    fn counters<'a>(
        &mut self,
        metric: &Metric,
        values: impl IntoIterator<Item = (&'a str, u64)>,
    ) -> fmt::Result {
        self.family(metric, |mut encoder| {
            for (name, value) in values {
                let labels = named(metric, &[name]);
                count(&mut encoder.encode_family(&labels)?, value)?;
            }
            Ok(())
        })
    }

    fn gauge(&mut self, metric: &Metric, value: u64) -> fmt::Result {
        self.family(metric, |mut encoder| encoder.encode_gauge(&value))
    }

    fn gauge_of_seconds(&mut self, metric: &Metric, value: f64) -> fmt::Result {
        self.family(metric, |mut encoder| encoder.encode_gauge(&value))
    }

    fn gauges<S: AsRef<str>, const N: usize>(
        &mut self,
        metric: &Metric,
        values: impl Iterator<Item = ([S; N], u64)>,
    ) -> fmt::Result {
        self.family(metric, |mut encoder| {
            for (values, value) in values {
                let values = values.each_ref().map(AsRef::as_ref);
                let labels = named(metric, &values);
                encoder.encode_family(&labels)?.encode_gauge(&value)?;
            }
            Ok(())
        })
    }

    fn info(&mut self, metric: &Metric, values: [&str; 2]) -> fmt::Result {
        self.family(metric, |mut encoder| {
            encoder.encode_info(&named(metric, &values))
        })
    }
}

fn count(encoder: &mut MetricEncoder<'_>, value: u64) -> fmt::Result {
    encoder.encode_counter::<NoLabelSet, u64, f64>(&value, None)
}

/// The labels of a metric with their values.
fn named(metric: &Metric, values: &[&str]) -> impl EncodeLabelSet + use<> {
    let names = metric.labels.iter();
    let labels = names.zip(values);
    let labels: Vec<(&'static str, String)> = labels
        .map(|(&name, &value)| (name, value.to_owned()))
        .collect();
    labels
}
