//! A host whose locks are waited for, in numbers.

use lockwatch::{
    export::{Cost, Hang, Root, Stalls, State},
    latency::{Caller, CountsLost, Distribution, Measure, SeriesKey},
    lock::{LockClass, LockKind, LockMode},
    task::Nanos,
};
use std::time::Duration;

/// A name with all that has to be escaped, and some that must not be.
pub(crate) const ODD: &str = "q\"uo\\te {x=\"y\"}\n\\n \u{fffd}é#";

/// What waits of [`many_waits`] are called.
pub(crate) fn busy() -> SeriesKey {
    SeriesKey {
        measure: Measure::Wait,
        class: LockClass::MmapLock,
        kind: LockKind::Rwsem,
        mode: LockMode::Read,
        caller: Caller::Function("do_user_addr_fault".to_owned()),
    }
}

/// Waits from 1 µs to 100 s, as many of each decade.
pub(crate) fn many_waits() -> Distribution {
    let mut waits = Distribution::default();
    for step in 0..8000 {
        let time = 1e3 * 10_f64.powf(f64::from(step) / 1000.0);
        waits.record(Nanos(time as u64));
    }
    waits
}

/// All that can be exported, in a time of trouble.
pub(crate) fn trouble() -> State {
    let mut state = State {
        since: "2026-05-01T10:00:00Z".parse().expect("a time"),
        stalls: Stalls {
            threshold: Nanos(100_000_000),
            total: 5,
            standing: 2,
            longest_standing: Nanos(372_000_000_000),
            longest: Nanos(372_000_000_000),
        },
        blocked_tasks: 1469,
        roots: vec![Root {
            class: LockClass::MmapLock,
            comm: ODD.to_owned(),
            stuck: "block-io".to_owned(),
            blocked_tasks: 1469,
        }],
        hangs: vec![Hang {
            detector: "hung-task",
            total: 3,
            standing: 1,
        }],
        lost: vec![("events", 2)],
        cost: Cost {
            cpu: Duration::from_millis(1250),
            resident_bytes: 12_000_000,
            map_bytes: 9_000_000,
        },
        ..State::default()
    };
    state.latency.lost = CountsLost { waits: 1, holds: 0 };
    state.latency.series.insert(busy(), many_waits());
    let odd = SeriesKey {
        class: LockClass::Symbol(ODD.to_owned()),
        kind: LockKind::Mutex,
        mode: LockMode::Write,
        caller: Caller::Short,
        ..busy()
    };
    let held = SeriesKey {
        measure: Measure::Hold,
        ..busy()
    };
    for key in [odd, held] {
        let counted = state.latency.series.entry(key).or_default();
        counted.record(Nanos(5_000));
        counted.record(Nanos(7_000_000));
    }
    state
}

/// A little more of everything: counters that stand still have no rate.
pub(crate) fn goes_on(state: &mut State) {
    for counted in state.latency.series.values_mut() {
        counted.record(Nanos(3_000_000));
    }
    state.stalls.total += 1;
    state.latency.lost.waits += 1;
    for (_, lost) in &mut state.lost {
        *lost += 1;
    }
    for hang in &mut state.hangs {
        hang.total += 1;
    }
    state.cost.cpu += Duration::from_millis(1);
}
