//! The live tests: `cargo xtask live` runs them on the running kernel, `cargo xtask vm` on
//! others. What both do with their results is here.

pub(crate) mod count;
pub(crate) mod run;
pub(crate) mod second;
pub(crate) mod story;
pub(crate) mod targets;

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use self::count::Count;
use self::run::TestRun;
use self::story::Story;
use self::targets::Target;
use crate::packages::{self, Program};
use crate::process::{self, End, say, timed};
use crate::workspace::Workspace;

/// Run the live tests on the running kernel: real stalls, one after the other.
///
/// Needs root and BPF. Every test runs alone and is killed at its time limit. One that fails
/// is tried once more, after the others; if it passes then, it counts as passed, and as flaky,
/// and is told with its failure. More than three flaky tests are a failure. The last line is
/// the sum: `N passed, N failed, N skipped`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How often each scenario is tried
    #[arg(long, value_name = "N", default_value_t = 30)]
    runs: u32,
    /// How long the soak takes
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    soak: u64,
    /// Only tests whose `target::name` contains this; may be given more than once
    #[arg(long, value_name = "TEXT")]
    filter: Vec<String>,
}

/// A test is killed after so much time, the soak after so much more than it takes.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// Where these tests run, as stories name it.
const HERE: &str = "running kernel";

/// Before the number of flaky tests, on a line of its own.
pub(crate) const FLAKY: &str = "flaky: ";

/// Shows which files lockwatch opens during a stall.
const STRACE: Program = Program {
    name: "strace",
    package: "strace",
    purpose: "traces which files lockwatch opens during a stall",
};

/// Contends for locks all the time.
const STRESS_NG: Program = Program {
    name: "stress-ng",
    package: "stress-ng",
    purpose: "loads the host while lockwatch watches it",
};

/// Exit code 0: no test failed, and not too many were flaky.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    packages::ensure(&[STRACE, STRESS_NG])?;
    let targets = timed(
        "building lockwatch, the stall lab and the live tests",
        || {
            process::run(&mut crate::demo::build_command(&workspace))?;
            targets::build(&workspace, targets::is_live)
        },
    )?;
    let mut runs = Vec::new();
    for (target, name) in targets::chosen(&targets, &args.filter) {
        runs.push(try_test(&workspace, args, target, name)?);
    }
    let mut seconds = Vec::new();
    for (target, name) in second::wanted(HERE, &runs) {
        if let Some(target) = targets.iter().find(|one| one.name == target) {
            seconds.push(try_test(&workspace, args, target, &name)?);
        }
    }
    second::take(&mut runs, seconds);
    Ok(conclude(Story::of(HERE, &runs), Count::of(&runs)))
}

/// Runs one test alone. An error: it could not be started, or we were told to stop.
fn try_test(workspace: &Workspace, args: &Args, target: &Target, name: &str) -> Result<TestRun> {
    let mut command = Command::new(&target.binary);
    command
        .current_dir(&workspace.root)
        .args(["--exact", name, "--include-ignored", "--show-output"])
        .arg("--test-threads=1")
        .env("LOCKWATCH_BIN", workspace.release_binary("lockwatch"))
        .env("STALL_LAB_BIN", workspace.release_binary("stall-lab"))
        .env("LOCKUP_LAB_BIN", workspace.release_binary("lockup-lab"))
        .env("LOCKWATCH_RUNS", args.runs.to_string())
        .env("LOCKWATCH_SOAK_SECONDS", args.soak.to_string())
        .env("RUST_BACKTRACE", "0");
    let begun = Instant::now();
    let mut output = String::new();
    let limit = LIMIT + Duration::from_secs(args.soak);
    let end = process::supervise(&mut command, limit, |line| {
        output.push_str(line);
        output.push('\n');
    })
    .with_context(|| format!("cannot run {}::{name}", target.name))?;
    let code = match end {
        End::Exited(status) => status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or_default()),
        End::TimedOut => run::KILLED,
    };
    let run = TestRun {
        took: begun.elapsed(),
        verdict: run::judge(code, &output),
        output,
        ..TestRun::failed(&target.name, name, "")
    };
    say(run.progress());
    Ok(run)
}

/// Ends the output of a run of live tests: what has failed, in the form of test binaries, the
/// number of flaky tests, and the sum.
pub(crate) fn conclude(stories: impl Iterator<Item = Story>, count: Count) -> ExitCode {
    let stories: Vec<Story> = stories.collect();
    if !stories.is_empty() {
        println!("\n{}\n", story::AFTER);
        for story in &stories {
            println!("{story}");
        }
        println!("{}", story::AFTER);
        for story in &stories {
            println!("    {}", story.title);
        }
        println!();
    }
    if count.flaky > 0 {
        println!("{FLAKY}{}", count.flaky);
    }
    let too_many = second::too_many(count.flaky);
    if let Some(why) = &too_many {
        println!("the run fails: {why}");
    }
    println!("{count}");
    if count.failed == 0 && too_many.is_none() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
