//! One `lockwatch diagnose` on a stall, and its verdict.

#![allow(dead_code, reason = "each test needs a part of it")]

use std::{process::Command, time::Duration};

use anyhow::Result;
use lockwatch_tests::{
    trial::{self, Ended, Lab, Program, Report, Span, Verdict, summary::Summary},
    truth::{Ready, Scenario},
};

/// It is killed then, if its deadline is no longer than half of it.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// More failed runs than this are not tried.
const FAILURES_SHOWN: usize = 3;

/// Lengths of the queue, in turn.
const WAITERS: [u32; 4] = [3, 4, 5, 6];

pub(crate) fn diagnose() -> Result<Ended> {
    diagnose_within(trial::bound(trial::PROMISE))
}

/// With this deadline; it is killed well after it.
pub(crate) fn diagnose_within(deadline: Duration) -> Result<Ended> {
    let mut command = Command::new(trial::lockwatch().unwrap());
    command.args(trial::diagnose_within(deadline));
    command.args(["--format", "json", "--threshold", "1ms"]);
    Program::run(&mut command, deadline.max(LIMIT / 2) * 2)
}

/// Everything there is to know about a failed run.
pub(crate) fn evidence(truth: &Ready, ended: &Ended) -> String {
    format!("truth: {truth:#?}\nlockwatch: {}", ended.describe())
}

/// What is wrong with one run; `None` if this kernel cannot have the stall. An error: there
/// was nothing to judge.
pub(crate) fn try_once(
    scenario: Scenario,
    waiters: u32,
    summary: &mut Summary,
) -> Result<Option<Vec<String>>> {
    let Some(lab) = Lab::raise_or_skip(scenario, waiters)? else {
        return Ok(None);
    };
    let ended = diagnose()?;
    let truth = lab.truth.clone();
    lab.finish()?;

    let span = Span {
        begun_ns: ended.begun_ns,
        ended_ns: ended.ended_ns,
    };
    let report = Report::read(&ended)?;
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
        verdict
            .wrong
            .push("it ended after the stall had".to_owned());
    }
    summary.add(&verdict, ended.took, ended.peak_rss_kib);
    if !verdict.wrong.is_empty() {
        eprintln!("{}", evidence(&truth, &ended));
    }
    Ok(Some(verdict.wrong))
}

pub(crate) fn try_scenario(scenario: Scenario) {
    let runs = trial::runs().unwrap();
    let mut summary = Summary::default();
    let mut failures = Vec::new();
    for (run, waiters) in (1..=runs).zip(WAITERS.into_iter().cycle()) {
        let wrong = match try_once(scenario, waiters, &mut summary) {
            Ok(Some(wrong)) => wrong,
            Ok(None) => return,
            Err(error) => vec![format!("{error:#}")],
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
