//! Hold tracking at the edges of a lock's life: whoever is said to hold it does, and
//! nobody is missing whom the test can name.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod tracker;

use std::{
    path::Path,
    process::Command,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use lockwatch::{
    kernel::{btf::Btf, lock_functions::tracepoint::MMAP_LOCK_RELEASED},
    lock::LockMode,
    plan::{Feature, Hook, Mechanism, Offer, Purpose, Subject},
    survey::TracedHold,
};
use lockwatch_tests::{
    edge::{
        actor::{Actor, BESIDE, Part},
        agitator::{Agitator, Place},
        killed::Killed,
        reborn::Reborn,
    },
    trial::{self, Lab},
    truth::{Ready, Scenario},
};

use self::tracker::Tracker;

/// How long an edge may take to happen.
const PATIENCE: Duration = Duration::from_secs(10);

/// Comm of the actors whose locks are interfered with.
const COMM: &std::ffi::CStr = c"edge-act";

/// As the test, so that what holds a lock for an instant is met in the middle of it.
fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + trial::bound(PATIENCE);
    while !happened() {
        assert!(Instant::now() < deadline, "not seen: {what}");
    }
}

fn modes(holds: &[TracedHold]) -> Vec<LockMode> {
    holds.iter().map(|hold| hold.mode).collect()
}

