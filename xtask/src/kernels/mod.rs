//! `cargo xtask kernels`: docs/kernels.md, as the machines found it.

mod support;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use crate::document::Document;
use crate::grid::Grid;
use crate::process::say;
use crate::verified::Programs;
use crate::vm;
use crate::vm::results::Results;
use crate::workspace::Workspace;

/// Write the tables of docs/kernels.md from the results of `cargo xtask vm`.
///
/// Needs the results of a run on all kernels (`cargo xtask vm`), or at least on those that
/// `cargo xtask test` boots. The text around the tables is written by hand and stays.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Write nothing; fail if a feature is not as the last run found it, on the kernels of
    /// that run. Times, versions and instruction counts may differ
    #[arg(long)]
    check: bool,
}

const DOCUMENT: Document = Document {
    path: "docs/kernels.md",
    verb: "kernels",
};

/// Exit code 0: the document says what was found.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let results = read(&vm::home(&workspace).join(vm::RESULTS))?;
    if args.check {
        return check(&DOCUMENT.read(&workspace)?, &results);
    }
    for name in vm::required() {
        if !results.kernels.iter().any(|kernel| kernel.kernel == name) {
            bail!("the last run of `cargo xtask vm` had no {name}: run it on all kernels");
        }
    }
    let programs = Programs::of_objects(&workspace.root)?;
    let figures = support::figures(&results, &programs);
    let figures: Vec<String> = figures.iter().map(ToString::to_string).collect();
    DOCUMENT.write(
        &workspace,
        &[
            ("features", support::features(&results).to_string()),
            ("mechanisms", support::mechanisms(&results).to_string()),
            ("limits", support::limits(&results)),
            ("figures", figures.join("\n")),
        ],
    )?;
    say(format_args!("{} is up to date", DOCUMENT.path));
    Ok(ExitCode::SUCCESS)
}

fn check(text: &str, results: &Results) -> Result<ExitCode> {
    let mut found = Vec::new();
    for (name, now) in [
        ("features", support::features(results)),
        ("mechanisms", support::mechanisms(results)),
    ] {
        let part = DOCUMENT.part(text, name)?;
        match Grid::read_all(part).first() {
            Some(written) => found.extend(now.differences(written)),
            None => found.push(format!("there is no table of {name}")),
        }
    }
    for line in &found {
        println!("{}: {line}", DOCUMENT.path);
    }
    if found.is_empty() {
        let kernels: Vec<&str> = results
            .kernels
            .iter()
            .map(|kernel| kernel.kernel.as_str())
            .collect();
        println!(
            "{} says what was found on {}",
            DOCUMENT.path,
            kernels.join(", ")
        );
        return Ok(ExitCode::SUCCESS);
    }
    println!("`cargo xtask vm && cargo xtask kernels` writes it anew");
    Ok(ExitCode::FAILURE)
}

fn read(path: &Path) -> Result<Results> {
    let text = fs::read(path)
        .with_context(|| format!("no {}: run `cargo xtask vm` first", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not ours", path.display()))
}
