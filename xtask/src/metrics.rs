//! `cargo xtask metrics`: what lockwatch exports, scraped by a real Prometheus.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::live::targets;
use crate::process::{say, timed};
use crate::workspace::{self, Workspace};
use crate::{cache, deb, demo, packages, process};

/// Debian's package, and the programs in it that are used.
const PACKAGE: &str = "prometheus";
const PROGRAMS: [&str; 2] = ["prometheus", "promtool"];

/// Where the tests find the programs.
const FOLDER: &str = "LOCKWATCH_PROMETHEUS";

/// Let a real Prometheus scrape what lockwatch exports, and query it.
///
/// It is the one on the PATH, else that of Debian's package, which is unpacked into the cache
/// and not installed: that would start a service. promtool checks the metrics, and the rules
/// of docs/prometheus/. And lockwatch itself exports what happens in storms of lock waits on
/// the running kernel: needs root and BPF.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only tests whose name contains this
    filter: Option<String>,
}

/// Exit code 0: all tests have passed.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let folder = programs()?;
    let version = process::capture(Command::new(folder.join("promtool")).arg("--version"))?;
    say(version.lines().next().unwrap_or_default());
    process::run(&mut demo::build_command(&workspace))?;
    let mut test = workspace::cargo();
    test.current_dir(&workspace.root).env(FOLDER, folder).args([
        "test",
        "--package",
        "lockwatch-tests",
        "--no-fail-fast",
    ]);
    for target in &workspace.test_targets {
        if targets::is_of_metrics(target) {
            test.args(["--test", target]);
        }
    }
    // One at a time: storms are counted.
    test.args(&args.filter)
        .args(["--", "--ignored", "--test-threads=1", "--nocapture"]);
    process::run(&mut test)?;
    Ok(ExitCode::SUCCESS)
}

/// The folder that has both programs.
fn programs() -> Result<PathBuf> {
    let on_path = PROGRAMS.map(|name| packages::path(name).ok());
    if let [Some(server), Some(tool)] = &on_path
        && server.parent() == tool.parent()
        && let Some(folder) = server.parent()
    {
        return Ok(folder.to_owned());
    }
    let cache = cache::directory()?;
    fs::create_dir_all(&cache)
        .with_context(|| format!("cannot create the cache {}", cache.display()))?;
    let _lock = cache::lock(&cache)?;
    let home = cache.join(PACKAGE);
    if check(&home).is_err() {
        say(format_args!(
            "no Prometheus yet: Debian's package goes to {} (about 20 MB to download, 100 MB on \
             disk; nothing is installed into the system)",
            home.display()
        ));
        timed("fetching it", || {
            cache::make_whole(&home, &cache.join("making-prometheus"), unpack)
        })?;
        check(&home).context("the new Prometheus does not work")?;
    }
    Ok(home)
}

fn check(home: &Path) -> Result<()> {
    for name in PROGRAMS {
        process::capture(Command::new(home.join(name)).arg("--version"))?;
    }
    Ok(())
}

/// Unpacks the programs; where they are.
fn unpack(work: &Path) -> Result<PathBuf> {
    deb::download(&[PACKAGE.to_owned()], work)?;
    let deb = fs::read_dir(work)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt said nothing and downloaded nothing")?;
    let members = PROGRAMS.map(|name| format!("./usr/bin/{name}"));
    deb::unpack(&deb, &members.each_ref().map(String::as_str), work)?;
    Ok(work.join("usr/bin"))
}
