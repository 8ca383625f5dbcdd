//! `lockwatch watch` while a CPU is locked up, or tasks hang without a lock.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod hangs;

use std::time::Duration;

use lockwatch_tests::{
    trial::{
        self,
        lockup::{Finding, Made},
    },
    truth::{Hung, LockupScenario, Scenario, Tid},
};

use self::hangs::{
    PATIENCE, PROMPT, Watch,
    lockup::{try_lockup, try_lockup_of},
};

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_task_that_spins_under_its_mmap_lock() {
    try_lockup(LockupScenario::SoftLockupTask, &[]);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_softirq_that_receives_a_packet_for_ever() {
    try_lockup(LockupScenario::SoftLockupSoftirq, &[]);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn timers_that_have_piled_up() {
    try_lockup(LockupScenario::SoftLockupTimers, &[]);
}

/// The kernel does not move a real-time thread away from a CPU whose task is not one.
#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_real_time_watch_tells_of_a_locked_cpu_too() {
    try_lockup(LockupScenario::SoftLockupSoftirq, &["--priority", "50"]);
}

/// As it comes about by chance: the locked CPU keeps the thread that is to look into it.
#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_softirq_on_the_cpu_of_the_surveyor() {
    let more = ["--priority", "50"];
    try_lockup_of(LockupScenario::SoftLockupSoftirq, &more, |watch| {
        watch.bind_to_victim("survey");
    });
}

fn try_hung(scenario: Scenario) {
    const TASKS: u32 = 5;
    let threshold = Duration::from_secs(2);
    // Told first when the first of them is past the threshold, and again at twice that age.
    let limit = 2 * threshold + trial::bound(PROMPT);
    let mut watch = Watch::start("2s");
    let Some(lab) = Made::hang(scenario, TASKS, limit + Duration::from_secs(1)).unwrap() else {
        return;
    };
    watch.listen("hung-task", limit, |watch| {
        let has_all = |finding: &Finding| finding.tasks.len() == TASKS as usize;
        watch.findings.iter().any(has_all)
    });
    let first = watch.findings[0].clone();
    assert_hung(watch.findings.last().unwrap(), &lab.truth);
    for finding in &watch.findings {
        assert_eq!(finding.finding, first.finding, "{finding:#?}");
    }
    lab.finish().unwrap();
    watch.listen("its end", trial::bound(PATIENCE), |watch| {
        !watch.ended.is_empty()
    });
    watch.end(first.finding);
}

/// All of the tasks and no other are in one finding.
fn assert_hung(finding: &Finding, truth: &Hung) {
    assert_eq!(finding.detector, "hung-task", "{finding:#?}");
    assert!(finding.lockup.is_none(), "{finding:#?}");
    let hung = finding.hung.as_ref().unwrap().to_string();
    let mut found = finding.tasks.clone();
    found.sort();
    let mut tasks: Vec<Tid> = truth.tasks.iter().map(|task| task.tid).collect();
    tasks.sort();
    assert_eq!(found, tasks, "{finding:#?}\n{hung}");
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn clients_of_fuse_that_hang_after_a_fatal_signal() {
    try_hung(Scenario::HungFuseKilled);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn tasks_that_hang_for_one_page() {
    try_hung(Scenario::HungFolio);
}
