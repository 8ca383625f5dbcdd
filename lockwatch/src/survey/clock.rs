//! Three clocks that have to be compared: `CLOCK_MONOTONIC`, the scheduler's clock
//! and jiffies.

use crate::{lock::WaitSource, task::Nanos};

/// How the kernel's other clocks relate to `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Clocks {
    /// Add to a scheduler time to get `CLOCK_MONOTONIC` ns; `None` if not measured.
    pub(super) scheduler_offset_ns: Option<i64>,
    /// Ticks per second, where they can be told.
    pub(super) hz: Option<u64>,
}

/// Tick rates that Linux can be built with on x86.
const RATES: [u64; 4] = [100, 250, 300, 1000];

/// The tick rate, from jiffies and `CLOCK_MONOTONIC` of one moment.
///
/// jiffies start at `(u32)(-300 * HZ)` (include/linux/jiffies.h), so the rate whose
/// line passes nearest is the one, except close to 300 s after boot, where all lines
/// meet: there it is not told.
pub(super) fn tick_rate(jiffies: u64, monotonic_ns: u64) -> Option<u64> {
    let expected = |hz: u64| {
        let start = u64::from(u32::MAX) + 1 - 300 * hz;
        start + (u128::from(monotonic_ns) * u128::from(hz) / 1_000_000_000) as u64
    };
    let mut errors: Vec<(u64, u64)> = RATES
        .iter()
        .map(|&hz| (expected(hz).abs_diff(jiffies), hz))
        .collect();
    errors.sort_unstable();
    let [(best, hz), (second, _), ..] = errors[..] else {
        return None;
    };
    // Slack for the clocks' different starts and for ticks that are not whole
    // nanoseconds, and a clear winner.
    let slack = 10 * hz + jiffies / 100_000;
    (best <= slack && second > 4 * best.max(hz / 4)).then_some(hz)
}

impl Clocks {
    /// Time since the task last got a CPU: how long it has been off, if it is off.
    pub(super) fn off_cpu(&self, last_arrival_ns: u64, now_ns: u64) -> Option<Nanos> {
        let arrival = last_arrival_ns.checked_add_signed(self.scheduler_offset_ns?)?;
        (last_arrival_ns != 0).then(|| Nanos::between(arrival, now_ns))
    }

    /// How long a queue entry has waited, and how that is known: by its time-out where it
    /// has one, else by the time off CPU.
    ///
    /// The entry's time-out is 4 ms, rounded up to ticks, after it queued
    /// (`RWSEM_WAIT_TIMEOUT`, kernel/locking/rwsem.c 5.3+). Where the time off CPU
    /// agrees within three ticks it is the better figure.
    pub(super) fn wait(
        &self,
        timeout: Option<u64>,
        jiffies: u64,
        off_cpu: Option<Nanos>,
    ) -> Option<(Nanos, WaitSource)> {
        let (Some(hz), Some(timeout)) = (self.hz, timeout) else {
            return off_cpu.map(|off| (off, WaitSource::LastArrival));
        };
        let tick_ns = 1_000_000_000 / hz;
        let ticks = (jiffies + hz.div_ceil(250)).saturating_sub(timeout);
        let queued = ticks * tick_ns;
        match off_cpu {
            Some(off) if off.0.abs_diff(queued) <= 3 * tick_ns => {
                Some((off, WaitSource::LastArrival))
            }
            _ => Some((Nanos(queued), WaitSource::QueueEntry)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn the_tick_rate_is_told_away_from_five_minutes() {
        for hz in RATES {
            let start = (1u64 << 32) - 300 * hz;
            for seconds in [20, 100, 600, 86_400, 10_000_000] {
                let jiffies = start + hz * seconds + 3;
                assert_eq!(
                    tick_rate(jiffies, seconds * SECOND),
                    Some(hz),
                    "{hz} Hz after {seconds} s"
                );
            }
            assert_eq!(
                tick_rate(start + hz * 300, 300 * SECOND),
                None,
                "all lines meet"
            );
        }
        assert_eq!(tick_rate(5, 1000 * SECOND), None);
    }

    #[test]
    fn waits_come_from_the_better_clock() {
        let clocks = Clocks {
            scheduler_offset_ns: Some(-5),
            hz: Some(250),
        };
        let off = clocks.off_cpu(1_000_005, 3_001_000_000);
        assert_eq!(off, Some(Nanos(3_000_000_000)));
        // Queued 750 ticks ago: 3 s, and the scheduler agrees.
        assert_eq!(
            clocks.wait(Some(1_001), 1_750, off),
            Some((Nanos(3_000_000_000), WaitSource::LastArrival))
        );
        // It has run since it queued: the entry knows better.
        let ran = Some(Nanos(20_000_000));
        assert_eq!(
            clocks.wait(Some(1_001), 1_750, ran),
            Some((Nanos(3_000_000_000), WaitSource::QueueEntry))
        );
        assert_eq!(Clocks::default().wait(Some(1_001), 1_750, None), None);
    }
}
