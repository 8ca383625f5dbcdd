//! How often CPUs are sampled, and which gaps between samples mean something.

use lockwatch_ebpf::{Member, beats::BeatConfig};

use crate::{detect::Thresholds, task::Nanos};

const SECOND: u64 = 1_000_000_000;

/// Samples within the threshold of a soft lockup.
const IN_SOFT: u64 = 80;
/// At least so many within that of a hard one.
const IN_HARD: u64 = 10;
/// Samples a second, at least and at most.
const RATE: (u64, u64) = (4, 100);
/// A shorter gap is nothing, whatever the rate: a host may run others for so long.
const GAP_MIN: u64 = SECOND / 10;

/// How often CPUs are sampled, and which gaps between samples mean something: what
/// thresholds ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Samples a second on each CPU.
    pub rate: u64,
    /// A gap up to this, four samples, is counted as time of a run.
    pub gap: Nanos,
    /// A CPU that beats without a gap longer than this is steady: proof that the machine
    /// itself did not stand still.
    pub steady_gap: Nanos,
    /// Stacks are kept of runs that have lasted this long.
    pub stacks_after: Nanos,
}

impl Pace {
    /// What these thresholds ask for; one that is off asks for nothing.
    pub fn of(thresholds: Thresholds) -> Self {
        let (soft, hard) = (thresholds.soft_lockup, thresholds.hard_lockup);
        let rate_for = |threshold: Option<Nanos>, samples: u64| {
            threshold.map_or(0, |Nanos(ns)| (samples * SECOND).div_ceil(ns.max(1)))
        };
        let rate = rate_for(soft, IN_SOFT)
            .max(rate_for(hard, IN_HARD))
            .clamp(RATE.0, RATE.1);
        let gap = (4 * SECOND / rate).max(GAP_MIN);
        Self {
            rate,
            gap: Nanos(gap),
            steady_gap: Nanos(hard.map_or(gap, |Nanos(ns)| gap.max(ns / 4))),
            stacks_after: Nanos(soft.map_or(0, |Nanos(ns)| ns / 4)),
        }
    }

    /// The time from one sample to the next.
    pub fn period(self) -> Nanos {
        Nanos(SECOND / self.rate)
    }

    /// The same for the programs. `task_flags`: where the flags of a task lie.
    pub fn config(self, task_flags: Member) -> BeatConfig {
        BeatConfig {
            task_flags,
            gap_ns: self.gap.0,
            steady_gap_ns: self.steady_gap.0,
            stacks_after_ns: self.stacks_after.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(soft: Option<u64>, hard: Option<u64>) -> Pace {
        let threshold = |ms: u64| Nanos(ms * SECOND / 1_000);
        Pace::of(Thresholds {
            soft_lockup: soft.map(threshold),
            hard_lockup: hard.map(threshold),
            ..Thresholds::of_waits(Nanos(SECOND))
        })
    }

    #[test]
    fn the_shorter_a_threshold_the_more_samples() {
        assert_eq!(
            of(Some(20_000), Some(10_000)).rate,
            4,
            "the usual thresholds"
        );
        assert_eq!(of(Some(2_000), Some(10_000)).rate, 40);
        assert_eq!(of(None, Some(500)).rate, 20);
        assert_eq!(of(Some(100), None).rate, 100, "and not more than that");
        assert_eq!(of(None, None).rate, 4);
        assert_eq!(of(Some(0), Some(0)).rate, 100);
    }

    #[test]
    fn gaps_follow() {
        let usual = of(Some(20_000), Some(10_000));
        assert_eq!(usual.period(), Nanos(SECOND / 4));
        assert_eq!(usual.gap, Nanos(SECOND));
        assert_eq!(usual.steady_gap, Nanos(2 * SECOND + SECOND / 2));
        assert_eq!(usual.stacks_after, Nanos(5 * SECOND));
        assert_eq!(of(Some(100), None).gap, Nanos(SECOND / 10));
    }
}
