//! All distributions at one time.

use std::collections::BTreeMap;

use crate::latency::{Distribution, SeriesKey};

/// Times that were measured and found no room in the kernel's map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CountsLost {
    /// Waits.
    pub waits: u64,
    /// Holds.
    pub holds: u64,
}

impl CountsLost {
    /// What was lost after `earlier` was counted.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            waits: self.waits.saturating_sub(earlier.waits),
            holds: self.holds.saturating_sub(earlier.holds),
        }
    }

    /// All of them.
    pub const fn total(self) -> u64 {
        self.waits + self.holds
    }
}

/// What was counted by some time, or between two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The distributions; none is empty.
    pub series: BTreeMap<SeriesKey, Distribution>,
    /// What is in none of them.
    pub lost: CountsLost,
}

impl Snapshot {
    /// What was counted after `earlier` was.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let nothing = Distribution::default();
        let series = self.series.iter().filter_map(|(key, now)| {
            let since = now.since(earlier.series.get(key).unwrap_or(&nothing));
            (!since.is_empty()).then(|| (key.clone(), since))
        });
        Self {
            series: series.collect(),
            lost: self.lost.since(earlier.lost),
        }
    }

    /// Adds all of another one.
    pub fn merge(&mut self, other: &Self) {
        for (key, distribution) in &other.series {
            self.series
                .entry(key.clone())
                .or_default()
                .merge(distribution);
        }
        self.lost.waits += other.lost.waits;
        self.lost.holds += other.lost.holds;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        latency::{Caller, Measure},
        lock::{LockClass, LockKind, LockMode},
        task::Nanos,
    };

    fn snapshot(times: &[(&str, u64)]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for &(caller, time) in times {
            let key = SeriesKey {
                measure: Measure::Wait,
                class: LockClass::MmapLock,
                kind: LockKind::Rwsem,
                mode: LockMode::Read,
                caller: Caller::Function(caller.to_owned()),
            };
            snapshot.series.entry(key).or_default().record(Nanos(time));
        }
        snapshot
    }

    #[test]
    fn an_interval_has_what_is_new() {
        let then = snapshot(&[("a", 1), ("b", 5)]);
        let now = snapshot(&[("a", 1), ("a", 7), ("b", 5)]);
        assert_eq!(now.since(&then), snapshot(&[("a", 7)]));
    }
}
