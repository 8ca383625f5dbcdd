//! `cargo xtask verified`: what the verifier makes of lockwatch's programs, kernel by kernel.

mod table;
mod trace;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

pub(crate) use self::table::{Cell, Programs, Table};
use self::trace::{Load, Map};
use crate::process::{self, End};
use crate::workspace::Workspace;
use crate::{bpf, demo, vm};

/// A look at the programs takes seconds; a machine under test may be slow.
const LIMIT: Duration = Duration::from_secs(120);

/// Load lockwatch's programs on real kernels and tell what the verifier needed.
///
/// lockwatch itself loads them, as it does for a user: `watch` and `diagnose` are run under
/// ptrace, and each bpf(2) that loads a program is made to write the verifier's sum. So every
/// program counts that lockwatch chooses on that kernel, and no other; `watch` also chooses
/// as if typed tracepoints were refused.
///
/// A table of programs and kernels: instructions that the verifier has processed, and how long
/// the load took; below it, the memory of the maps. The running kernel comes first, where
/// it allows BPF. Fails if a program needs more than 200,000 instructions, if the kernel has
/// refused one, and if a program of the objects is loaded on none of all the kernels.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which kernels, such as 6.12, or `running` [default: all]
    #[arg(value_name = "KERNEL")]
    kernels: Vec<String>,
}

/// What lockwatch has loaded on one kernel, in order, by all of its commands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Loaded {
    pub(crate) loads: Vec<Load>,
    pub(crate) maps: Vec<Map>,
}

/// The name of the kernel at hand.
pub(crate) const RUNNING: &str = "running";

/// Exit code 0: all is within the limit.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let mut machines = args.kernels.clone();
    machines.retain(|name| name != RUNNING);
    let all = args.kernels.is_empty();
    let mut kernels = Vec::new();
    let mut well = true;
    if all || machines.len() < args.kernels.len() {
        match bpf::refusal() {
            None => kernels.push((RUNNING.to_owned(), on_running(&workspace)?)),
            Some(why) if all => println!("{RUNNING}: left out: {why}"),
            Some(why) => bail!("the running kernel cannot be asked: {why}"),
        }
    }
    if all || !machines.is_empty() {
        for (name, found) in vm::loaded(&machines)? {
            match found {
                Ok(loaded) => kernels.push((name, loaded)),
                Err(why) => {
                    println!("{name}: FAILED: {why}");
                    well = false;
                }
            }
        }
    }
    let programs = Programs::of_objects(&workspace.root)?;
    let named: Vec<(&str, &Loaded)> = kernels
        .iter()
        .map(|(name, loaded)| (name.as_str(), loaded))
        .collect();
    let table = Table::new(&programs, &named);
    print!("{table}");
    for complaint in table.complaints(all) {
        println!("FAILED: {complaint}");
        well = false;
    }
    Ok(if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What lockwatch loads on the kernel at hand. In a process of its own, for what is traced is killed with it.
pub(crate) fn on_running(workspace: &Workspace) -> Result<Loaded> {
    process::run(&mut demo::build_command(workspace))?;
    let mut command = Command::new(std::env::current_exe().context("cannot find our own program")?);
    command
        .arg("vm-verified")
        .arg(workspace.release_binary("lockwatch"));
    let mut text = String::new();
    match process::supervise(&mut command, LIMIT, |line| text.push_str(line))? {
        End::Exited(status) if status.success() => {
            serde_json::from_str(&text).context("vm-verified wrote no JSON")
        }
        End::Exited(status) => bail!("lockwatch could not be traced: {status}"),
        End::TimedOut => bail!("lockwatch under ptrace did not end in {LIMIT:?}"),
    }
}

/// Tell, as JSON, what lockwatch loads on the kernel that this runs on.
#[derive(Debug, clap::Args)]
pub(crate) struct WitnessArgs {
    /// The program lockwatch
    #[arg(default_value = "/bin/lockwatch")]
    lockwatch: PathBuf,
}

/// Runs lockwatch under ptrace and writes one line.
pub(crate) fn witness(args: &WitnessArgs) -> Result<()> {
    println!("{}", serde_json::to_string(&loaded_by(&args.lockwatch)?)?);
    Ok(())
}

/// What this lockwatch loads on the kernel that this runs on; all that is traced is ours, and
/// is waited for.
pub(crate) fn loaded_by(lockwatch: &Path) -> Result<Loaded> {
    let mut all = Loaded::default();
    // `watch` loads everything before it looks at the first wait. Under ptrace, all is slow.
    let watch = ["watch", "--track-holds", "--for", "1s"];
    let raw = [&watch[..], &["--without", "tp_btf"]].concat();
    for arguments in [&watch[..], &raw, &["diagnose", "--deadline", "60s"]] {
        let mut command = Command::new(lockwatch);
        command.args(arguments).stdout(Stdio::null());
        let line = process::name(&command);
        let (trace, status) =
            trace::run(&mut command).with_context(|| format!("cannot run `{line}`"))?;
        // 0 and 1 are answers; anything else is an error, which stderr has told.
        if !matches!(status.code(), Some(0 | 1)) {
            bail!("`{line}` ended with {status}");
        }
        all.loads.extend(trace.loads);
        all.maps.extend(trace.maps);
    }
    Ok(all)
}
