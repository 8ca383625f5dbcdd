//! How often how long.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use lockwatch_ebpf::counts::{Count, LONGEST_NS, bucket_of, longest_ns, shortest_ns};

use crate::task::Nanos;

/// Digits of a time that are exact: a time is known to within 0.8 %.
pub const SIGNIFICANT_DIGITS: u8 = 2;

/// Longer times, in ns, are counted as this long.
pub const HIGHEST_NS: u64 = LONGEST_NS;

/// How often how long, in the buckets of an `HdrHistogram` from 1 ns to [`HIGHEST_NS`] with
/// [`SIGNIFICANT_DIGITS`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distribution {
    /// By bucket ([`bucket_of`]); none has a count of 0.
    buckets: BTreeMap<u32, Count>,
}

impl Distribution {
    /// Adds what was counted in a bucket.
    pub fn add(&mut self, bucket: u32, counted: Count) {
        if counted.count == 0 {
            return;
        }
        let entry = self.buckets.entry(bucket).or_default();
        // A file can say anything.
        entry.count = entry.count.saturating_add(counted.count);
        entry.sum_ns = entry.sum_ns.saturating_add(counted.sum_ns);
    }

    /// Counts one time.
    pub fn record(&mut self, time: Nanos) {
        let counted = Count {
            count: 1,
            sum_ns: time.0,
        };
        self.add(bucket_of(time.0), counted);
    }

    /// Adds all of another one.
    pub fn merge(&mut self, other: &Self) {
        for (&bucket, &counted) in &other.buckets {
            self.add(bucket, counted);
        }
    }

    /// What was counted after `earlier` was.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = Self::default();
        for (&bucket, now) in &self.buckets {
            let then = earlier.buckets.get(&bucket).copied().unwrap_or_default();
            let counted = Count {
                count: now.count.saturating_sub(then.count),
                sum_ns: now.sum_ns.saturating_sub(then.sum_ns),
            };
            since.add(bucket, counted);
        }
        since
    }

    /// How many times.
    pub fn count(&self) -> u64 {
        let counts = self.buckets.values().map(|counted| counted.count);
        counts.fold(0, u64::saturating_add)
    }

    /// All times together; exact, if they were counted in the kernel.
    pub fn sum(&self) -> Nanos {
        let sums = self.buckets.values().map(|counted| counted.sum_ns);
        Nanos(sums.fold(0, u64::saturating_add))
    }

    /// The longest time, as its bucket tells it; 0 without any.
    pub fn max(&self) -> Nanos {
        let last = self.buckets.last_key_value();
        Nanos(last.map_or(0, |(&bucket, _)| longest_ns(bucket)))
    }

    /// The time that this share (0 to 1) of all times does not exceed, as its bucket tells
    /// it; 0 without any.
    pub fn quantile(&self, share: f64) -> Nanos {
        let wanted = ((share * self.count() as f64).ceil() as u64).max(1);
        let mut counted = 0;
        for (&bucket, here) in &self.buckets {
            counted = here.count.saturating_add(counted);
            if counted >= wanted {
                return Nanos(longest_ns(bucket));
            }
        }
        self.max()
    }

    /// Without any time.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// The buckets that are not empty, the shortest times first: the shortest and the
    /// longest time in each, and what was counted.
    pub fn buckets(&self) -> impl Iterator<Item = (Nanos, Nanos, Count)> {
        let bounds = |(&bucket, &counted): (&u32, &Count)| {
            let (from, to) = (shortest_ns(bucket), longest_ns(bucket));
            (Nanos(from), Nanos(to), counted)
        };
        self.buckets.iter().map(bounds)
    }

    /// As an `HdrHistogram` of ns.
    pub fn histogram(&self) -> Histogram<u64> {
        #[expect(
            clippy::expect_used,
            reason = "the bounds are constants, which a test tries"
        )]
        let mut histogram = Histogram::new_with_bounds(1, HIGHEST_NS, SIGNIFICANT_DIGITS)
            .expect("bounds of a histogram");
        for (&bucket, counted) in &self.buckets {
            // Cannot be out of bounds: no bucket is.
            histogram.saturating_record_n(shortest_ns(bucket), counted.count);
        }
        histogram
    }

    /// Of an `HdrHistogram` of ns. What is together in one of its buckets counts as being in
    /// its middle: the sum is near the true one, not exact.
    pub fn of_histogram(histogram: &Histogram<u64>) -> Self {
        let mut distribution = Self::default();
        for step in histogram.iter_recorded() {
            let value = histogram.lowest_equivalent(step.value_iterated_to());
            let count = step.count_at_value();
            let middle = histogram.median_equivalent(value);
            let sum_ns = middle.saturating_mul(count);
            distribution.add(bucket_of(value), Count { count, sum_ns });
        }
        distribution
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(times: &[u64]) -> Distribution {
        let mut distribution = Distribution::default();
        for &time in times {
            distribution.record(Nanos(time));
        }
        distribution
    }

    proptest! {
        #[test]
        fn each_bucket_is_one_of_the_histogram(times in prop::collection::vec(0..=HIGHEST_NS, 1..200)) {
            let distribution = of(&times);
            let histogram = distribution.histogram();
            let mut expected = Histogram::<u64>::new_with_bounds(1, HIGHEST_NS, 2).expect("bounds");
            for &time in &times {
                expected.record(time).expect("in bounds");
            }
            prop_assert_eq!(&histogram, &expected);
            for share in [0.5, 0.9, 0.99, 0.999, 1.0] {
                prop_assert_eq!(distribution.quantile(share).0, histogram.value_at_quantile(share));
            }
            prop_assert_eq!(distribution.max().0, histogram.max());
            prop_assert_eq!(distribution.sum().0, times.iter().sum::<u64>());
            let back = Distribution::of_histogram(&histogram);
            prop_assert_eq!(back.histogram(), histogram);
        }

        #[test]
        fn two_parts_are_the_whole(first in prop::collection::vec(0..u64::MAX / 1000, 0..50),
                                   second in prop::collection::vec(0..u64::MAX / 1000, 0..50)) {
            let mut both = of(&first);
            both.merge(&of(&second));
            prop_assert_eq!(both.since(&of(&first)), of(&second));
            prop_assert_eq!(both.count(), (first.len() + second.len()) as u64);
        }
    }

    #[test]
    fn of_nothing_everything_is_0() {
        let nothing = Distribution::default();
        assert_eq!(nothing.quantile(0.5), Nanos(0));
        assert_eq!(nothing.max(), Nanos(0));
        assert!(nothing.is_empty());
    }
}
