//! Counting tests, and saying how a step went.

use std::fmt::{self, Display, Formatter};
use std::iter::Sum;
use std::time::Duration;

use crate::vm;

/// Numbers of tests, and why there are not more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
    /// Of those that passed or failed in a virtual machine.
    tried_twice: u64,
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

    /// Adds the numbers of a test binary's last line, or of a verb's sum; other
    /// lines say nothing.
    pub(crate) fn add_line(&mut self, line: &str) {
        if let Some(number) = line.strip_prefix(vm::TRIED_TWICE) {
            self.tried_twice += number.parse().unwrap_or(0);
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
        if tally.tried_twice > 0 {
            write!(f, "  ({}{})", vm::TRIED_TWICE, tally.tried_twice)?;
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
    fn tests_that_were_tried_twice_are_told() {
        let outcome = Outcome {
            name: "vm",
            limit: Duration::from_secs(60),
            took: Duration::ZERO,
            tally: tally(&["tried twice: 2", "9 passed, 0 failed, 0 skipped"]),
            allowed: false,
        };
        assert!(
            outcome.to_string().ends_with("(tried twice: 2)"),
            "{outcome}"
        );
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
