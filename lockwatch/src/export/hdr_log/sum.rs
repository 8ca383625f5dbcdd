//! Histograms of one series, added up without an error.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use lockwatch_ebpf::counts::{Count, bucket_of};

use crate::latency::Distribution;

/// The sum of histograms, whatever their precision: no count is lost, and no value moves
/// further than the precision of its own histogram.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Counts by the highest value that is the same to the histogram.
    counts: BTreeMap<u64, u64>,
    /// The finest precision of any, in significant digits.
    digits: u8,
    /// The lowest value that any tells from 0; none before the first.
    low: Option<u64>,
    /// The highest value that any takes.
    high: u64,
}

impl Sum {
    /// Adds a histogram.
    pub fn add(&mut self, histogram: &Histogram<u64>) {
        self.with_bounds(histogram.low(), histogram.high(), histogram.sigfig());
        for step in histogram.iter_recorded() {
            let value = histogram.highest_equivalent(step.value_iterated_to());
            self.count(value, step.count_at_value());
        }
    }

    /// Adds all of another one.
    pub fn merge(&mut self, other: &Self) {
        if let Some(low) = other.low {
            self.with_bounds(low, other.high, other.digits);
        }
        for (&value, &count) in &other.counts {
            self.count(value, count);
        }
    }

    fn with_bounds(&mut self, low: u64, high: u64, digits: u8) {
        self.low = Some(self.low.map_or(low, |before| before.min(low)));
        self.high = self.high.max(high);
        self.digits = self.digits.max(digits);
    }

    fn count(&mut self, value: u64, count: u64) {
        let counted = self.counts.entry(value).or_default();
        *counted = counted.saturating_add(count);
    }

    /// How many values.
    pub fn total(&self) -> u64 {
        let add = |sum: u64, &count: &u64| sum.saturating_add(count);
        self.counts.values().fold(0, add)
    }

    /// As one histogram, as fine as the finest that was added.
    pub fn histogram(&self) -> Histogram<u64> {
        // Highest values of a coarse histogram may lie above its own bound.
        let last = self.counts.last_key_value().map_or(0, |(&value, _)| value);
        let low = self.low.unwrap_or(1).max(1);
        let high = self.high.max(last).max(low.saturating_mul(2));
        #[expect(
            clippy::expect_used,
            reason = "the bounds are those of histograms, or wider"
        )]
        let mut histogram =
            Histogram::new_with_bounds(low, high, self.digits).expect("bounds of a histogram");
        for (&value, &count) in &self.counts {
            // Cannot be out of bounds: none is above the highest.
            histogram.saturating_record_n(value, count);
        }
        histogram
    }

    /// In the buckets in which lockwatch counts. A value is worth `unit_ns` ns. What is
    /// together counts as being at its upper end, as readers of such histograms have it; the
    /// sum is taken from the middle and is near the true one, not exact.
    pub fn distribution(&self, unit_ns: u64) -> Distribution {
        let histogram = self.histogram();
        let mut distribution = Distribution::default();
        for (&value, &count) in &self.counts {
            let middle = histogram.median_equivalent(value).saturating_mul(unit_ns);
            let counted = Count {
                count,
                sum_ns: middle.saturating_mul(count),
            };
            distribution.add(bucket_of(value.saturating_mul(unit_ns)), counted);
        }
        distribution
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{latency::HIGHEST_NS, task::Nanos};

    proptest! {
        // Each makes histograms with all their empty buckets.
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn of_our_own_histograms_nothing_changes(
            first in prop::collection::vec(0..=HIGHEST_NS, 0..50),
            second in prop::collection::vec(0..=1_000_000_u64, 1..50),
        ) {
            let mut whole = Distribution::default();
            let mut sum = Sum::default();
            for part in [first, second] {
                let mut distribution = Distribution::default();
                for time in part {
                    distribution.record(Nanos(time));
                }
                whole.merge(&distribution);
                sum.add(&distribution.histogram());
            }
            prop_assert_eq!(sum.histogram(), whole.histogram());
            prop_assert_eq!(sum.distribution(1).histogram(), whole.histogram());
            prop_assert_eq!(sum.total(), whole.count());
        }

        #[test]
        fn counts_of_any_precision_are_kept(
            digits in 0..=4_u8,
            values in prop::collection::vec(0..1_u64 << 50, 1..50),
        ) {
            let mut coarse = Histogram::new_with_bounds(1, 1 << 51, digits).expect("bounds");
            let mut fine = Histogram::new_with_bounds(1, 1_000, 3).expect("bounds");
            fine.record(999).expect("in bounds");
            for &value in &values {
                coarse.record(value).expect("in bounds");
            }
            let mut sum = Sum::default();
            sum.add(&coarse);
            sum.add(&fine);
            let whole = sum.histogram();
            prop_assert_eq!(whole.len(), values.len() as u64 + 1);
            prop_assert_eq!(sum.distribution(1).count(), values.len() as u64 + 1);
            for share in [0.5, 0.99, 1.0] {
                let mut both = coarse.clone();
                both.record(999).expect("in bounds");
                let (ours, theirs) = (whole.value_at_quantile(share), both.value_at_quantile(share));
                // To the coarser of 3 digits and its own.
                let apart = ours.abs_diff(theirs) as f64;
                let allowed = theirs as f64 / 10_f64.powi(i32::from(digits.min(3))) + 1.0;
                prop_assert!(apart <= allowed, "{ours} {theirs}");
            }
        }
    }

    #[test]
    fn a_unit_is_what_a_value_is_worth() {
        let mut micros = Histogram::<u64>::new_with_bounds(1, 3_600_000_000, 3).expect("bounds");
        micros.record_n(1_500, 2).expect("in bounds");
        let mut sum = Sum::default();
        sum.add(&micros);
        let distribution = sum.distribution(1_000);
        assert_eq!(distribution.count(), 2);
        let max = distribution.max().0;
        assert!((1_500_000..1_512_000).contains(&max), "{max}");
        assert_eq!(distribution.sum(), Nanos(3_000_000));
    }
}
