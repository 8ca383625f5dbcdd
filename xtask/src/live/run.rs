//! How one live test went, wherever it ran.

use std::mem;
use std::time::Duration;

/// How one test went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Passed,
    /// Why, in one line.
    Failed(String),
    /// Why, in one line.
    Skipped(String),
}

/// One test on one kernel; the second try, if it was tried twice.
#[derive(Clone, Debug)]
pub(crate) struct TestRun {
    pub(crate) target: String,
    pub(crate) name: String,
    pub(crate) took: Duration,
    pub(crate) verdict: Verdict,
    /// All that it has said.
    pub(crate) output: String,
    /// The first try, if that has failed and there was a second one.
    pub(crate) first: Option<Failure>,
}

/// A try that has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// In one line.
    pub(crate) why: String,
    /// All that the test has said.
    pub(crate) output: String,
}

/// Before the reason, in what a test says that leaves itself out (`LOCKWATCH_MAY_SKIP`).
const SKIPPED: &str = "skipped: ";

/// Before what a test says of a stall that the lab did not make as meant, and made again
/// (tests/src/trial/lab.rs).
const MADE_AGAIN: &str = "made again: ";

/// Before an error that a test step unwrapped; it says nothing.
const UNWRAPPED: &str = "called `Result::unwrap()` on an `Err` value: ";

/// The exit code of what was killed, as a shell has it: 128 and SIGKILL.
pub(crate) const KILLED: i32 = 137;

/// In the line in which a test says where it has failed; the reason follows.
pub(crate) const PANICKED: &str = "panicked at ";

impl TestRun {
    /// A test that has not ended.
    pub(crate) fn failed(target: &str, name: &str, why: impl Into<String>) -> Self {
        Self {
            target: target.to_owned(),
            name: name.to_owned(),
            took: Duration::ZERO,
            verdict: Verdict::Failed(why.into()),
            output: String::new(),
            first: None,
        }
    }

    /// `target::name`
    pub(crate) fn full_name(&self) -> String {
        format!("{}::{}", self.target, self.name)
    }

    /// Why it has failed, if it has.
    pub(crate) fn failure(&self) -> Option<&str> {
        match &self.verdict {
            Verdict::Failed(why) => Some(why),
            Verdict::Passed | Verdict::Skipped(_) => None,
        }
    }

    /// It has failed, and passed when it was tried once more.
    pub(crate) fn is_flaky(&self) -> bool {
        self.verdict == Verdict::Passed && self.first.is_some()
    }

    /// Takes the second try of a test that has failed. Only one that passes makes up for it.
    pub(crate) fn tried_again(&mut self, second: Self) {
        let first = mem::replace(self, second);
        if let Verdict::Skipped(why) = &self.verdict {
            let why = format!("it failed at first, and then left itself out: {why}");
            self.verdict = Verdict::Failed(why);
        }
        if let Verdict::Failed(why) = first.verdict {
            self.first = Some(Failure {
                why,
                output: first.output,
            });
        }
    }

    /// How many stalls had to be made again.
    pub(crate) fn made_again(&self) -> usize {
        self.output
            .lines()
            .filter(|line| line.starts_with(MADE_AGAIN))
            .count()
    }

    /// How it went, for a line of progress. Whether it may be skipped is told in the end.
    pub(crate) fn progress(&self) -> String {
        let word = match self.verdict {
            Verdict::Passed => "ok",
            Verdict::Failed(_) => "FAILED",
            Verdict::Skipped(_) => "skipped",
        };
        let took = self.took.as_secs_f64();
        format!("{} {word} ({took:.1} s)", self.full_name())
    }
}

/// What the end of a test binary means that was to run one test. Exit code 0 alone could be a
/// test that was not found.
pub(crate) fn judge(code: i32, output: &str) -> Verdict {
    let passed = output
        .lines()
        .any(|line| line.starts_with("test result: ok. 1 passed"));
    match code {
        0 if passed => {
            let skipped = output.lines().find_map(|line| line.strip_prefix(SKIPPED));
            skipped.map_or(Verdict::Passed, |why| Verdict::Skipped(why.to_owned()))
        }
        0 => Verdict::Failed("the test was not run".to_owned()),
        KILLED => Verdict::Failed("killed at its time limit".to_owned()),
        code => Verdict::Failed(reason(output, code)),
    }
}

/// The first line of what a failed test says, behind where it panicked.
fn reason(output: &str, code: i32) -> String {
    let mut lines = output.lines();
    let panicked = lines.any(|line| line.contains(PANICKED));
    lines
        .map(str::trim)
        .find(|line| panicked && !line.is_empty())
        .map_or_else(
            || format!("exit code {code}"),
            |line| line.strip_prefix(UNWRAPPED).unwrap_or(line).to_owned(),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(verdict: Verdict) -> TestRun {
        TestRun {
            verdict,
            output: "words\n".to_owned(),
            ..TestRun::failed("live", "one", "")
        }
    }

    fn failed(why: &str) -> Verdict {
        Verdict::Failed(why.to_owned())
    }

    #[test]
    fn only_a_second_try_that_passes_makes_up_for_a_failure() {
        for (second, wanted) in [
            (Verdict::Passed, Verdict::Passed),
            (failed("again"), failed("again")),
            (
                Verdict::Skipped("no loop device".to_owned()),
                failed("it failed at first, and then left itself out: no loop device"),
            ),
        ] {
            let mut both = run(failed("late"));
            both.tried_again(run(second));
            assert_eq!(both.verdict, wanted);
            let first = both.first.as_ref().unwrap();
            assert_eq!((&*first.why, &*first.output), ("late", "words\n"));
            assert_eq!(both.is_flaky(), wanted == Verdict::Passed);
        }
        assert!(!run(Verdict::Passed).is_flaky());
    }

    #[test]
    fn a_test_that_was_not_run_has_not_passed() {
        let ok = "test result: ok. 1 passed; 0 failed; 0 ignored";
        assert_eq!(judge(0, ok), Verdict::Passed);
        assert_eq!(
            judge(0, "test result: ok. 0 passed; 0 failed; 0 ignored"),
            failed("the test was not run")
        );
        assert_eq!(judge(KILLED, ok), failed("killed at its time limit"));
        assert_eq!(judge(101, "no word"), failed("exit code 101"));
    }
}
