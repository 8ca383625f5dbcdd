//! One `lockwatch diagnose` on a stall, and its verdict.

#![allow(dead_code, reason = "each test needs a part of it")]

use std::{process::Command, time::Duration};

use lockwatch_tests::{
    trial::{self, Ended, Lab, Program, Report, Span, Verdict, summary::Summary},
    truth::{Ready, Scenario},
};

/// It is killed then.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// More failed runs than this are not tried.
const FAILURES_SHOWN: usize = 3;

/// Lengths of the queue, in turn.
const WAITERS: [u32; 4] = [3, 4, 5, 6];

pub(crate) fn diagnose() -> Ended {
    let mut command = Command::new(trial::lockwatch().unwrap());
    command.args(trial::diagnose());
    command.args(["--format", "json", "--threshold", "1ms"]);
    Program::run(&mut command, LIMIT).unwrap()
}

/// Everything there is to know about a failed run.
pub(crate) fn evidence(truth: &Ready, ended: &Ended) -> String {
    format!("truth: {truth:#?}\nlockwatch: {}", ended.describe())
}

/// What is wrong with one run; `None` if this kernel cannot have the stall.
pub(crate) fn try_once(
    scenario: Scenario,
    waiters: u32,
    summary: &mut Summary,
) -> Option<Vec<String>> {
    let lab = Lab::raise_or_skip(scenario, waiters).unwrap()?;
    let ended = diagnose();
    let truth = lab.truth.clone();
    lab.finish().unwrap();

    let span = Span {
        begun_ns: ended.begun_ns,
        ended_ns: ended.ended_ns,
    };
    let report = Report::read(&ended).unwrap();
    let mut verdict = Verdict::on(&report, &truth, span);
    if ended.code() != Some(1) {
        verdict.wrong.push(format!("exit status {}", ended.status));
    }
    // One of two CPUs is taken away by this one.
    let slow = if scenario == Scenario::Granted { 2 } else { 1 };
    if ended.took > slow * trial::bound(trial::PROMISE) {
        verdict.wrong.push(format!("it took {:?}", ended.took));
    }
    if truth.ends_at_ns < ended.ended_ns {
        verdict.wrong.push("it ended after the stall had".into());
    }
    summary.add(&verdict, ended.took, ended.peak_rss_kib);
    if !verdict.wrong.is_empty() {
        eprintln!("{}", evidence(&truth, &ended));
    }
    Some(verdict.wrong)
}

pub(crate) fn try_scenario(scenario: Scenario) {
    let runs = trial::runs().unwrap();
    let mut summary = Summary::default();
    let mut failures = Vec::new();
    for (run, waiters) in (1..=runs).zip(WAITERS.into_iter().cycle()) {
        let Some(wrong) = try_once(scenario, waiters, &mut summary) else {
            return;
        };
        if !wrong.is_empty() {
            eprintln!("run {run} of {runs} is wrong:\n  {}", wrong.join("\n  "));
            failures.push(run);
        }
        // The first few say what there is to say.
        if failures.len() == FAILURES_SHOWN {
            break;
        }
    }
    eprintln!("{}: {summary}", scenario.name());
    assert!(
        failures.is_empty(),
        "{}: runs {failures:?} of {runs} are wrong, see above",
        scenario.name()
    );
}
