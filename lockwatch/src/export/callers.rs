//! Which callers are told apart, so that the number of series is bounded and no counter
//! ever goes back.
//!
//! Whoever is exported to has its own [`Callers`], for it has seen its own states.
//!
//! What is exported is only ever added to: from one state to the next each series gets what
//! was counted in between, under the labels that hold at the time. What a caller had counted
//! before it came to be told apart stays where it was: in `other`.
//!
//! Prometheus takes no note of the value with which a series begins, only of its growth. So
//! one that is new is exported as 0 once, and what it counts comes with the next state: the
//! waits that end together when a stall is over may be the first of their caller, and must
//! be seen. Whoever adds up the growth of all series misses nothing, and none of them shrinks.

use std::collections::{BTreeMap, BTreeSet};

use super::OTHER;
use crate::{
    latency::{Caller, SeriesKey, Snapshot},
    lock::{LockClass, LockKind},
};

/// Callers that are told apart if nobody asks for another number.
pub const CALLERS_DEFAULT: usize = 10;

/// In a run so many times the callers that are wanted can come to be told apart, as those
/// that wait longest change.
pub const ROOM: usize = 4;
/// Locks with a symbol of their own that are told apart, at most.
const SYMBOLS: usize = 20;
/// Histograms of callers that are told apart, at most: a function asks for locks of several
/// classes, in several modes.
const SERIES_OF_CALLERS: usize = 200;

/// Who is told apart, and what has been counted for each.
#[derive(Debug)]
pub struct Callers {
    /// How many may newly be told apart by one state.
    most: usize,
    functions: BTreeSet<String>,
    symbols: BTreeSet<String>,
    /// What has gone into the series, callers and all.
    counted: Snapshot,
    /// The same by what is told apart.
    told: Snapshot,
    series_of_callers: usize,
    /// Functions that are counted as `other`.
    others: usize,
    /// Nothing has been exported yet.
    is_new: bool,
}

impl Callers {
    /// Tells apart the `most` callers that waited or held longest, which may be [`ROOM`] times
    /// as many in the course of the run; with 0 all are `other`.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            functions: BTreeSet::new(),
            symbols: BTreeSet::new(),
            counted: Snapshot::default(),
            told: Snapshot::default(),
            series_of_callers: 0,
            others: 0,
            is_new: true,
        }
    }

    /// Adds what was counted since the last time. An earlier snapshot adds nothing.
    pub fn update(&mut self, now: &Snapshot) {
        self.admit(now);
        let mut added = Snapshot {
            lost: now.lost.since(self.counted.lost),
            ..Snapshot::default()
        };
        let mut begun = BTreeSet::new();
        for (key, distribution) in now.since(&self.counted).series {
            let told = self.place(&key);
            let is_known = self.told.series.contains_key(&told);
            let series = self.told.series.entry(told.clone()).or_default();
            // Nobody has seen a state without it before the first: no growth is missed in that.
            if !is_known && !self.is_new {
                begun.insert(told.clone());
            }
            if !begun.contains(&told) {
                series.merge(&distribution);
                added.series.insert(key, distribution);
            }
        }
        self.counted.merge(&added);
        self.told.lost = self.counted.lost;
        self.is_new = false;
    }

    /// The same for the last state of a run: what begins with it has no next one to come with.
    pub fn finish(&mut self, now: &Snapshot) {
        self.update(now);
        self.update(now);
    }

    /// What is exported: each series only grows from one [`Self::update`] to the next, and one
    /// that is new is empty.
    ///
    /// Its keys are told apart by what is written of them ([`SeriesKey::as_written`]).
    pub const fn told(&self) -> &Snapshot {
        &self.told
    }

    /// Functions that are counted as `other`.
    pub const fn others(&self) -> usize {
        self.others
    }

    /// Where a key is counted, as far as there is room for more series of callers.
    fn place(&mut self, key: &SeriesKey) -> SeriesKey {
        let mut told = self.told_of(key);
        let is_of_caller = function(key).is_some_and(|name| self.functions.contains(name));
        if is_of_caller && !self.told.series.contains_key(&told) {
            if self.series_of_callers < SERIES_OF_CALLERS {
                self.series_of_callers += 1;
            } else {
                told.caller = Caller::Function(OTHER.to_owned());
            }
        }
        told
    }

    fn told_of(&self, key: &SeriesKey) -> SeriesKey {
        let mut told = key.as_written();
        let is_told = symbol(key).is_none_or(|name| self.symbols.contains(name));
        if !is_told {
            told.class = LockClass::Symbol(OTHER.to_owned());
            told.kind = LockKind::Unknown;
        }
        let is_told = function(key).is_none_or(|name| self.functions.contains(name));
        if self.most == 0 || !is_told {
            told.caller = Caller::Function(OTHER.to_owned());
        }
        told
    }

    /// Finds out who is told apart from now on.
    fn admit(&mut self, now: &Snapshot) {
        let functions = longest(now, function);
        let all = functions.len();
        for name in functions.into_iter().take(self.most) {
            if self.functions.len() < ROOM * self.most {
                self.functions.insert(name);
            }
        }
        // None that is told apart is ever missing: counts in the kernel do not go away.
        self.others = all.saturating_sub(self.functions.len());
        for name in longest(now, symbol) {
            if self.symbols.len() < SYMBOLS {
                self.symbols.insert(name);
            }
        }
    }
}

