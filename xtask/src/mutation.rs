//! Proves that the live tests bite: with a defect made on purpose, one must fail.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::process::{self, End};
use crate::workspace::{self, Workspace};

/// Build lockwatch with a known defect and require that its live test fails.
///
/// The defect (cargo feature `mutation-no-fault-test`): every page fault counts as a
/// holder of mmap_lock. The live test with decoys in first-attempt faults must fail with
/// it, and pass without; both are run. Where the kernel itself names a reader, that would
/// outweigh the defect: both builds are told to disregard it (`mutation-no-reader-owner`).
/// Needs root and BPF, like the live tests.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Cargo feature of package lockwatch.
const FEATURE: &str = "mutation-no-fault-test";
/// In both builds: the fault test alone decides.
const CONTROL: &str = "mutation-no-reader-owner";
/// The live test that must notice.
const TARGET: &str = "live_diagnose";
const TEST: &str = "decoys_in_first_attempt_faults_are_not_accused";
/// For the test alone, which takes seconds.
const LIMIT: Duration = Duration::from_secs(5 * 60);

/// Exit code 0: the test passes without the defect and fails with it.
pub(crate) fn run(_: &Args) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    process::timed("building lockwatch and the stall lab", || {
        process::run(&mut crate::demo::build_command(&workspace))
    })?;
    let healthy = process::timed("building lockwatch without the defect", || {
        build(&workspace, "control", CONTROL)
    })?;
    let mutated = process::timed("building lockwatch with the defect", || {
        build(&workspace, "mutation", &format!("{CONTROL},{FEATURE}"))
    })?;
    let healthy = try_test(&workspace, &healthy)?;
    if healthy != Verdict::Passed {
        bail!("{TEST} does not pass without the defect ({healthy:?}): mend that first");
    }
    match try_test(&workspace, &mutated)? {
        Verdict::Failed => {
            println!("ok: {TEST} passes without the defect and fails with it");
            Ok(ExitCode::SUCCESS)
        }
        other => {
            bail!("{TEST} does not notice the defect {FEATURE} ({other:?}): it proves nothing")
        }
    }
}

/// Builds a program with these features beside the others, never over them.
fn build(workspace: &Workspace, name: &str, features: &str) -> Result<PathBuf> {
    let target = workspace.target.join(name);
    let mut command = workspace::cargo();
    command.current_dir(&workspace.root);
    command.args([
        "build",
        "--locked",
        "--package",
        "lockwatch",
        "--features",
        features,
    ]);
    process::run(command.arg("--target-dir").arg(&target))?;
    Ok(target.join("debug").join("lockwatch"))
}

/// What became of the one test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    Failed,
    /// It was not run, or not to its end.
    NotRun,
}

fn try_test(workspace: &Workspace, lockwatch: &Path) -> Result<Verdict> {
    let mut command = workspace::cargo();
    command
        .current_dir(&workspace.root)
        .args([
            "test",
            "--package",
            "lockwatch-tests",
            "--test",
            TARGET,
            "--",
        ])
        .args(["--include-ignored", "--exact", TEST])
        .env("LOCKWATCH_BIN", lockwatch)
        .env("STALL_LAB_BIN", workspace.release_binary("stall-lab"))
        .env("LOCKUP_LAB_BIN", workspace.release_binary("lockup-lab"))
        .env("LOCKWATCH_RUNS", "3");
    let mut verdict = Verdict::NotRun;
    let end = supervised(&mut command, |line| {
        if let Some(told) = told(line) {
            verdict = told;
        }
    })?;
    match end {
        End::TimedOut => Ok(Verdict::NotRun),
        // The test's own line and the exit code have to agree.
        End::Exited(status) if status.success() == (verdict == Verdict::Passed) => Ok(verdict),
        End::Exited(_) => Ok(Verdict::NotRun),
    }
}

fn supervised(command: &mut Command, on_line: impl FnMut(&str)) -> Result<End> {
    process::supervise(command, LIMIT, on_line)
        .with_context(|| format!("cannot run `{}`", process::name(command)))
}

/// Reads libtest's sum, which says that the one test was run.
fn told(line: &str) -> Option<Verdict> {
    let sum = line.strip_prefix("test result: ")?;
    if sum.starts_with("ok. 1 passed; 0 failed;") {
        Some(Verdict::Passed)
    } else if sum.starts_with("FAILED. 0 passed; 1 failed;") {
        Some(Verdict::Failed)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_test_that_ran_has_a_verdict() {
        assert_eq!(
            told("test result: ok. 1 passed; 0 failed; 0 ignored"),
            Some(Verdict::Passed)
        );
        assert_eq!(
            told("test result: FAILED. 0 passed; 1 failed; 0 ignored"),
            Some(Verdict::Failed)
        );
        assert_eq!(told("test result: ok. 0 passed; 0 failed; 0 ignored"), None);
        assert_eq!(told("thread panicked"), None);
    }
}
