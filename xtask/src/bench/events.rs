//! How fast events go from the kernel to the detectors, and what is lost on the way.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::Bench;
use super::figure::{Figure, Unit};
use crate::workspace::{Workspace, cargo};
use crate::{demo, process};

/// The recording of a real stall whose survey the detectors look at.
const RECORDING: &str = "tests/recordings/mmap-read-held.lwr";
/// The package's program that measures (tests/src/events).
const PROGRAM: &str = "event-bench";

/// A line of what it prints.
#[derive(Debug, Deserialize)]
struct Line {
    name: String,
    value: f64,
    unit: Unit,
    tolerance: Option<f64>,
}

/// Measures rates and allocations, and as root, where the kernel has the tracepoints, what is
/// lost.
pub(crate) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let workspace = bench.workspace;
    let mut build = cargo();
    build
        .args(["build", "--release", "--package", "lockwatch-tests"])
        .args(["--bin", PROGRAM])
        .current_dir(&workspace.root);
    process::run(&mut build)?;
    let mut rates = program(workspace);
    rates
        .args(["rates", "--recording"])
        .arg(workspace.root.join(RECORDING));
    if bench.only_steady {
        return lines(rates.arg("--only-steady"), "");
    }
    let mut figures = lines(&mut rates, "")?;
    ensure!(
        nix::unistd::geteuid().is_root(),
        "what is lost can only be measured as root"
    );
    process::run(&mut demo::build_command(workspace))?;
    let lockwatch: PathBuf = workspace.release_binary("lockwatch");
    figures.extend(lines(
        program(workspace)
            .args(["loss", "--lockwatch"])
            .arg(lockwatch),
        "running",
    )?);
    figures.extend(lines(program(workspace).arg("replay"), "running")?);
    Ok(figures)
}

fn program(workspace: &Workspace) -> Command {
    Command::new(workspace.release_binary(PROGRAM))
}

fn lines(command: &mut Command, kernel: &str) -> Result<Vec<Figure>> {
    let text = process::capture(command)?;
    let lines = text.lines().map(|line| {
        let line: Line =
            serde_json::from_str(line).with_context(|| format!("no figure: {line}"))?;
        let figure = Figure::new(line.name, kernel, line.value, line.unit);
        Ok(match line.tolerance {
            Some(tolerance) => figure.within(tolerance),
            None => figure,
        })
    });
    lines.collect()
}
