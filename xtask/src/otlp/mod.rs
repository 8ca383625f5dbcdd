//! `cargo xtask otlp`: metrics pushed over OpenTelemetry's protocol, to receivers that are
//! not lockwatch's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::archive::Archive;
use crate::packages::{self, Program};
use crate::workspace::{self, Workspace};
use crate::{cache, deb, formats, process};

const NEEDED: [Program; 1] = [Program {
    name: "python3",
    package: "python3-venv",
    purpose: "runs a receiver",
}];

/// The oldest release of Debian whose [`STORE`] takes exponential histograms. Debian's
/// Prometheus is built without its OTLP receiver, in all releases.
const RELEASE: &str = "trixie";
const STORE: &str = "victoria-metrics";

/// Push metrics over OTLP to receivers on loopback, and look at what they have.
///
/// A receiver made with the official Python classes checks what is sent, and what becomes of
/// it when it fails in the ways in which receivers do. A real store, Debian's VictoriaMetrics,
/// is asked for counts, sums and quantiles in its query language. The store is fetched once
/// and kept in the cache; nothing is installed but Debian's python3-venv.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Exit code 0: all that was pushed has arrived.
pub(crate) fn run(_: &Args) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    packages::ensure(&NEEDED)?;
    let store = store()?;
    let here = workspace.root.join("xtask/src/otlp");
    let python = formats::environment(&workspace, &here.join("requirements.txt"))?;
    process::run(&mut build_command(&workspace))?;
    let mut check = Command::new(python);
    check
        // The tree is not the place for compiled scripts.
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(here.join("check.py"))
        .arg(workspace.release_binary("examples/push_otlp"))
        .arg(store)
        .arg(workspace.root.join("docs/opentelemetry.md"));
    process::run(&mut check)?;
    Ok(ExitCode::SUCCESS)
}

fn build_command(workspace: &Workspace) -> Command {
    let mut build = workspace::cargo();
    build.current_dir(&workspace.root).args([
        "build",
        "--release",
        "--package",
        "lockwatch",
        "--example",
        "push_otlp",
    ]);
    build
}

/// The store's program: from the cache, else fetched.
fn store() -> Result<PathBuf> {
    let cache = cache::directory()?.join("otlp");
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let _lock = cache::lock(&cache)?;
    let home = cache.join(format!("{STORE}-{RELEASE}"));
    let program = home.join("usr/bin").join(STORE);
    if !program.is_file() {
        cache::make_whole(&home, &cache.join("making"), |work| fetch(&cache, work))?;
    }
    Ok(program)
}

/// Unpacks the store's program; where that is.
fn fetch(cache: &Path, work: &Path) -> Result<PathBuf> {
    let archive = Archive::of_release(&cache.join("apt"), RELEASE)?;
    if !archive.is_fresh() {
        archive.refresh()?;
    }
    let (debs, unpacked) = (work.join("debs"), work.join("unpacked"));
    for folder in [&debs, &unpacked] {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let (package, _) = archive.download(STORE, &debs)?;
    deb::unpack(&package, &[&format!("./usr/bin/{STORE}")], &unpacked)?;
    Ok(unpacked)
}