fn function(key: &SeriesKey) -> Option<&str> {
    match &key.caller {
        Caller::Function(name) => Some(name),
        Caller::Short | Caller::Unknown | Caller::Other => None,
    }
}

fn symbol(key: &SeriesKey) -> Option<&str> {
    match &key.class {
        LockClass::Symbol(name) => Some(name),
        _ => None,
    }
}

/// Names by how long was waited and held in all, the longest first.
fn longest(snapshot: &Snapshot, name: impl Fn(&SeriesKey) -> Option<&str>) -> Vec<String> {
    let mut totals: BTreeMap<&str, u64> = BTreeMap::new();
    for (key, distribution) in &snapshot.series {
        if let Some(name) = name(key) {
            *totals.entry(name).or_default() += distribution.sum().0;
        }
    }
    let mut names: Vec<(&str, u64)> = totals.into_iter().collect();
    names.sort_by_key(|&(_, total)| std::cmp::Reverse(total));
    names.into_iter().map(|(name, _)| name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        latency::{Distribution, Measure},
        lock::LockMode,
        task::Nanos,
    };
    use proptest::prelude::*;

    fn key(symbol: Option<usize>, caller: Caller) -> SeriesKey {
        SeriesKey {
            measure: Measure::Wait,
            class: symbol.map_or(LockClass::MmapLock, |number| {
                LockClass::Symbol(format!("lock_{number}"))
            }),
            kind: LockKind::Rwsem,
            mode: LockMode::Read,
            caller,
        }
    }

    fn named(name: &str) -> Caller {
        Caller::Function(name.to_owned())
    }

    fn record(snapshot: &mut Snapshot, key: SeriesKey, time: u64) {
        snapshot.series.entry(key).or_default().record(Nanos(time));
    }

    fn counts(callers: &Callers) -> Vec<(String, u64)> {
        let series = callers.told().series.iter();
        series
            .map(|(key, distribution)| (key.caller.to_string(), distribution.count()))
            .collect()
    }

    #[test]
    fn who_comes_in_later_begins_at_0_and_leaves_its_past_behind() {
        let mut callers = Callers::new(1);
        let mut snapshot = Snapshot::default();
        record(&mut snapshot, key(None, named("early")), 500);
        record(&mut snapshot, key(None, named("late")), 1);
        callers.update(&snapshot);
        assert_eq!(
            counts(&callers),
            [("early".to_owned(), 1), ("other".to_owned(), 1)]
        );
        assert_eq!(callers.others(), 1);
        let told = |early, late, other| {
            [("early", early), ("late", late), ("other", other)]
                .map(|(name, count)| (name.to_owned(), count))
        };
        record(&mut snapshot, key(None, named("late")), 9000);
        callers.update(&snapshot);
        assert_eq!(counts(&callers), told(1, 0, 1));
        assert_eq!(callers.others(), 0);
        record(&mut snapshot, key(None, named("late")), 1);
        record(&mut snapshot, key(None, named("early")), 1);
        callers.update(&snapshot);
        assert_eq!(counts(&callers), told(2, 2, 1));
    }

    #[test]
    fn a_new_lock_begins_at_0_too() {
        let mut callers = Callers::new(1);
        callers.update(&Snapshot::default());
        let mut snapshot = Snapshot::default();
        record(&mut snapshot, key(None, Caller::Short), 5);
        callers.update(&snapshot);
        assert_eq!(counts(&callers), [("short".to_owned(), 0)]);
        callers.update(&snapshot);
        assert_eq!(counts(&callers), [("short".to_owned(), 1)]);
    }

    #[test]
    fn at_the_end_nothing_is_kept_back() {
        let mut callers = Callers::new(1);
        callers.update(&Snapshot::default());
        let mut snapshot = Snapshot::default();
        record(&mut snapshot, key(None, named("a")), 5);
        callers.finish(&snapshot);
        assert_eq!(counts(&callers), [("a".to_owned(), 1)]);
    }

    #[test]
    fn without_any_wanted_none_is_told_apart() {
        let mut callers = Callers::new(0);
        let mut snapshot = Snapshot::default();
        record(&mut snapshot, key(None, named("a")), 5);
        record(&mut snapshot, key(None, Caller::Short), 5);
        record(&mut snapshot, key(None, Caller::Unknown), 5);
        callers.update(&snapshot);
        assert_eq!(counts(&callers), [("other".to_owned(), 3)]);
    }

    #[test]
    fn the_same_labels_are_one_series() {
        let mut callers = Callers::new(9);
        let mut snapshot = Snapshot::default();
        for name in ["unknown", "other", "short"] {
            record(&mut snapshot, key(None, named(name)), 5);
        }
        for caller in [Caller::Unknown, Caller::Other, Caller::Short] {
            record(&mut snapshot, key(None, caller), 5);
        }
        callers.update(&snapshot);
        let twice = ["other", "short", "unknown"].map(|name| (name.to_owned(), 2));
        assert_eq!(counts(&callers), twice);
    }

    #[test]
    fn hundreds_of_everything_are_bounded() {
        let mut callers = Callers::new(10);
        let mut snapshot = Snapshot::default();
        for number in 0..300_usize {
            for mode in [LockMode::Read, LockMode::Write] {
                for measure in [Measure::Wait, Measure::Hold] {
                    for caller in [
                        named(&format!("of_one_{number}")),
                        named(&format!("of_many_{}", number % 7)),
                        Caller::Short,
                        Caller::Unknown,
                    ] {
                        let key = SeriesKey {
                            measure,
                            mode,
                            ..key(Some(number), caller)
                        };
                        record(&mut snapshot, key, number as u64);
                    }
                }
            }
            if number % 5 == 0 {
                callers.update(&snapshot);
            }
        }
        callers.update(&snapshot);
        callers.update(&snapshot);
        // `short`, `unknown` and `other` for each class, mode and measure.
        let most = SERIES_OF_CALLERS + 3 * (SYMBOLS + 1) * 2 * 2;
        let series = callers.told().series.len();
        assert!(series <= most, "{series} series");
        assert!(series > most / 2, "{series} series");
        assert_eq!(callers.functions.len(), ROOM * 10);
        let all: u64 = callers
            .told()
            .series
            .values()
            .map(Distribution::count)
            .sum();
        assert_eq!(all, 300 * 2 * 2 * 4);
    }

    /// What is counted between two states: symbol of the lock, caller, time.
    type Growth = Vec<(Option<usize>, Option<usize>, u64)>;

    fn growth() -> impl Strategy<Value = Growth> {
        let one = (
            prop::option::of(0..40_usize),
            prop::option::of(0..60_usize),
            0..10_000_000_000_u64,
        );
        prop::collection::vec(one, 0..25)
    }

    proptest! {
        #[test]
        fn nothing_goes_back_and_nothing_is_lost(
            most in 0..4_usize,
            states in prop::collection::vec((growth(), any::<bool>()), 1..10),
        ) {
            let mut callers = Callers::new(most);
            let mut snapshot = Snapshot::default();
            let mut before: BTreeMap<SeriesKey, Distribution> = BTreeMap::new();
            for (growth, is_late) in states {
                let earlier = snapshot.clone();
                for (symbol, caller, time) in growth {
                    let caller = caller.map_or(Caller::Short, |number| named(&format!("f{number}")));
                    record(&mut snapshot, key(symbol, caller), time);
                    snapshot.lost.waits += 1;
                }
                callers.update(&snapshot);
                let is_first = before.is_empty();
                for (key, now) in &callers.told.series {
                    let is_seen = is_first || before.contains_key(key) || now.is_empty();
                    prop_assert!(is_seen, "the begin of {key:?} is not seen");
                }
                if is_late {
                    // A state that comes in late changes nothing.
                    callers.update(&earlier);
                }
                for (key, then) in &before {
                    let now = callers.told.series.get(key);
                    prop_assert!(now.is_some(), "{key:?} is gone");
                    let now = now.expect("checked");
                    prop_assert_eq!(now.count(), now.since(then).count() + then.count());
                    prop_assert_eq!(now.sum().0, now.since(then).sum().0 + then.sum().0);
                }
                prop_assert!(callers.functions.len() <= ROOM * most);
                before.clone_from(&callers.told.series);
            }
            // What was kept back comes with the next state.
            callers.update(&snapshot);
            let all = |series: &mut dyn Iterator<Item = &Distribution>| {
                let mut all = Distribution::default();
                series.for_each(|counted| all.merge(counted));
                all
            };
            let expected = all(&mut snapshot.series.values());
            prop_assert_eq!(all(&mut callers.told.series.values()), expected);
            prop_assert_eq!(&callers.counted, &snapshot);
        }
    }
}
