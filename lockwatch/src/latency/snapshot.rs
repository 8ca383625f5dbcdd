//! All distributions at one time.

use std::collections::BTreeMap;

use crate::latency::{Caller, Distribution, SeriesKey};

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

    /// The same, callers not told apart.
    #[must_use]
    pub fn by_class(&self) -> Self {
        self.with_keys(SeriesKey::of_all_callers)
    }

    /// The same with the `most` callers that waited or held longest, over all classes, told
    /// apart, and the others as [`Caller::Other`].
    #[must_use]
    pub fn with_top_callers(&self, most: usize) -> Self {
        let mut totals: BTreeMap<&Caller, u64> = BTreeMap::new();
        for (key, distribution) in &self.series {
            if matches!(key.caller, Caller::Function(_)) {
                *totals.entry(&key.caller).or_default() += distribution.sum().0;
            }
        }
        let mut callers: Vec<(&Caller, u64)> = totals.into_iter().collect();
        callers.sort_by_key(|&(_, total)| std::cmp::Reverse(total));
        callers.truncate(most);
        self.with_keys(|key| {
            let is_function = matches!(key.caller, Caller::Function(_));
            let is_told = callers.iter().any(|&(caller, _)| *caller == key.caller);
            if is_function && !is_told {
                key.of_all_callers()
            } else {
                key.clone()
            }
        })
    }

    fn with_keys(&self, new: impl Fn(&SeriesKey) -> SeriesKey) -> Self {
        let mut series: BTreeMap<SeriesKey, Distribution> = BTreeMap::new();
        for (key, distribution) in &self.series {
            series.entry(new(key)).or_default().merge(distribution);
        }
        Self {
            series,
            lost: self.lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        latency::Measure,
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
    fn only_what_waited_longest_is_told_apart() {
        let all = snapshot(&[("a", 1), ("b", 30), ("c", 2), ("c", 90)]);
        let top = all.with_top_callers(2);
        let callers: Vec<String> = top
            .series
            .keys()
            .map(|key| key.caller.to_string())
            .collect();
        assert_eq!(callers, ["b", "c", "other"]);
        assert_eq!(top.by_class(), all.by_class());
        assert_eq!(
            all.by_class()
                .series
                .values()
                .map(Distribution::count)
                .sum::<u64>(),
            4
        );
    }

    #[test]
    fn an_interval_has_what_is_new() {
        let then = snapshot(&[("a", 1), ("b", 5)]);
        let now = snapshot(&[("a", 1), ("a", 7), ("b", 5)]);
        assert_eq!(now.since(&then), snapshot(&[("a", 7)]));
    }
}
