//! When to try again.

use std::time::Duration;

/// Before the second try.
const FIRST: Duration = Duration::from_secs(1);
/// It is never longer, unless the receiver asks for it.
const LONGEST: Duration = Duration::from_secs(60);
/// Longer than that no receiver is left alone.
const LONGEST_ASKED: Duration = Duration::from_secs(600);

/// How long to wait between tries: twice as long after each failure.
#[derive(Debug)]
pub(super) struct Pace {
    next: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Pace {
    /// After a failure: how long to wait. Up to a half of it is left to chance, so that a
    /// fleet whose receiver was away does not come back all at once. A receiver that asks
    /// for more time gets it.
    pub(super) fn slower(&mut self, asked: Option<Duration>) -> Duration {
        let own = self.next.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.next = (2 * self.next).min(LONGEST);
        let asked = asked.unwrap_or_default().min(LONGEST_ASKED);
        own.max(asked.mul_f64(1.0 + fastrand::f64() / 10.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wait_is_twice_as_long_up_to_a_minute() {
        let mut pace = Pace::default();
        for nominal in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            let wait = pace.slower(None).as_secs_f64();
            let nominal = f64::from(nominal);
            assert!((nominal / 2.0..=nominal).contains(&wait), "{wait}");
        }
    }

    #[test]
    fn a_receiver_gets_the_time_that_it_asks_for() {
        let wait = |seconds| {
            let wait = Pace::default().slower(Some(Duration::from_secs(seconds)));
            wait.as_secs_f64()
        };
        assert!((30.0..=33.0).contains(&wait(30)));
        assert!((0.5..=1.0).contains(&wait(0)));
        assert!(wait(u64::MAX) <= 660.0);
    }

    #[test]
    fn chance_spreads_a_fleet() {
        let waits: Vec<f64> = (0..100)
            .map(|_| Pace::default().slower(None).as_secs_f64())
            .collect();
        assert!(waits.iter().any(|&wait| wait < 0.65), "{waits:?}");
        assert!(waits.iter().any(|&wait| wait > 0.85), "{waits:?}");
    }
}
