//! Numbers of live tests.

use std::fmt::{self, Display, Formatter};
use std::iter::Sum;

use super::run::{TestRun, Verdict};

/// Numbers of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
    /// Those of the passed ones that passed at the second try only.
    pub(crate) flaky: usize,
}

impl Count {
    /// Of these tests.
    pub(crate) fn of(runs: &[TestRun]) -> Self {
        let of =
            |wanted: fn(&Verdict) -> bool| runs.iter().filter(|run| wanted(&run.verdict)).count();
        Self {
            passed: of(|verdict| matches!(verdict, Verdict::Passed)),
            failed: of(|verdict| matches!(verdict, Verdict::Failed(_))),
            skipped: of(|verdict| matches!(verdict, Verdict::Skipped(_))),
            flaky: runs.iter().filter(|run| run.is_flaky()).count(),
        }
    }
}

impl Sum for Count {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, count| Self {
            passed: sum.passed + count.passed,
            failed: sum.failed + count.failed,
            skipped: sum.skipped + count.skipped,
            flaky: sum.flaky + count.flaky,
        })
    }
}

impl Display for Count {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
            flaky: _,
        } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}
