//! The families of metrics, as the encoder takes them.

use std::{collections::BTreeMap, fmt};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet},
};

use super::{
    bounds::{self, SECOND},
    callers::{Labels, OTHER},
    catalogue::{self as all, Metric},
};
use crate::{
    export::{Root, State},
    latency::{CountsLost, Distribution, Measure},
    lock::{LockKind, LockMode},
    task::Nanos,
};

/// Roots that are told apart at a time; the others are `other`.
pub const ROOTS: usize = 10;

/// One histogram as it is written.
#[derive(Debug)]
pub(super) struct Histogram {
    labels: Labels,
    /// In seconds.
    sum: f64,
    count: u64,
    /// See [`bounds::counts`].
    counts: Vec<(f64, u64)>,
}

impl Histogram {
    pub(super) fn of((labels, counted): (&Labels, &Distribution)) -> Self {
        Self {
            labels: labels.clone(),
            sum: seconds(counted.sum()),
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
                histograms.filter(|histogram| histogram.labels.measure == measure),
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
        writer.gauge_of_seconds(&all::LONGEST_STANDING, seconds(stalls.longest_standing))?;
        writer.gauge_of_seconds(&all::LONGEST, seconds(stalls.longest))?;
        writer.gauge_of_seconds(&all::THRESHOLD, seconds(stalls.threshold))?;
        writer.gauge(&all::BLOCKED_TASKS, state.blocked_tasks)?;
        writer.gauges(&all::ROOT_BLOCKED_TASKS, roots(&state.roots))?;

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

/// What has the same labels would be refused as a duplicate: it is added up.
fn sums<'a>(
    values: impl IntoIterator<Item = (&'a str, u64)>,
) -> impl IntoIterator<Item = (&'a str, u64)> {
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, value) in values {
        *sums.entry(name).or_default() += value;
    }
    sums
}

/// Blocked tasks by class, reason and name; those that block most, and all others as one.
fn roots(roots: &[Root]) -> impl Iterator<Item = ([String; 3], u64)> {
    let mut sums: BTreeMap<[String; 3], u64> = BTreeMap::new();
    for root in roots {
        let labels = [
            root.class.to_string(),
            root.stuck.clone(),
            root.comm.clone(),
        ];
        *sums.entry(labels).or_default() += root.blocked_tasks;
    }
    let mut most: Vec<([String; 3], u64)> = sums.into_iter().collect();
    most.sort_by_key(|&(_, blocked)| std::cmp::Reverse(blocked));
    let rest = most.split_off(most.len().min(ROOTS));
    let mut told: BTreeMap<[String; 3], u64> = most.into_iter().collect();
    for (_, blocked) in rest {
        let other = [OTHER; 3].map(str::to_owned);
        *told.entry(other).or_default() += blocked;
    }
    told.into_iter()
}

fn seconds(time: Nanos) -> f64 {
    time.0 as f64 / SECOND
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
                let labels = &histogram.labels;
                let values = [
                    labels.class.as_str(),
                    kind_word(labels.kind),
                    mode_word(labels.mode),
                    labels.caller.as_str(),
                ];
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_contract() {
        for kind in [
            LockKind::Rwsem,
            LockKind::Mutex,
            LockKind::PercpuRwsem,
            LockKind::RtMutex,
            LockKind::Semaphore,
            LockKind::VmaLock,
            LockKind::Unknown,
        ] {
            assert_eq!(serde_json::json!(kind), kind_word(kind));
        }
        for mode in [LockMode::Read, LockMode::Write] {
            assert_eq!(serde_json::json!(mode), mode_word(mode));
        }
    }

    #[test]
    fn roots_are_bounded_and_none_is_twice() {
        let root = |number: u64| Root {
            class: crate::lock::LockClass::MmapLock,
            comm: format!("task{number}"),
            stuck: "fuse".to_owned(),
            blocked_tasks: number,
        };
        let twice: Vec<Root> = (1..=20).chain(1..=20).map(root).collect();
        let told: Vec<([String; 3], u64)> = roots(&twice).collect();
        assert_eq!(told.len(), ROOTS + 1);
        let all: u64 = told.iter().map(|(_, blocked)| blocked).sum();
        assert_eq!(all, 2 * (1..=20).sum::<u64>());
        let blocked = |comm: &str| {
            let mut with = told.iter().filter(|(labels, _)| labels[2] == comm);
            with.next().map(|&(_, blocked)| blocked)
        };
        assert_eq!(blocked("task20"), Some(40));
        assert_eq!(blocked("task10"), None);
        assert_eq!(blocked(OTHER), Some(2 * (1..=10).sum::<u64>()));
    }
}
