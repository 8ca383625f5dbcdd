//! The second try: each live test that fails gets one, and what passes then is flaky.

use super::run::TestRun;
use crate::process::say;

/// More flaky tests than this in a run, on all its kernels together, are a failure: a defect
/// that shows now and then must not hide behind second tries.
pub(crate) const MOST_FLAKY: usize = 3;

/// The tests that get a second try, after all the others: each of these that has failed, by
/// target and name.
///
/// With more than [`MOST_FLAKY`] of them, no second try could make the run pass, and none is
/// made.
pub(crate) fn wanted(place: &str, runs: &[TestRun]) -> Vec<(String, String)> {
    let failed: Vec<(&TestRun, &str)> = runs
        .iter()
        .filter_map(|run| Some((run, run.failure()?)))
        .collect();
    if failed.len() > MOST_FLAKY {
        let number = failed.len();
        say(format_args!(
            "{place}: {number} tests have failed, too many for a second try"
        ));
        return Vec::new();
    }
    for (run, why) in &failed {
        say(format_args!(
            "{place}: {} is tried again: {why}",
            run.full_name()
        ));
    }
    let name = |(run, _): (&TestRun, &str)| (run.target.clone(), run.name.clone());
    failed.into_iter().map(name).collect()
}

/// Lets the failed tests know how their second tries went.
pub(crate) fn take(runs: &mut [TestRun], seconds: Vec<TestRun>) {
    for second in seconds {
        let is_first = |run: &&mut TestRun| {
            run.failure().is_some() && (&run.target, &run.name) == (&second.target, &second.name)
        };
        if let Some(first) = runs.iter_mut().find(is_first) {
            first.tried_again(second);
        }
    }
}

/// What is said of a run with too many flaky tests; `None`: there are few enough.
pub(crate) fn too_many(flaky: usize) -> Option<String> {
    (flaky > MOST_FLAKY).then(|| format!("{flaky} tests were flaky, more than {MOST_FLAKY}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::run::Verdict;

    fn run(name: &str, failure: Option<&str>) -> TestRun {
        let mut run = TestRun::failed("live", name, failure.unwrap_or_default());
        if failure.is_none() {
            run.verdict = Verdict::Passed;
        }
        run
    }

    #[test]
    fn each_failed_test_is_tried_once_more_and_no_other() {
        let mut runs = [
            run("one", None),
            run("two", Some("late")),
            run("three", Some("wrong")),
            run("four", Some("wrong")),
        ];
        let wanted = wanted("6.12", &runs);
        let names: Vec<&str> = wanted.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["two", "three", "four"]);
        // The machine broke before the last one.
        take(
            &mut runs,
            vec![run("two", None), run("three", Some("wrong again"))],
        );
        let flaky: Vec<bool> = runs.iter().map(TestRun::is_flaky).collect();
        assert_eq!(flaky, [false, true, false, false]);
        let failures: Vec<Option<&str>> = runs.iter().map(TestRun::failure).collect();
        assert_eq!(failures, [None, None, Some("wrong again"), Some("wrong")]);
        assert_eq!(runs[2].first.as_ref().unwrap().why, "wrong");
        assert_eq!(runs[3].first, None);
    }

    #[test]
    fn nothing_is_tried_again_where_it_could_not_help() {
        assert!(wanted("6.12", &[run("one", None)]).is_empty());
        let many: Vec<TestRun> = (0..=MOST_FLAKY)
            .map(|number| run(&number.to_string(), Some("wrong")))
            .collect();
        assert_eq!(wanted("6.12", &many[1..]).len(), MOST_FLAKY);
        assert!(wanted("6.12", &many).is_empty());
    }

    #[test]
    fn some_flaky_tests_are_too_many() {
        assert_eq!(too_many(MOST_FLAKY), None);
        assert_eq!(
            too_many(MOST_FLAKY + 1).as_deref(),
            Some("4 tests were flaky, more than 3")
        );
    }
}
