//! Counting tests, and saying how a step went.

use std::fmt::{self, Display, Formatter};
use std::iter::Sum;
use std::time::Duration;

use crate::live;
use crate::live::story::{self, Story};

/// Numbers of tests, and why there are not more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
    /// Of those that passed, the live tests that failed at first.
    pub(crate) flaky: usize,
    /// What failed tests have said; the last may be still going on.
    stories: Vec<Story>,
    is_telling: bool,
    reason: Option<String>,
    /// The whole step was left out, not single tests in it.
    left_out: bool,
}

impl Tally {
    /// One check that holds.
    pub(crate) fn passed() -> Self {
        Self {
            passed: 1,
            ..Self::default()
        }
    }

    /// One check that does not.
    pub(crate) fn failed(reason: impl Into<String>) -> Self {
        Self::default().and_failed(reason)
    }

    /// A step that cannot run.
    pub(crate) fn skipped(reason: impl Into<String>) -> Self {
        Self {
            skipped: 1,
            reason: Some(reason.into()),
            left_out: true,
            ..Self::default()
        }
    }

    /// One failure more than the tests tell of.
    pub(crate) fn and_failed(mut self, reason: impl Into<String>) -> Self {
        self.failed += 1;
        self.reason = Some(reason.into());
        self
    }

    /// Nothing was run, nor left out.
    pub(crate) fn is_empty(&self) -> bool {
        self.passed + self.failed == 0 && !self.left_out
    }

    /// What failed tests have said, not more of each than fits on a screen.
    pub(crate) fn stories(&self) -> impl Iterator<Item = Story> + '_ {
        self.stories.iter().map(Story::shortened)
    }

    /// Adds the numbers of a test binary's last line, or of a verb's sum, and what failed tests
    /// have said; other lines say nothing.
    pub(crate) fn add_line(&mut self, line: &str) {
        self.listen(line);
        if let Some(number) = line.strip_prefix(live::FLAKY) {
            self.flaky += number.parse().unwrap_or(0);
            return;
        }
        let numbers = match line.strip_prefix("test result: ") {
            Some(rest) => rest.split_once(". ").map_or(rest, |(_, numbers)| numbers),
            None if is_sum(line) => line,
            None => return,
        };
        for part in numbers.split([';', ',']) {
            let Some((number, what)) = part.trim().split_once(' ') else {
                continue;
            };
            let Ok(number) = number.parse::<u64>() else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" | "skipped" => self.skipped += number,
                _ => {}
            }
        }
    }

    /// Takes the words of a failed test from the part of the output that is for them.
    fn listen(&mut self, line: &str) {
        if line == story::AFTER {
            self.is_telling = false;
        } else if let Some(title) = Story::title_of(line) {
            self.stories.push(Story::new(title, ""));
            self.is_telling = true;
        } else if let Some(story) = self.stories.last_mut().filter(|_| self.is_telling) {
            story.text.push_str(line);
            story.text.push('\n');
        }
    }
}

/// `N passed, N failed, N skipped`, the last line of our own verbs.
fn is_sum(line: &str) -> bool {
    let words = ["passed", "failed", "skipped"];
    let parts: Vec<_> = line.split(", ").collect();
    parts.len() == words.len()
        && parts.iter().zip(words).all(|(part, word)| {
            part.split_once(' ')
                .is_some_and(|(number, what)| number.parse::<u64>().is_ok() && what == word)
        })
}

impl<'t> Sum<&'t Tally> for Tally {
    fn sum<I: Iterator<Item = &'t Tally>>(tallies: I) -> Self {
        tallies.fold(Self::default(), |sum, tally| Self {
            passed: sum.passed + tally.passed,
            failed: sum.failed + tally.failed,
            skipped: sum.skipped + tally.skipped,
            flaky: sum.flaky + tally.flaky,
            ..sum
        })
    }
}

