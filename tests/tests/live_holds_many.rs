//! Tasks that hold many locks at once, more than there are slots for: whatever is kept where,
//! it is known to whom it belongs.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

#[expect(dead_code, reason = "live_holds needs more of it")]
mod tracker;

use std::{
    thread,
    time::{Duration, Instant},
};

use lockwatch::{
    kernel::{
        btf::Btf,
        lock_functions::tracepoint::{MMAP_LOCK_RELEASED, SCHED_PROCESS_FREE},
    },
    lock::LockMode,
    plan::{Feature, Mechanism, Offer, Purpose, State},
};
use lockwatch_ebpf::holds::{HOLD_WAYS, SLOTS};
use lockwatch_tests::{edge::made_up::MadeUp, trial};

use self::tracker::Tracker;

/// How long the end of a task may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Only programs at raw tracepoints can be run on request.
fn by_raw_tp(offer: &mut Offer) {
    for mechanism in [Mechanism::TpBtf, Mechanism::Fentry, Mechanism::Fexit] {
        offer.refused.insert(mechanism, "by the test".to_owned());
    }
}

/// All of these, as they are left out where they cannot be tried.
const SKIPPED: &str = "many-holds-of-mmap-lock";

fn is_skipped() -> bool {
    let types = Btf::from_sys().unwrap();
    let mut tracepoints = types.tracepoints();
    !tracepoints.any(|(_, name)| name == MMAP_LOCK_RELEASED)
        && trial::is_skipped(SKIPPED, "it has no tracepoints of mmap_lock")
}

fn mode(number: u8) -> LockMode {
    if number.is_multiple_of(2) {
        LockMode::Write
    } else {
        LockMode::Read
    }
}

/// Exactly these locks, each as `mode` says.
#[track_caller]
fn assert_has(tracker: &mut Tracker, task: &MadeUp, numbers: impl IntoIterator<Item = u8>) {
    let mmap_lock = tracker.mmap_lock;
    let mut found: Vec<_> = tracker
        .of_task(task.tid())
        .iter()
        .map(|hold| (hold.lock.0, hold.mode))
        .filter(|(lock, _)| *lock < MadeUp::lock(u8::MAX, mmap_lock))
        .collect();
    found.sort_unstable_by_key(|(lock, _)| *lock);
    let numbers = numbers.into_iter();
    let wanted: Vec<_> = numbers
        .map(|number| (MadeUp::lock(number, mmap_lock), mode(number)))
        .collect();
    assert_eq!(found, wanted);
}

/// Locks that fit whatever others have of the slots; some of them lie beside those always.
const MANY: u8 = SLOTS as u8;

const _: () = assert!(SLOTS > HOLD_WAYS);

/// Two tasks hold many, leave them in another order, and have some twice.
fn hold_many(tracker: &mut Tracker) {
    let mut tasks = [(); 2].map(|()| MadeUp::start(&tracker.plan).unwrap());
    for number in 0..MANY {
        for task in &mut tasks {
            task.acquires(number, mode(number)).unwrap();
        }
    }
    for task in &tasks {
        assert_has(tracker, task, 0..MANY);
    }
    let [one, other] = &mut tasks;
    for number in 0..6 {
        one.releases(number, mode(number)).unwrap();
    }
    assert_has(tracker, one, 6..MANY);
    assert_has(tracker, other, 0..MANY);
    // Where some are in slots and some beside.
    one.acquires(3, LockMode::Read).unwrap();
    assert_has(tracker, one, [3].into_iter().chain(6..MANY));
    for number in [3, 7] {
        one.acquires(number, LockMode::Read).unwrap();
        assert_has(
            tracker,
            one,
            [3].into_iter()
                .chain(6..MANY)
                .flat_map(|each| vec![each; 1 + usize::from(each == number)]),
        );
        one.releases(number, LockMode::Read).unwrap();
        assert_has(tracker, one, [3].into_iter().chain(6..MANY));
    }
    // What it does not have by this mode it keeps: somebody else's was released.
    one.releases(3, LockMode::Write).unwrap();
    one.releases(4, LockMode::Write).unwrap();
    for number in (6..MANY).rev().chain([3]) {
        one.releases(number, mode(number)).unwrap();
    }
    assert_has(tracker, one, []);
    // 3 and 4 were released by a task that did not have them like this.
    assert_has(
        tracker,
        other,
        (0..MANY).filter(|&number| number != 3 && number != 4),
    );
    // And again, with nothing left behind.
    one.acquires(8, mode(8)).unwrap();
    assert_has(tracker, one, [8]);
    let lock = MadeUp::lock(8, tracker.mmap_lock);
    drop(tasks);
    let deadline = Instant::now() + trial::bound(PATIENCE);
    while !tracker.of_lock(lock).is_empty() {
        assert!(Instant::now() < deadline, "tasks that have ended hold it");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn many_holds_are_kept_in_slots_and_beside() {
    if is_skipped() {
        return;
    }
    let mut tracker = Tracker::attach_by(by_raw_tp);
    hold_many(&mut tracker);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn where_ends_of_tasks_are_not_told_no_slot_is_taken() {
    if is_skipped() {
        return;
    }
    let mut tracker = Tracker::attach_by(|offer| {
        by_raw_tp(offer);
        offer.tracepoints.remove(SCHED_PROCESS_FREE);
    });
    let mut hooks = tracker.plan.hooks.iter();
    assert!(!hooks.any(|hook| hook.purpose == Purpose::TaskExit));
    if tracker.plan.state == State::TaskStorage {
        hold_many(&mut tracker);
    }
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn without_task_storage_many_holds_are_kept_by_thread() {
    if is_skipped() {
        return;
    }
    let mut tracker = Tracker::attach_by(|offer| {
        by_raw_tp(offer);
        let why = "by the test".to_owned();
        offer.lacking.insert(Feature::TaskStorage, why);
    });
    hold_many(&mut tracker);
}