/// The holder that the lab made, for read and once, is the only one.
#[track_caller]
fn assert_held_by(tracker: &mut Tracker, lock: u64, truth: &Ready) {
    let found: Vec<_> = tracker
        .of_lock(lock)
        .iter()
        .map(|hold| (hold.task.tid.0 as i32, hold.mode))
        .collect();
    let holders: Vec<_> = truth
        .holders
        .iter()
        .map(|holder| (holder.tid.0, LockMode::Read))
        .collect();
    assert_eq!(found, holders, "lock {lock:#x}; truth: {truth:#?}");
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_lock_taken_without_waiting_is_held() {
    let mut tracker = Tracker::attach();
    let agitator = Agitator::attach(COMM, Place::Nowhere, tracker.means).unwrap();
    let actor = Actor::start(COMM, Part::Fault).unwrap();
    let mut seen = 0;
    until("a lock held by a page fault of the kernel", || {
        let (before, holds, after) = (actor.turns(), tracker.of_task(actor.tid()), actor.turns());
        if before % 2 == 1 && before == after {
            assert!(
                modes(&holds).iter().all(|mode| *mode == LockMode::Read),
                "{holds:#?}"
            );
            seen += holds.len();
        }
        seen >= 3
    });
    let count = agitator.count().unwrap();
    assert!(
        count.taken > 0,
        "it was never asked for without waiting: {count:?}"
    );
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn an_attempt_that_fails_is_no_hold() {
    let mut tracker = Tracker::attach();
    if tracker.preempt_rt
        && trial::is_skipped("an_attempt_that_fails_is_no_hold", tracker::NOT_ON_RT)
    {
        return;
    }
    let agitator = Agitator::attach(c"lab-w1", Place::AtSwitch, tracker.means).unwrap();
    let lab = Lab::raise(Scenario::MmapReadHeld, 3).unwrap();
    until("a lock that is refused to the first in its queue", || {
        agitator.count().unwrap().refused > 0
    });
    let lock = agitator.refused(tracker.mmap_lock).unwrap();
    assert_held_by(&mut tracker, lock, &lab.truth);
    drop(agitator);
    lab.finish().unwrap();
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_recursive_reader_holds_until_its_last_release() {
    let mut tracker = Tracker::attach();
    let agitator = Agitator::attach(c"lab-holder", Place::UnderIt, tracker.means).unwrap();
    let lab = Lab::raise(Scenario::MmapReadHeld, 3).unwrap();
    let count = agitator.count().unwrap();
    assert!(count.nested > 0, "it never read recursively: {count:?}");
    let lock = agitator.taken(tracker.mmap_lock).unwrap();
    assert_held_by(&mut tracker, lock, &lab.truth);
    drop(agitator);
    lab.finish().unwrap();
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_downgraded_lock_is_held_for_read() {
    let mut tracker = Tracker::attach();
    let actor = Actor::start(COMM, Part::Unmap).unwrap();
    let mut seen = [0, 0];
    until("a lock held for read by an unmap", || {
        let (before, holds, after) = (actor.turns(), tracker.of_task(actor.tid()), actor.turns());
        // Nothing else in the midst of an unmap takes a lock for read.
        if before % 2 == 1 && before == after {
            for mode in modes(&holds) {
                seen[usize::from(mode == LockMode::Write)] += 1;
            }
        }
        seen[0] >= 3
    });
    eprintln!(
        "unmapping: seen holding {} times for read, {} for write",
        seen[0], seen[1]
    );
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_wait_given_up_for_an_address_space_leaves_nothing() {
    let mut tracker = Tracker::attach();
    // Only for the lock's address.
    let agitator = Agitator::attach(c"lab-holder", Place::UnderIt, tracker.means).unwrap();
    let lab = Lab::raise(Scenario::MmapReadHeld, 1).unwrap();
    let lock = agitator.taken(tracker.mmap_lock).unwrap();
    drop(agitator);
    let target = lab.truth.lock.tgid.unwrap().0;
    let reader = format!("read line < /proc/{target}/cmdline");
    let writer = format!("echo 1 > /proc/{target}/clear_refs");
    for wait in [reader, writer] {
        let killed = Killed::in_its_wait(Command::new("/bin/sh").args(["-c", &wait])).unwrap();
        let holds = tracker.of_task(killed.tid());
        assert_eq!(holds, [], "{wait}");
        assert_held_by(&mut tracker, lock, &lab.truth);
    }
    lab.finish().unwrap();
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_wait_given_up_for_a_directory_leaves_nothing() {
    let test = "a_wait_given_up_for_a_directory_leaves_nothing";
    let mut tracker = Tracker::attach();
    if !tracker.sees_all() {
        let why = "only mmap_lock is tracked here";
        // Only a policy of the host can be lifted. Which kernel has one is not known
        // beforehand; any other reason must be.
        if tracker
            .plan
            .gaps_in(Subject::Holds)
            .any(|gap| gap.remedy.is_some())
        {
            eprintln!("skipped: {test}: {why}, by a policy of this host");
            return;
        }
        if trial::is_skipped(test, why) {
            return;
        }
    }
    let lab = Lab::raise(Scenario::InodeWriteHeld, 1).unwrap();
    let truth = &lab.truth;
    let holder = truth.holders[0].tid;
    let inside = truth.lock.path.as_ref().unwrap();
    let directory = format!("{}{inside}", truth.mount);
    let killed = Killed::in_its_wait(Command::new("ls").arg(&directory)).unwrap();
    assert_eq!(tracker.of_task(killed.tid()), [], "ls {directory}");
    let held = tracker.of_task(holder);
    assert!(modes(&held).contains(&LockMode::Write), "{held:#?}");
    for hold in held {
        let lock = tracker.of_lock(hold.lock.0);
        assert_eq!(lock.len(), 1, "{lock:#?}");
    }
    lab.finish().unwrap();
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_lock_released_by_another_task_is_held_no_more() {
    let mut tracker = Tracker::attach();
    let test = "a_lock_released_by_another_task_is_held_no_more";
    if tracker.preempt_rt && trial::is_skipped(test, tracker::NOT_ON_RT) {
        return;
    }
    let agitator = Agitator::attach(COMM, Place::AtSwitch, tracker.means).unwrap();
    let actor = Actor::start(COMM, Part::Nap).unwrap();
    until("releases by other tasks", || {
        agitator.count().unwrap().elsewhere >= 10
    });
    drop(agitator);
    actor.done(10, trial::bound(PATIENCE)).unwrap();
    assert_eq!(tracker.of_task(actor.tid()), []);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_release_in_the_name_of_another_holder_accuses_nobody() {
    let mut tracker = Tracker::attach();
    let test = "a_release_in_the_name_of_another_holder_accuses_nobody";
    if tracker.preempt_rt && trial::is_skipped(test, tracker::NOT_ON_RT) {
        return;
    }
    let mut elsewhere = 0;
    for round in 1..=20 {
        let actor = Actor::start(COMM, Part::FaultBesideNap).unwrap();
        let napping = actor.beside(trial::bound(PATIENCE)).unwrap();
        let agitator = Agitator::attach(BESIDE, Place::AtSwitch, tracker.means).unwrap();
        until("a release by another task", || {
            agitator.count().unwrap().elsewhere > 0
        });
        elsewhere += agitator.count().unwrap().elsewhere;
        drop(agitator);
        actor.done(1, trial::bound(PATIENCE)).unwrap();
        // A kernel that skips a program may leave one whose release was missed: it is said
        // to be unsure then, and names nobody.
        let mut holds = tracker.of_task(napping);
        holds.retain(|hold| hold.is_sure);
        assert_eq!(
            holds,
            [],
            "round {round}: {} sleeps, and holds nothing",
            napping.0
        );
    }
    eprintln!("{elsewhere} releases in the name of others");
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn tasks_that_end_leave_nothing() {
    let mut tracker = Tracker::attach();
    let agitator = Agitator::attach(BESIDE, Place::AtSwitch, tracker.means).unwrap();
    let breeder = Actor::start(COMM, Part::Breed).unwrap();
    breeder.done(2000, trial::bound(PATIENCE)).unwrap();
    drop((breeder, agitator));
    let dead = |holds: &[TracedHold]| -> Vec<TracedHold> {
        let is_dead =
            |hold: &&TracedHold| !Path::new(&format!("/proc/{}", hold.task.tid.0)).exists();
        holds.iter().filter(is_dead).copied().collect()
    };
    // One that has died since is not in the second look.
    let first = dead(&tracker.all());
    let second = dead(&tracker.all());
    let stayed: Vec<_> = first.iter().filter(|hold| second.contains(hold)).collect();
    assert!(stayed.is_empty(), "{stayed:#?}");
    if let Some(entries) = tracker::entries() {
        let deadline = Instant::now() + trial::bound(PATIENCE);
        let mut kept = entries;
        while kept > tracker::live_tasks() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(100));
            kept = tracker::entries().unwrap();
        }
        assert!(
            kept <= tracker::live_tasks(),
            "{kept} tasks are kept, {} live",
            tracker::live_tasks()
        );
        eprintln!("{kept} tasks kept of {} alive", tracker::live_tasks());
    }
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_new_task_has_nothing_of_an_old_one_with_its_number() {
    let mut tracker = Tracker::attach();
    let agitator = Agitator::attach(COMM, Place::AtSwitch, tracker.means).unwrap();
    let actor = Actor::start(COMM, Part::Nap).unwrap();
    actor.done(20, trial::bound(PATIENCE)).unwrap();
    let number = actor.tid();
    drop((actor, agitator));
    let _reborn = Reborn::with(number).unwrap();
    assert_eq!(tracker.of_task(number), []);
}

/// As where all ways that know types are refused.
fn refuse_typed(offer: &mut Offer) {
    for mechanism in [Mechanism::TpBtf, Mechanism::Fentry, Mechanism::Fexit] {
        offer.refused.insert(mechanism, "by the test".to_owned());
    }
}

/// Nor is there task storage.
fn refuse_typed_and_storage(offer: &mut Offer) {
    refuse_typed(offer);
    let why = "by the test".to_owned();
    offer.lacking.insert(Feature::TaskStorage, why);
}

/// The holder that the lab made is found until it lets go.
fn follow_by_raw_tp(test: &str, less: fn(&mut Offer)) {
    let types = Btf::from_sys().unwrap();
    let has_tracepoints = types
        .tracepoints()
        .any(|(_, name)| name == MMAP_LOCK_RELEASED);
    if !has_tracepoints && trial::is_skipped(test, "it has no tracepoints of mmap_lock") {
        return;
    }
    let mut tracker = Tracker::attach_by(less);
    let is_raw = |hook: &Hook| hook.mechanism == Mechanism::RawTp;
    assert!(tracker.plan.hooks.iter().all(is_raw), "{:#?}", tracker.plan);
    let lab = Lab::raise(Scenario::MmapReadHeld, 3).unwrap();
    let holder = lab.truth.holders[0].clone();
    let held = tracker.of_task(holder.tid);
    assert_eq!(modes(&held), [LockMode::Read], "{held:#?}");
    let lock = held[0].lock.0;
    assert_held_by(&mut tracker, lock, &lab.truth);
    lab.finish().unwrap();
    until("a lock that nobody holds any more", || {
        tracker.of_lock(lock).is_empty()
    });
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn without_typed_tracepoints_holds_are_kept_in_task_storage() {
    follow_by_raw_tp(
        "without_typed_tracepoints_holds_are_kept_in_task_storage",
        refuse_typed,
    );
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn without_typed_tracepoints_holds_are_kept_by_thread() {
    follow_by_raw_tp(
        "without_typed_tracepoints_holds_are_kept_by_thread",
        refuse_typed_and_storage,
    );
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn without_typed_tracepoints_tasks_that_end_are_taken_out() {
    const THREADS: usize = 400;
    let tracker = Tracker::attach_by(|offer| {
        let why = "by the test".to_owned();
        offer.refused.insert(Mechanism::TpBtf, why.clone());
        offer.lacking.insert(Feature::TaskStorage, why);
    });
    let is_exit = |hook: &&Hook| hook.purpose == Purpose::TaskExit;
    let exit = tracker.plan.hooks.iter().find(is_exit);
    assert_eq!(exit.unwrap().mechanism, Mechanism::RawTp);
    let alive = Barrier::new(THREADS + 1);
    let most = thread::scope(|threads| {
        // Each maps its signal stack, for which it takes the mmap_lock.
        for _ in 0..THREADS {
            threads.spawn(|| {
                alive.wait();
                alive.wait();
            });
        }
        alive.wait();
        let most = tracker::entries().unwrap();
        alive.wait();
        most
    });
    assert!(most >= THREADS, "{most} tasks were kept");
    // A thread is gone a moment after it has been joined.
    let deadline = Instant::now() + trial::bound(PATIENCE);
    let (mut kept, mut live) = (usize::MAX, THREADS);
    while (live >= THREADS || kept > live) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(100));
        (kept, live) = (tracker::entries().unwrap(), tracker::live_tasks());
    }
    assert!(live < THREADS, "{live} live");
    assert!(kept <= live, "{kept} tasks are kept, {live} live");
}
