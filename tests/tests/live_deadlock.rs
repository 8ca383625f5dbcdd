//! `lockwatch diagnose` on deadlocks, and on the incident that it is for.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod diagnosed;

use std::time::Duration;

use lockwatch_tests::{
    trial::{self, Lab, summary::Summary},
    truth::Scenario,
};

use self::diagnosed::{diagnose, try_once, try_scenario};

/// Lengths of the queue, up to that of the incident.
const CROWDS: [u32; 4] = [2, 10, 100, 1469];

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_daemon_that_enters_the_directory_its_client_holds() {
    try_scenario(Scenario::DeadlockFuseDirectory);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn two_daemons_that_enter_the_directories_of_each_others_clients() {
    try_scenario(Scenario::DeadlockFuseTwoMounts);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_daemon_behind_a_writer_that_waits_for_its_client() {
    try_scenario(Scenario::DeadlockBehindWriter);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_reader_behind_a_writer_that_waits_for_the_same_reader() {
    try_scenario(Scenario::DeadlockRecursiveReader);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_daemon_of_which_another_thread_will_answer_is_no_deadlock() {
    try_scenario(Scenario::DaemonThreads);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn the_incident_at_every_size() {
    let mut summary = Summary::default();
    for waiters in CROWDS {
        let wrong = try_once(Scenario::Incident, waiters, &mut summary)
            .unwrap()
            .unwrap();
        assert!(
            wrong.is_empty(),
            "with {waiters} waiters:\n  {}",
            wrong.join("\n  ")
        );
    }
    eprintln!("incident: {summary}");
}

/// From the start of the program to its end, whatever it has to load first.
const PROMISE: Duration = Duration::from_millis(300);
const TRIES: usize = 7;

/// The median of so many runs, all of which must find a stall if there `is_one`.
fn median(is_one: bool) -> Duration {
    let mut took: Vec<Duration> = (0..TRIES)
        .map(|_| {
            let ended = diagnose().unwrap();
            assert!(!is_one || ended.code() == Some(1), "{}", ended.describe());
            ended.took
        })
        .collect();
    took.sort_unstable();
    took[TRIES / 2]
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn the_incident_is_told_in_a_third_of_a_second() {
    // What a diagnosis costs on this machine before there is anything to tell: one look
    // without a pause, instead of two.
    let nothing = median(false);
    let lab = Lab::raise(Scenario::Incident, CROWDS[3]).unwrap();
    let incident = median(true);
    lab.finish().unwrap();
    eprintln!("nothing {nothing:?}, the incident {incident:?}");
    let promise = PROMISE.max(nothing * 2);
    // An emulated machine is slower by a factor that nobody knows.
    if trial::bound(PROMISE) == PROMISE {
        assert!(incident < promise, "{incident:?}, with nothing {nothing:?}");
    }
}
