//! What it takes to say what is stuck, by how many wait: cold, and with everything loaded.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::Bench;
use super::figure::{Figure, Unit};
use super::runs::{cpu_of_children, median};
use super::start::peak;
use crate::demo;
use crate::lab::Lab;
use crate::process::{self, say};
use crate::verified::RUNNING;
use crate::workspace::{Workspace, cargo};

/// The package's program that takes surveys with everything loaded (tests/src/survey_cost).
const PROGRAM: &str = "survey-cost";
/// The stall that they wait in.
const SCENARIO: &str = "incident";
/// How many wait: up to two thirds of the tasks that the kernel allows by default.
const CROWDS: [u32; 5] = [10, 100, 1_469, 10_000, 20_000];
/// Cold runs of each crowd; as many surveys are taken warm, and one before, of which none
/// counts.
const RUNS: u32 = 9;
/// As many as these do not say less than they could for want of time.
const DIAGNOSE: [&str; 5] = ["diagnose", "--format", "json", "--deadline", "60s"];
/// Between the two looks of a diagnosis (`SurveyOptions::default`).
const PAUSE: Duration = Duration::from_millis(50);
/// A shorter wait is no stall: 1 s, and some margin.
const RIPE: Duration = Duration::from_millis(1_500);
/// Exit code of `diagnose` for "a stall was found".
const STALL_FOUND: i32 = 1;

/// A line of the program.
#[derive(Debug, Deserialize)]
struct Cost {
    what: String,
    waiters: u32,
    wall_ns: u64,
    cpu_ns: u64,
    peak_rss_bytes: u64,
}

/// Measures on the running kernel, as root.
pub(crate) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "stalls can only be made and looked at as root"
    );
    let workspace = bench.workspace;
    process::run(&mut demo::build_command(workspace))?;
    let mut build = cargo();
    build
        .args(["build", "--release", "--package", "lockwatch-tests"])
        .args(["--bin", PROGRAM])
        .current_dir(&workspace.root);
    process::run(&mut build)?;
    let mut figures = Vec::new();
    for waiters in CROWDS {
        say(format_args!("diagnose: {waiters} tasks that wait …"));
        let lab = Lab::raise(&workspace.release_binary("stall-lab"), SCENARIO, waiters)?;
        thread::sleep(RIPE);
        let measured = of_crowd(workspace, waiters);
        lab.finish()?;
        figures.extend(measured?);
    }
    Ok(figures)
}

fn of_crowd(workspace: &Workspace, waiters: u32) -> Result<Vec<Figure>> {
    let lockwatch = workspace.release_binary("lockwatch");
    let mut wall = Vec::new();
    let mut cpu = Vec::new();
    for _ in 0..RUNS {
        let (took, used) = cold(&lockwatch)?;
        wall.push(took.saturating_sub(PAUSE).as_nanos() as f64);
        cpu.push(used.as_nanos() as f64);
    }
    let peak = peak(&lockwatch, &DIAGNOSE)? as f64;
    let surveys = warm(workspace, waiters)?;
    let of = |value: fn(&Cost) -> u64| median(surveys.iter().map(|cost| value(cost) as f64));
    let most = surveys.iter().map(|cost| cost.peak_rss_bytes).max();
    let figure = |name: &str, value, unit| {
        Figure::new(format!("{waiters} waiters/{name}"), RUNNING, value, unit)
    };
    Ok(vec![
        figure("diagnose", median(wall)?, Unit::Nanoseconds),
        figure("diagnose, of a CPU", median(cpu)?, Unit::Nanoseconds),
        figure("diagnose, peak", peak, Unit::Bytes),
        figure("survey", of(|cost| cost.wall_ns)?, Unit::Nanoseconds),
        figure(
            "survey, of a CPU",
            of(|cost| cost.cpu_ns)?,
            Unit::Nanoseconds,
        ),
        figure(
            "survey, peak",
            most.context("no survey")? as f64,
            Unit::Bytes,
        ),
    ])
}

/// From exec to the end, and how long it had a CPU.
fn cold(lockwatch: &Path) -> Result<(Duration, Duration)> {
    let before = cpu_of_children()?;
    let began = Instant::now();
    let status = Command::new(lockwatch)
        .args(DIAGNOSE)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("cannot start {}", lockwatch.display()))?;
    let took = began.elapsed();
    ensure!(
        status.code() == Some(STALL_FOUND),
        "`lockwatch diagnose` ended with {status} while a stall stands"
    );
    Ok((took, cpu_of_children()?.saturating_sub(before)))
}

/// What surveys cost that are taken one after the other; the first warms up.
fn warm(workspace: &Workspace, waiters: u32) -> Result<Vec<Cost>> {
    let mut command = Command::new(workspace.release_binary(PROGRAM));
    command.args(["--surveys", &(RUNS + 1).to_string()]);
    let text = process::capture(&mut command)?;
    let costs: Vec<Cost> = text
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("no cost: {line}")))
        .collect::<Result<_>>()?;
    let surveys: Vec<Cost> = costs
        .into_iter()
        .filter(|cost| cost.what == "survey")
        .skip(1)
        .collect();
    ensure!(
        surveys.iter().all(|cost| cost.waiters >= waiters),
        "a survey has not seen all {waiters} that wait"
    );
    Ok(surveys)
}
