//! One lockup of the lab against `watch`.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::time::Duration;

use lockwatch_tests::{
    clock,
    trial::{self, lockup::Made},
    truth::{LockedUp, LockupScenario},
};

use super::{
    EXACT, HARD, Log, PATIENCE, SOFT, Setting, WATCHDOG_THRESH, Watch, hold, is_own_machine,
    soft_lockup_of_kernel,
};

/// `more`: further arguments of `watch`.
pub(crate) fn try_lockup(scenario: LockupScenario, more: &[&str]) {
    try_lockup_of(scenario, more, |_| ());
}

/// The same, with something done to `watch` before.
pub(crate) fn try_lockup_of(scenario: LockupScenario, more: &[&str], prepare: impl FnOnce(&Watch)) {
    let detector = if scenario.is_hard() {
        "hard-lockup"
    } else {
        "soft-lockup"
    };
    let hold = hold();
    let mut log = is_own_machine().then(Log::from_now);
    let _quick = is_own_machine()
        .then(|| Setting::set("/proc/sys/kernel/watchdog_thresh", WATCHDOG_THRESH))
        .flatten();
    // The waiters for its lock are not what this is about.
    let mut watch = Watch::start_with(SOFT, HARD, "600s", more);
    prepare(&watch);
    let Some(lab) = Made::lock_up(scenario, hold).unwrap() else {
        return;
    };
    // While it still spins.
    let left_ns = lab.truth.ends_at_ns.saturating_sub(clock::monotonic_ns());
    let limit = Duration::from_nanos(left_ns);
    if scenario.is_hard() && !machine_goes_on(lab.truth.ends_at_ns) {
        let name = scenario.name();
        assert!(
            trial::lab::is_expected(&name),
            "the whole machine stands still"
        );
        eprintln!("skipped: {name}: the whole machine stands still while it lasts");
        return;
    }
    watch.listen(detector, limit, |watch| !watch.findings.is_empty());
    let first = watch.findings[0].clone();
    assert_eq!(first.detector, detector, "{first:#?}");
    assert_eq!(first.reason, "found", "{first:#?}");
    let lockup = first.lockup.as_ref().unwrap();
    let wrong = lockup.complaints(&lab.truth, &first.stacks);
    assert!(
        wrong.is_empty(),
        "should be:\n  {}\nbut: {first:#?}\ntruth: {:#?}",
        wrong.join("\n  "),
        lab.truth
    );
    let truth = lab.truth.clone();
    let held = lab.outlast().unwrap().held_ns;
    watch.listen("its end", trial::bound(PATIENCE), |watch| {
        !watch.ended.is_empty()
    });
    let (number, _, length) = watch.ended[0].clone();
    assert_eq!(number, first.finding);
    let exact = trial::bound(EXACT).as_nanos() as u64;
    // Between two timers another task may get a turn, and then it has begun anew.
    let may_be_shorter = matches!(scenario, LockupScenario::SoftLockupTimers);
    assert!(
        length <= held + exact && (may_be_shorter || length + exact >= held),
        "it lasted {held} ns, not {length}"
    );
    watch.end(number);
    if let Some(log) = &mut log {
        of_kernel(log, &truth);
    }
}

/// Whether this CPU goes on while another takes no interrupts. Seen: a machine of two CPUs, of
/// which the other stands still with it, a loop in the shell too.
fn machine_goes_on(until_ns: u64) -> bool {
    const NAP: Duration = Duration::from_millis(100);
    let half_ns = until_ns.saturating_sub(clock::monotonic_ns()) / 2;
    let began_ns = clock::monotonic_ns();
    for _ in 0..5 {
        std::thread::sleep(NAP);
    }
    clock::monotonic_ns() - began_ns < half_ns
}

/// What the kernel says of a lockup is about the same CPU and task.
fn of_kernel(log: &mut Log, truth: &LockedUp) {
    let lines = log.lines();
    let told: Vec<_> = lines
        .iter()
        .filter_map(|line| soft_lockup_of_kernel(line))
        .collect();
    // Of a hard one it says that it was soft, once it is over, or nothing.
    assert!(
        truth.scenario.is_hard() || !told.is_empty(),
        "the kernel says nothing: {lines:#?}"
    );
    for (cpu, comm, tid) in told {
        assert_eq!(cpu, truth.cpu);
        if !matches!(truth.scenario, LockupScenario::SoftLockupTimers) {
            assert_eq!((comm, tid), (truth.task.comm.clone(), truth.task.tid));
        }
    }
}
