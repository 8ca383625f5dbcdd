//! A [`Distribution`] as an exponential histogram of seconds.
//!
//! Bucket `i` of an exponential histogram holds the times from `2^(i / 2^SCALE)`, exclusive,
//! to `2^((i + 1) / 2^SCALE)`, inclusive. One scale serves all series at all times, so that
//! series can be added up, over hosts too, and a rate never crosses a change of scale. All
//! of a bucket of ours goes where its middle belongs:
//!
//! - a bucket of ours is no wider than 1/128 of its times, so that none of them is further
//!   than 0.4 % from its middle;
//! - one of the exponential ones is 1.09 % wide.
//!
//! So each bound of the bucket in which a receiver finds a time is within 1.5 % of it, and what
//! lies between the bounds is nearer: their geometric middle, 0.94 % at most.

use opentelemetry_proto::tonic::metrics::v1::exponential_histogram_data_point::Buckets;

use crate::latency::Distribution;

/// Each doubling of a time is cut into `2^SCALE` = 64 buckets.
pub(super) const SCALE: i32 = 6;

/// What was counted, without what it was counted for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Exponential {
    /// All times.
    pub(super) count: u64,
    /// All times together in s; as exact as ours.
    pub(super) sum_s: f64,
    /// Times of 0 ns.
    pub(super) zero_count: u64,
    /// The others.
    pub(super) positive: Buckets,
    /// The shortest time in s, as our bucket tells it: less than 0.8 % below it.
    pub(super) min_s: f64,
    /// The longest time in s, as our bucket tells it: less than 0.8 % above it.
    pub(super) max_s: f64,
}

impl From<&Distribution> for Exponential {
    fn from(distribution: &Distribution) -> Self {
        let mut zero_count = 0;
        let mut positive = Buckets::default();
        let mut shortest = None;
        for (from, to, counted) in distribution.buckets() {
            shortest.get_or_insert(from);
            if to.0 == 0 {
                zero_count += counted.count;
                continue;
            }
            let index = index_of((from.0 as f64 + to.0 as f64) / 2.0);
            if positive.bucket_counts.is_empty() {
                positive.offset = index;
            }
            // Ours are sorted, and the index does not fall: there is none before the offset.
            let place = usize::try_from(index - positive.offset).unwrap_or_default();
            if place >= positive.bucket_counts.len() {
                positive.bucket_counts.resize(place + 1, 0);
            }
            positive.bucket_counts[place] += counted.count;
        }
        Self {
            count: distribution.count(),
            sum_s: distribution.sum().as_secs_f64(),
            zero_count,
            positive,
            min_s: shortest.unwrap_or_default().as_secs_f64(),
            max_s: distribution.max().as_secs_f64(),
        }
    }
}

