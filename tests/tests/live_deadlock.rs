//! `lockwatch diagnose` on deadlocks, and on the incident that it is for.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod diagnosed;

use lockwatch_tests::{trial::summary::Summary, truth::Scenario};

use self::diagnosed::{try_once, try_scenario};

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
