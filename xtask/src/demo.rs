//! `cargo xtask demo`: a real stall, what lockwatch says of it, and whether that is true.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::lab::{Lab, tasks_of};
use crate::process::{self, End, say};
use crate::workspace::{self, Workspace};
use crate::{bpf, truth, vm};

/// `diagnose` promises a second; a machine under test may be slow.
const DIAGNOSE_LIMIT: Duration = Duration::from_secs(30);
/// `diagnose` counts shorter waits without calling them a stall: 1 s, and some margin.
const RIPE: Duration = Duration::from_millis(1500);
/// What an emulated machine needs for what takes a quarter of a second elsewhere.
const EMULATED: [&str; 2] = ["--deadline", "15s"];
/// Exit code of `diagnose` for "a stall was found".
const STALL_FOUND: i32 = 1;

/// The machine that stands in where the kernel at hand refuses.
const STAND_IN: &str = "6.12";

/// Make a real stall, let lockwatch diagnose it, and check what it says.
///
/// The stall lab makes tasks of its own wait for an mmap_lock whose holder is
/// inside a page fault that waits for FUSE; nothing else on the machine is
/// touched, and the stall ends by itself after a minute. `lockwatch diagnose` is
/// shown as text; its JSON is compared with what the lab knows: the lock, its
/// state, the holder, the queue in order, and that no decoy is accused.
///
/// Root is needed, for the lab mounts FUSE and lockwatch loads BPF. For anybody else, and
/// where the kernel or a container refuses them, the same is done in a virtual machine
/// (see `cargo xtask vm`), which needs no privileges once its packages are installed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    stall: StallArgs,
    /// Use a virtual machine with this kernel, whatever is allowed here
    #[arg(long, value_name = "KERNEL", num_args = 0..=1, default_missing_value = STAND_IN)]
    vm: Option<String>,
}

/// The stall of a demo.
#[derive(Debug, clap::Args)]
pub(crate) struct StallArgs {
    /// Tasks that wait for the lock
    #[arg(long, value_name = "N", default_value_t = 36, value_parser = clap::value_parser!(u32).range(1..=1000))]
    waiters: u32,
}

/// Exit code 0: the report is true and the lab left nothing behind.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let machine = match (&args.vm, bpf::refusal()) {
        (Some(kernel), _) => Some(kernel.as_str()),
        (None, Some(why)) => {
            say(format_args!(
                "no stall can be made and looked at here ({why}): a virtual machine with \
                 Linux {STAND_IN} does it instead"
            ));
            Some(STAND_IN)
        }
        (None, None) => None,
    };
    let waiters = args.stall.waiters;
    let passed = match machine {
        Some(kernel) => {
            let script = format!("xtask vm-demo --waiters {waiters}");
            vm::script(&workspace, kernel, &script)?
        }
        None => {
            build(&workspace)?;
            let site = Site {
                lockwatch: workspace.release_binary("lockwatch"),
                stall_lab: workspace.release_binary("stall-lab"),
                options: &[],
                evidence: Some(workspace.target.join("demo.json")),
            };
            show(&site, waiters)?
        }
    };
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The demo inside of a virtual machine, where both programs are in /bin.
pub(crate) fn run_in_machine(args: &StallArgs) -> Result<ExitCode> {
    let site = Site {
        lockwatch: "/bin/lockwatch".into(),
        stall_lab: "/bin/stall-lab".into(),
        options: &EMULATED,
        evidence: None,
    };
    Ok(if show(&site, args.waiters)? {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Where a demo is given.
#[derive(Debug)]
struct Site {
    lockwatch: PathBuf,
    stall_lab: PathBuf,
    /// For `lockwatch diagnose`.
    options: &'static [&'static str],
    /// Where both sides of a failed comparison are kept; else they are printed.
    evidence: Option<PathBuf>,
}

/// Makes the stall, shows the report, and compares; whether all is true.
fn show(site: &Site, waiters: u32) -> Result<bool> {
    say(format_args!("making a stall with {waiters} waiters …"));
    let lab = Lab::raise(&site.stall_lab, "mmap-read-held", waiters)?;
    let ready = lab.ready.clone();
    thread::sleep(RIPE);

    let mut line = vec!["diagnose"];
    line.extend(site.options);
    println!("$ lockwatch {}", line.join(" "));
    diagnose(&site.lockwatch, &line, |line| println!("{line}"))?;
    let mut json = String::new();
    line.extend(["--format", "json"]);
    diagnose(&site.lockwatch, &line, |line| {
        json.push_str(line);
        json.push('\n');
    })?;
    let report: Value = serde_json::from_str(&json)
        .with_context(|| format!("`lockwatch diagnose --format json` wrote no JSON: {json}"))?;

    println!("\nthe report against what the lab knows:");
    let verdicts = truth::compare(&ready, &report);
    for verdict in &verdicts {
        println!("  {verdict}");
    }
    lab.finish()?;
    println!(
        "  clean-up all {} tasks of the lab are gone  ok",
        tasks_of(&ready).len()
    );

    let wrong = verdicts.iter().filter(|verdict| !verdict.is_ok()).count();
    if wrong > 0 {
        let kept = keep(site, &ready, &report)?;
        println!(
            "demo failed: {wrong} of {} points are wrong (truth and report: {kept})",
            verdicts.len()
        );
        return Ok(false);
    }
    println!("demo passed: {} points compared", verdicts.len());
    Ok(true)
}

/// Keeps both sides of a failed comparison, for a closer look.
fn keep(site: &Site, ready: &Value, report: &Value) -> Result<String> {
    let both = serde_json::json!({"truth": ready, "report": report});
    let Some(path) = &site.evidence else {
        return Ok(both.to_string());
    };
    std::fs::write(path, serde_json::to_vec_pretty(&both)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path.display().to_string())
}

/// Builds the two programs, as released.
fn build(workspace: &Workspace) -> Result<()> {
    say("building lockwatch and the stall lab (release) …");
    process::run(&mut build_command(workspace))
}

/// One command for both, so that every caller gets the same features and cached files.
pub(crate) fn build_command(workspace: &Workspace) -> Command {
    let mut command = workspace::cargo();
    command
        .current_dir(&workspace.root)
        .args([
            "build",
            "--release",
            "--package",
            "lockwatch",
            "--package",
            "lockwatch-tests",
        ])
        .args([
            "--bin",
            "lockwatch",
            "--bin",
            "stall-lab",
            "--bin",
            "lockup-lab",
        ]);
    command
}

/// Runs `lockwatch diagnose` while the stall stands: it must find one, in time.
fn diagnose(lockwatch: &Path, arguments: &[&str], on_line: impl FnMut(&str)) -> Result<()> {
    let mut command = Command::new(lockwatch);
    command.args(arguments);
    let start = Instant::now();
    let end = process::supervise(&mut command, DIAGNOSE_LIMIT, on_line)?;
    let line = process::name(&command);
    match end {
        End::Exited(status) if status.code() == Some(STALL_FOUND) => {
            say(format_args!(
                "`{line}` took {:.2} s",
                start.elapsed().as_secs_f64()
            ));
            Ok(())
        }
        End::Exited(status) => bail!(
            "`{line}` ended with {status} while a stall stands (expected is exit code {STALL_FOUND})"
        ),
        End::TimedOut => bail!("`{line}` did not end in {DIAGNOSE_LIMIT:?}"),
    }
}
