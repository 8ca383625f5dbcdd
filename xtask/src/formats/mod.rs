//! `cargo xtask formats`: what lockwatch writes, read by programs that are not lockwatch's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};

use crate::packages::{self, Program};
use crate::workspace::{self, Workspace};
use crate::{demo, process};

const NEEDED: [Program; 4] = [
    Program {
        name: "dot",
        package: "graphviz",
        purpose: "draws the graphs of --format dot",
    },
    Program {
        name: "python3",
        package: "python3-venv",
        purpose: "runs the parsers of other projects",
    },
    Program {
        name: "node",
        package: "nodejs",
        purpose: "runs those that are JavaScript",
    },
    Program {
        name: "npm",
        package: "npm",
        purpose: "fetches these",
    },
];

/// Read the reports of all recordings in tests/recordings/, and a log of histograms, with
/// independent parsers.
///
/// JSON is held against its schema by the jsonschema package, a Perfetto trace is parsed
/// with perfetto's own classes, and graphviz draws the graph. The HdrHistogram log is read by
/// the hdrhistogram package of Python and by hdr-histogram-js. All these packages go below
/// target/.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Exit code 0: every format is what it should be.
pub(crate) fn run(_: &Args) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    process::run(&mut demo::build_command(&workspace))?;
    packages::ensure(&NEEDED)?;
    let here = workspace.root.join("xtask/src/formats");
    let python = environment(&workspace, &here.join("requirements.txt"))?;
    let modules = modules(&workspace, &here.join("npm"))?;
    let schema = |name: &str| workspace.root.join("docs/schema").join(name);
    let recordings = recordings(&workspace.root.join("tests/recordings"))?;
    let mut check = Command::new(&python);
    check
        .arg(here.join("check.py"))
        .arg(workspace.release_binary("lockwatch"))
        .arg(schema("lockwatch.report.1.json"))
        .args(recordings);
    process::run(&mut check)?;

    process::run(&mut example_command(&workspace, "interval_log"))?;
    let mut check = Command::new(&python);
    check
        .arg(here.join("histograms.py"))
        .arg(workspace.release_binary("lockwatch"))
        .arg(workspace.target.join("debug/examples/interval_log"))
        .arg(schema("lockwatch.histogram.1.json"))
        .arg(modules);
    process::run(&mut check)?;
    Ok(ExitCode::SUCCESS)
}

fn recordings(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "lwr") {
            found.push(path);
        }
    }
    ensure!(!found.is_empty(), "{} holds no recording", folder.display());
    found.sort();
    Ok(found)
}

/// Builds one of lockwatch's examples as `cargo test` does, which has been before.
fn example_command(workspace: &Workspace, name: &str) -> Command {
    let mut build = workspace::cargo();
    build.current_dir(&workspace.root).args([
        "build",
        "--quiet",
        "--locked",
        "--package",
        "lockwatch",
        "--example",
        name,
    ]);
    build
}

/// The packages that `package-lock.json` in this folder names; fetched once, and again when
/// that changes.
fn modules(workspace: &Workspace, packages: &Path) -> Result<PathBuf> {
    const FILES: [&str; 2] = ["package.json", "package-lock.json"];
    let folder = workspace.target.join("formats-npm");
    let modules = folder.join("node_modules");
    let is_made = modules.join(".made");
    let wanted = fs::read(packages.join("package-lock.json"))?;
    if fs::read(&is_made).ok().as_ref() == Some(&wanted) {
        return Ok(modules);
    }
    process::timed("fetching the JavaScript packages", || {
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for file in FILES {
            fs::copy(packages.join(file), folder.join(file))
                .with_context(|| format!("cannot copy {file} to {}", folder.display()))?;
        }
        let mut install = Command::new("npm");
        install.current_dir(&folder).args([
            "ci",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--no-update-notifier",
        ]);
        process::capture(&mut install)?;
        fs::write(&is_made, &wanted).with_context(|| format!("cannot write {}", is_made.display()))
    })?;
    Ok(modules)
}

/// A Python with these packages; made once, and again when they change. Who keeps the
/// requirements in a folder of another name has another Python.
pub(crate) fn environment(workspace: &Workspace, requirements: &Path) -> Result<PathBuf> {
    let of = requirements.parent().and_then(Path::file_name);
    let of = of.context("requirements lie in a folder")?;
    let folder = workspace
        .target
        .join(format!("{}-venv", of.to_string_lossy()));
    let python = folder.join("bin/python");
    let (wanted, made) = (fs::read(requirements)?, folder.join("requirements.txt"));
    if fs::read(&made).ok().as_ref() == Some(&wanted) {
        return Ok(python);
    }
    process::timed("installing Python packages", || {
        let mut create = Command::new("python3");
        let created = process::capture(create.args(["-m", "venv", "--clear"]).arg(&folder));
        created.context("cannot make a virtual environment (Debian: python3-venv)")?;
        let mut install = Command::new(&python);
        install.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]);
        process::capture(install.arg("--requirement").arg(requirements))?;
        fs::write(&made, &wanted).with_context(|| format!("cannot write {}", made.display()))
    })?;
    Ok(python)
}
