//! Forecasts of who gets a lock next, and whether they came true.

use std::ops::AddAssign;

use rustc_hash::FxHashSet;

use super::next;
use crate::{lock::Lock, task::TaskKey};

/// What a survey says of who is next, until the queue moves.
#[derive(Clone, Debug)]
pub(super) struct Forecast {
    /// `CLOCK_MONOTONIC` ns of the survey.
    made_ns: u64,
    /// Whoever was queued.
    queue: FxHashSet<TaskKey>,
    /// One of these is the first of the queue to get the lock.
    first: FxHashSet<TaskKey>,
}

/// How many forecasts were checked, and came true.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forecasts {
    /// The first of the queue that was seen getting the lock was one of those named.
    pub right: u64,
    /// It was another one.
    pub wrong: u64,
}

impl AddAssign for Forecasts {
    fn add_assign(&mut self, other: Self) {
        self.right += other.right;
        self.wrong += other.wrong;
    }
}

impl Forecast {
    /// `None` where nothing can be told.
    pub(super) fn of(lock: &Lock, made_ns: u64) -> Option<Self> {
        let first: FxHashSet<TaskKey> = next::first(lock).into_iter().collect();
        let queued = lock.waiters.iter().filter(|waiter| !waiter.granted);
        (!first.is_empty()).then(|| Self {
            made_ns,
            queue: queued.map(|waiter| waiter.task.key).collect(),
            first,
        })
    }

    /// A wait has ended at `at_ns`: whether that decides it, and how. `acquired`: with the
    /// lock. Whoever was not queued, or not any more, decides nothing.
    pub(super) fn check(&mut self, task: TaskKey, at_ns: u64, acquired: bool) -> Option<bool> {
        if at_ns <= self.made_ns || !self.queue.contains(&task) {
            return None;
        }
        if acquired {
            return Some(self.first.contains(&task));
        }
        // It gave up: the queue is another one now.
        self.queue.clear();
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::example;

    #[test]
    fn the_first_of_the_queue_decides() {
        let lock = &example::incident().locks[0];
        let (writer, reader) = (lock.waiters[0].task.key, lock.waiters[5].task.key);
        let forecast = Forecast::of(lock, 100).unwrap();
        assert_eq!(forecast.clone().check(writer, 101, true), Some(true));
        assert_eq!(forecast.clone().check(reader, 101, true), Some(false));
        // Before the survey, and by one that was not queued.
        assert_eq!(forecast.clone().check(reader, 100, true), None);
        let other = lock.holders[0].task.key;
        assert_eq!(forecast.clone().check(other, 101, true), None);
    }

    #[test]
    fn a_queue_that_somebody_left_is_another_one() {
        let lock = &example::incident().locks[0];
        let mut forecast = Forecast::of(lock, 100).unwrap();
        assert_eq!(forecast.check(lock.waiters[0].task.key, 101, false), None);
        assert_eq!(forecast.check(lock.waiters[5].task.key, 102, true), None);
    }
}