/// A step that was run, or tried.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) name: &'static str,
    pub(crate) limit: Duration,
    pub(crate) took: Duration,
    pub(crate) tally: Tally,
    /// The caller accepts that it is skipped.
    pub(crate) allowed: bool,
}

impl Outcome {
    /// A skipped step is never a passed one.
    pub(crate) fn lacks_permission_to_skip(&self) -> bool {
        self.tally.left_out && !self.allowed
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            limit,
            took,
            tally,
            allowed: _,
        } = self;
        let verdict = if tally.failed > 0 {
            "FAILED"
        } else if tally.left_out {
            "skipped"
        } else {
            "ok"
        };
        write!(
            f,
            "{name:<10} {verdict:<7} {:>4} passed {:>3} failed {:>3} skipped  {:>6.1} s of {} s",
            tally.passed,
            tally.failed,
            tally.skipped,
            took.as_secs_f64(),
            limit.as_secs()
        )?;
        if tally.flaky > 0 {
            write!(f, "  ({}{})", live::FLAKY, tally.flaky)?;
        }
        match &tally.reason {
            Some(reason) => write!(f, "  ({reason})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(lines: &[&str]) -> Tally {
        let mut tally = Tally::default();
        for line in lines {
            tally.add_line(line);
        }
        tally
    }

    #[test]
    fn result_lines_of_all_binaries_add_up() {
        let found = tally(&[
            "running 14 tests",
            "test result: ok. 14 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.07s",
            "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.07s",
            "the test result: 5 passed",
            "7 passed, 0 failed, 2 skipped",
            "9 passed, 0 failed",
        ]);
        assert_eq!((found.passed, found.failed, found.skipped), (23, 3, 3));
    }

    #[test]
    fn flaky_tests_are_told_and_added_up() {
        let one = tally(&["flaky: 2", "9 passed, 0 failed, 0 skipped"]);
        let sum: Tally = [&one, &one].into_iter().sum();
        assert_eq!((sum.passed, sum.flaky), (18, 4));
        let outcome = Outcome {
            name: "vm",
            limit: Duration::from_secs(60),
            took: Duration::ZERO,
            tally: one,
            allowed: false,
        };
        assert!(outcome.to_string().ends_with("(flaky: 2)"), "{outcome}");
    }

    #[test]
    fn what_failed_tests_have_said_is_kept() {
        let found = tally(&[
            "test one ... FAILED",
            "failures:",
            "",
            "---- one stdout ----",
            "a word",
            "---- 6.12 live::two (FAILED) ----",
            "thread 'two' panicked at x.rs:1:2:",
            "another",
            "",
            "failures:",
            "    one",
            "test result: FAILED. 0 passed; 2 failed; 0 ignored",
        ]);
        let stories: Vec<Story> = found.stories().collect();
        assert_eq!(
            stories,
            [
                Story::new("one stdout", "a word"),
                Story::new(
                    "6.12 live::two (FAILED)",
                    "thread 'two' panicked at x.rs:1:2:\nanother"
                ),
            ]
        );
        assert_eq!(found.failed, 2);
    }

    #[test]
    fn a_skipped_step_needs_permission_and_is_never_passed() {
        let outcome = |allowed| Outcome {
            name: "live",
            limit: Duration::from_secs(60),
            took: Duration::ZERO,
            tally: Tally::skipped("not root"),
            allowed,
        };
        assert_eq!(outcome(false).tally.passed, 0);
        assert!(outcome(false).lacks_permission_to_skip());
        assert!(!outcome(true).lacks_permission_to_skip());
    }

    #[test]
    fn single_skipped_tests_do_not_make_a_skipped_step() {
        let outcome = Outcome {
            name: "tests",
            limit: Duration::from_secs(60),
            took: Duration::ZERO,
            tally: tally(&["test result: ok. 1 passed; 0 failed; 4 ignored; 0 measured"]),
            allowed: false,
        };
        assert!(!outcome.lacks_permission_to_skip());
        assert!(outcome.to_string().contains("ok"), "{outcome}");
    }
}
