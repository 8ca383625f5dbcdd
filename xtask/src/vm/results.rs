//! The results in a form for programs: docs/kernels.md is made of it.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::initramfs;
use super::outcome::Outcome;
use crate::live::run::Verdict;
use crate::verified::Loaded;

/// A whole run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) kernels: Vec<KernelResult>,
}

/// One kernel.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct KernelResult {
    /// How it is asked for, such as `6.12-rt`.
    pub(crate) kernel: String,
    /// What `uname -r` says.
    pub(crate) release: Option<String>,
    pub(crate) boot_s: Option<f64>,
    pub(crate) test_s: f64,
    /// What went wrong apart from tests.
    pub(crate) trouble: Option<String>,
    pub(crate) tests: Vec<TestResult>,
    /// What lockwatch loads there.
    pub(crate) loaded: Option<Loaded>,
    /// What `lockwatch check --format json` says there.
    pub(crate) check: Option<Value>,
}

/// One test.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TestResult {
    /// `target::name`
    pub(crate) name: String,
    pub(crate) verdict: Word,
    pub(crate) why: Option<String>,
    /// Why the first try has failed, if this is the second; one that passed is a pass.
    #[serde(default)]
    pub(crate) first_try: Option<String>,
    pub(crate) took_s: f64,
}

/// How a test went, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Word {
    Passed,
    Skipped,
    Failed,
}

/// The whole document.
pub(crate) fn document(outcomes: &[Outcome]) -> Result<String> {
    let kernels = outcomes.iter().map(result).collect();
    Ok(serde_json::to_string_pretty(&Results { kernels })? + "\n")
}

fn result(outcome: &Outcome) -> KernelResult {
    let tests = outcome.runs.iter().map(|run| {
        let (verdict, why) = match &run.verdict {
            Verdict::Passed => (Word::Passed, None),
            Verdict::Skipped(why) => (Word::Skipped, Some(why.clone())),
            Verdict::Failed(why) => (Word::Failed, Some(why.clone())),
        };
        TestResult {
            name: run.full_name(),
            verdict,
            why,
            first_try: run.first.as_ref().map(|first| first.why.clone()),
            took_s: run.took.as_secs_f64(),
        }
    });
    KernelResult {
        kernel: outcome.kernel.name.to_owned(),
        release: outcome.release.clone(),
        boot_s: outcome.boot.map(|boot| boot.as_secs_f64()),
        test_s: outcome.testing().as_secs_f64(),
        trouble: outcome.trouble.clone(),
        tests: tests.collect(),
        loaded: outcome.fact(initramfs::VERIFIED).ok(),
        check: outcome.fact(initramfs::CHECK).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::run::TestRun;
    use crate::vm::catalogue::Kernel;

    #[test]
    fn a_flaky_test_has_passed() {
        let mut flaky = TestRun::failed("live", "one", "late");
        flaky.tried_again(TestRun {
            verdict: Verdict::Passed,
            ..TestRun::failed("live", "one", "")
        });
        let mut outcome = Outcome::unavailable(Kernel::by_name("6.12").unwrap(), String::new());
        outcome.runs = vec![flaky];
        let read: Results = serde_json::from_str(&document(&[outcome]).unwrap()).unwrap();
        let test = &read.kernels[0].tests[0];
        assert_eq!((test.verdict, &test.why), (Word::Passed, &None));
        assert_eq!(test.first_try.as_deref(), Some("late"));
    }
}