/// The bucket of a time in ns, which is not 0.
fn index_of(ns: f64) -> i32 {
    let doublings = (ns / 1e9).log2();
    // A bucket ends with its upper bound: what is just on it belongs below.
    (doublings * f64::from(1 << SCALE)).ceil() as i32 - 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{latency::HIGHEST_NS, task::Nanos};

    /// How far, relatively, a bound of the bucket that holds a time may be from it.
    const BOUND: f64 = 0.015;

    /// How far, relatively, the geometric middle of the bucket that holds a time may be from it.
    const MIDDLE: f64 = 0.0094;

    fn of(times: &[u64]) -> Distribution {
        let mut distribution = Distribution::default();
        for &time in times {
            distribution.record(Nanos(time));
        }
        distribution
    }

    /// The bounds of a bucket in s, as the data model of OpenTelemetry defines them.
    fn bounds(index: i32) -> (f64, f64) {
        let bound = |index: i32| 2_f64.powf(f64::from(index) / f64::from(1 << SCALE));
        (bound(index), bound(index + 1))
    }

    /// The bounds of the bucket in which a receiver finds the time of this rank, from 1 on.
    fn find(histogram: &Exponential, rank: u64) -> (f64, f64) {
        let mut counted = histogram.zero_count;
        if rank <= counted {
            return (0.0, 0.0);
        }
        for (index, count) in (histogram.positive.offset..).zip(&histogram.positive.bucket_counts) {
            counted += count;
            if rank <= counted {
                return bounds(index);
            }
        }
        panic!("{histogram:?} ends before {rank}");
    }

    fn error(found: f64, time_ns: u64) -> f64 {
        (found - Nanos(time_ns).as_secs_f64()).abs() / Nanos(time_ns).as_secs_f64()
    }

    fn check_bounds(found: (f64, f64), time_ns: u64) {
        let (from, to) = found;
        if time_ns == 0 {
            assert_eq!(found, (0.0, 0.0));
            return;
        }
        for bound in [from, to] {
            assert!(error(bound, time_ns) <= BOUND, "{time_ns} in {from}..{to}");
        }
        let middle = (from * to).sqrt();
        assert!(
            error(middle, time_ns) <= MIDDLE,
            "{time_ns} in {from}..{to}"
        );
    }

    /// Times of all lengths, not only of the longest ones.
    fn times() -> impl Strategy<Value = Vec<u64>> {
        let time = (0..42_u32, any::<u64>()).prop_map(|(bits, random)| {
            let time = random & ((1 << bits) - 1);
            time.min(HIGHEST_NS)
        });
        prop::collection::vec(time, 1..300)
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_every_quantile_is_near(mut times in times()) {
            let histogram = Exponential::from(&of(&times));
            times.sort_unstable();
            let all: u64 = histogram.positive.bucket_counts.iter().sum();
            prop_assert_eq!(histogram.count, times.len() as u64);
            prop_assert_eq!(histogram.zero_count + all, histogram.count);
            let zeros = times.iter().filter(|&&time| time == 0).count();
            prop_assert_eq!(histogram.zero_count, zeros as u64);
            let sum: u64 = times.iter().sum();
            prop_assert_eq!(histogram.sum_s, sum as f64 / 1e9);
            for (rank, &time) in (1..).zip(&times) {
                check_bounds(find(&histogram, rank), time);
            }
            prop_assert!(histogram.min_s <= Nanos(times[0]).as_secs_f64());
            prop_assert!(times[0] == 0 || error(histogram.min_s, times[0]) < 0.008);
            let longest = times[times.len() - 1];
            prop_assert!(histogram.max_s >= Nanos(longest).as_secs_f64());
            prop_assert!(longest == 0 || error(histogram.max_s, longest) < 0.008);
        }

        #[test]
        fn more_times_never_take_a_count_back(first in times(), more in times()) {
            let before = of(&first);
            let mut after = before.clone();
            after.merge(&of(&more));
            let (before, after) = (Exponential::from(&before), Exponential::from(&after));
            for (index, &count) in (before.positive.offset..).zip(&before.positive.bucket_counts) {
                let place = usize::try_from(index - after.positive.offset).expect("not before");
                prop_assert!(after.positive.bucket_counts[place] >= count);
            }
            prop_assert!(after.zero_count >= before.zero_count);
            prop_assert!(after.sum_s >= before.sum_s);
        }
    }

    #[test]
    fn every_bucket_of_ours_is_near_where_it_goes() {
        let mut shortest = 1;
        let mut last = i32::MIN;
        while shortest < HIGHEST_NS {
            let (_, to, _) = of(&[shortest]).buckets().next().expect("one bucket");
            let histogram = Exponential::from(&of(&[shortest]));
            assert_eq!(histogram.positive.bucket_counts, [1]);
            assert!(histogram.positive.offset >= last, "{shortest}");
            last = histogram.positive.offset;
            for time in [shortest, to.0] {
                check_bounds(find(&histogram, 1), time);
            }
            shortest = to.0 + 1;
        }
    }

    #[test]
    fn the_longest_series_has_few_buckets() {
        let histogram = Exponential::from(&of(&[1, HIGHEST_NS]));
        let buckets = histogram.positive.bucket_counts.len();
        assert!((42 * 64 - 64..=42 * 64).contains(&buckets), "{buckets}");
        let histogram = Exponential::from(&of(&[1_000, 1_000_000_000]));
        let buckets = histogram.positive.bucket_counts.len();
        assert!(buckets <= 20 * 64, "{buckets}");
    }

    #[test]
    fn a_bound_belongs_to_the_bucket_below() {
        assert_eq!(index_of(1e9), -1);
        assert_eq!(index_of(2e9), 63);
        assert_eq!(index_of(2.0001e9), 64);
        assert_eq!(bounds(63).1, 2.0);
    }

    #[test]
    fn nothing_has_no_bucket() {
        let histogram = Exponential::from(&Distribution::default());
        assert_eq!(histogram.count, 0);
        assert_eq!(histogram.positive, Buckets::default());
        let zero = Exponential::from(&of(&[0, 0]));
        assert_eq!((zero.count, zero.zero_count), (2, 2));
        assert!(zero.positive.bucket_counts.is_empty());
    }
}
