//! The bounds of the exported histograms' buckets.
//!
//! A bound is the longest time of one of our own buckets ([`Distribution`]), so that none of
//! those lies on both sides of it and the counts are exact: `le` is "as long as this or
//! shorter", in whole ns.

use lockwatch_ebpf::counts::{BUCKETS, bucket_of, longest_ns};

use crate::{latency::Distribution, task::Nanos};

/// Times that people think in, in ns: three for each power of ten, from 1 µs to 1 h.
const ROUND: [u64; 30] = {
    let mut round = [0; 30];
    let mut power = 1_000;
    let mut next = 0;
    while next < 27 {
        round[next] = power;
        round[next + 1] = 2 * power;
        round[next + 2] = 5 * power;
        next += 3;
        power *= 10;
    }
    round[27] = power;
    round[28] = 2 * power;
    round[29] = 3_600_000_000_000;
    round
};

/// The bounds in ns, each at most 0.8 % from a round time.
///
/// It is the longest time that we do not tell from the round one. What is longer than 1 h
/// counts as that long, so that the last bucket has no end: its begin is the last bound.
pub(super) const BOUNDS: [u64; ROUND.len()] = {
    let mut bounds = ROUND;
    let mut next = 0;
    while next < ROUND.len() {
        let bucket = bucket_of(ROUND[next]);
        let closed = if bucket + 1 < BUCKETS {
            bucket
        } else {
            bucket - 1
        };
        bounds[next] = longest_ns(closed);
        next += 1;
    }
    bounds
};

/// How many times lie between a bound, in seconds, and the one before it; the last has no
/// bound.
pub(super) fn counts(distribution: &Distribution) -> Vec<(f64, u64)> {
    let bounds = BOUNDS.iter().map(|&bound| Nanos(bound).as_secs_f64());
    let mut counts: Vec<(f64, u64)> = bounds
        .chain([f64::INFINITY])
        .map(|bound| (bound, 0))
        .collect();
    for (_, longest, counted) in distribution.buckets() {
        let place = BOUNDS.partition_point(|&bound| bound < longest.0);
        counts[place].1 += counted.count;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::HIGHEST_NS;
    use lockwatch_ebpf::counts::shortest_ns;
    use proptest::prelude::*;

    #[test]
    fn no_bucket_lies_on_both_sides_of_a_bound() {
        for bound in BOUNDS {
            for bucket in 0..BUCKETS {
                let open = bucket == BUCKETS - 1;
                let below = !open && longest_ns(bucket) <= bound;
                assert!(below || shortest_ns(bucket) > bound, "{bucket} at {bound}");
            }
        }
    }

    #[test]
    fn bounds_are_near_round_times_and_rise() {
        assert!(BOUNDS.is_sorted_by(|a, b| a < b));
        for (bound, round) in BOUNDS.iter().zip(ROUND) {
            assert!(
                bound.abs_diff(round) * 1000 <= round * 8,
                "{bound} for {round}"
            );
        }
        let seconds: Vec<String> = BOUNDS
            .iter()
            .map(|&bound| Nanos(bound).as_secs_f64().to_string())
            .collect();
        insta::assert_snapshot!(seconds.join("\n"));
    }

    proptest! {
        #[test]
        fn a_count_up_to_a_bound_is_exact(
            times in prop::collection::vec(prop_oneof![
                0..=HIGHEST_NS,
                (0..BOUNDS.len(), -1_i64..=1).prop_map(|(place, off)| BOUNDS[place].saturating_add_signed(off)),
                (10_u32..43).prop_map(|bit| 1 << bit),
                HIGHEST_NS..=u64::MAX / 1000,
            ], 0..100),
        ) {
            let mut distribution = Distribution::default();
            for &time in &times {
                distribution.record(Nanos(time));
            }
            let counts = counts(&distribution);
            let mut so_far = 0;
            for (place, &bound) in BOUNDS.iter().enumerate() {
                so_far += counts[place].1;
                let expected = times.iter().filter(|&&time| time <= bound).count();
                prop_assert_eq!(so_far, expected as u64);
            }
            prop_assert_eq!(so_far + counts[BOUNDS.len()].1, times.len() as u64);
            prop_assert_eq!(counts[BOUNDS.len()].0, f64::INFINITY);
        }
    }
}
