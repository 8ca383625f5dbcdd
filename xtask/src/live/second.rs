//! The second try: each live test that fails gets one, and what passes then is flaky.

use super::run::TestRun;
use crate::process::say;

/// More flaky tests than this in a run, on all its kernels together, are a failure: a defect
/// that shows now and then must not hide behind second tries.
pub(crate) const MOST_FLAKY: usize = 3;

/// Gives the failed ones of these tests a second try: `again` runs them and says how they went.
///
/// With more than [`MOST_FLAKY`] of them, no second try could make the run pass, and none is
/// made.
pub(crate) fn give(
    place: &str,
    runs: &mut [TestRun],
    again: impl FnOnce(&[&TestRun]) -> Vec<TestRun>,
) {
    let failed: Vec<&TestRun> = runs.iter().filter(|run| run.failure().is_some()).collect();
    if failed.is_empty() {
        return;
    }
    if failed.len() > MOST_FLAKY {
        say(format_args!(
            "{place}: {} tests have failed, too many for a second try",
            failed.len()
        ));
        return;
    }
    for run in &failed {
        say(format_args!(
            "{place}: {} is tried again: {}",
            run.full_name(),
            run.failure().unwrap_or_default()
        ));
    }
    for second in again(&failed) {
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
        let mut asked = Vec::new();
        give("6.12", &mut runs, |failed| {
            asked.extend(failed.iter().map(|run| run.name.clone()));
            // The machine broke before the last one.
            vec![run("two", None), run("three", Some("wrong again"))]
        });
        assert_eq!(asked, ["two", "three", "four"]);
        let flaky: Vec<bool> = runs.iter().map(TestRun::is_flaky).collect();
        assert_eq!(flaky, [false, true, false, false]);
        let failures: Vec<Option<&str>> = runs.iter().map(TestRun::failure).collect();
        assert_eq!(failures, [None, None, Some("wrong again"), Some("wrong")]);
        assert_eq!(runs[2].first.as_ref().unwrap().why, "wrong");
        assert_eq!(runs[3].first, None);
    }

    #[test]
    fn nothing_is_tried_again_where_it_could_not_help() {
        let mut passed = [run("one", None)];
        give("6.12", &mut passed, |_| panic!("nothing has failed"));
        let mut many: Vec<TestRun> = (0..=MOST_FLAKY)
            .map(|number| run(&number.to_string(), Some("wrong")))
            .collect();
        give("6.12", &mut many, |_| panic!("too many have failed"));
        assert!(many.iter().all(|run| run.failure().is_some()));
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
