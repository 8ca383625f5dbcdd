//! `cargo xtask learn`: which functions hold which locks, learned on real kernels.

mod measure;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::process::{self, End, say};
use crate::vm::{self, Besides, Question, Settings};
use crate::workspace::{self, Workspace};

/// Learn on real kernels which functions hold locks and which only carry pointers to them.
///
/// Each kernel is booted in a virtual machine, as by `cargo xtask vm`. There the learner
/// traces every acquisition, makes the stall lab's stalls and some work besides, and looks
/// at the stacks of all tasks at rest. What it learned is written to
/// lockwatch/src/kernel/learned/KERNEL.json; a kernel that is new there is to be listed in
/// learned.rs. It also says how the tables that lockwatch has now would have judged what was
/// observed: what they learned in an earlier run is tried on another one.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which kernels, such as 6.12 or 7.3-rt [default: all]
    #[arg(value_name = "KERNEL")]
    kernels: Vec<String>,
    /// On the running kernel instead, under this name; needs root and BPF
    #[arg(long, value_name = "NAME", conflicts_with = "kernels")]
    here: Option<String>,
    /// How long each kernel is looked at, in seconds
    #[arg(long = "for", value_name = "SECONDS", default_value_t = 150)]
    seconds: u64,
    /// Learn nothing: tell how sure lockwatch is of the lab's readers without any table,
    /// with the hand-made one, with the learned one, and with both
    #[arg(long)]
    measure: bool,
}

/// Beyond the time asked for: setting up and the last stall, on a slow machine.
const MORE: Duration = Duration::from_secs(150);

const LEARNER: &str = "hold-learner";

/// Exit code 0: each kernel taught something.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let learner = build(&workspace)?;
    if args.measure {
        return measure::run(&workspace, args, &learner);
    }
    let found: Vec<(String, Result<Value, String>)> = match &args.here {
        Some(name) => {
            let arguments = ["learn", "--for", &args.seconds.to_string()].map(str::to_owned);
            let limit = Duration::from_secs(args.seconds) + MORE;
            let told = here(&workspace, &learner, &arguments, limit);
            vec![(name.clone(), told.map_err(|error| format!("{error:#}")))]
        }
        None => {
            let question = Question {
                subject: "lessons",
                command: format!("{LEARNER} learn --for {}", args.seconds),
                limit_s: args.seconds + MORE.as_secs(),
            };
            let programs = [(LEARNER.to_owned(), learner)];
            vm::ask(
                &workspace,
                &args.kernels,
                &Settings::USUAL,
                &question,
                Besides {
                    programs: &programs,
                    ..Besides::default()
                },
            )?
        }
    };
    let mut well = true;
    for (kernel, lessons) in found {
        match lessons.map_err(anyhow::Error::msg).and_then(|lessons| {
            let path = file(&workspace.root, &kernel);
            fs::write(&path, text(&lessons)?)
                .with_context(|| format!("cannot write {}", path.display()))?;
            Ok((path, count(&lessons)))
        }) {
            Ok((path, count)) => println!("{kernel}: {count}: {}", workspace.display(&path)),
            Err(why) => {
                println!("{kernel}: FAILED: {why:#}");
                well = false;
            }
        }
    }
    Ok(if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Builds lockwatch, the lab and the learner as released.
fn build(workspace: &Workspace) -> Result<PathBuf> {
    let mut command = crate::demo::build_command(workspace);
    process::timed("building the learner", || {
        process::run(command.args(["--bin", LEARNER]))
    })?;
    Ok(workspace.release_binary(LEARNER))
}

/// Runs the learner on the running kernel; gives what it prints as JSON.
fn here(
    workspace: &Workspace,
    learner: &Path,
    arguments: &[String],
    limit: Duration,
) -> Result<Value> {
    let mut command = Command::new(learner);
    command
        .args(arguments)
        .env("STALL_LAB_BIN", workspace.release_binary("stall-lab"));
    let mut json = None;
    let end = process::supervise(&mut command, limit, |line| {
        match line.starts_with('{').then(|| serde_json::from_str(line)) {
            Some(Ok(value)) => json = Some(value),
            _ => say(line),
        }
    })?;
    match (end, json) {
        (End::Exited(status), Some(json)) if status.success() => Ok(json),
        (End::Exited(status), _) => bail!("{LEARNER} ended with {status}"),
        (End::TimedOut, _) => bail!("{LEARNER} took longer than {limit:?}"),
    }
}

/// Where the lessons of a kernel are kept.
fn file(root: &Path, kernel: &str) -> PathBuf {
    root.join("lockwatch/src/kernel/learned")
        .join(format!("{kernel}.json"))
}

/// One line for each lesson, so that a change can be read.
fn text(lessons: &Value) -> Result<String> {
    let lines = |key: &str| -> Result<String> {
        let rows = lessons[key]
            .as_array()
            .with_context(|| format!("the learner tells no {key}"))?;
        let rows: Vec<String> = rows.iter().map(ToString::to_string).collect();
        Ok(rows.join(",\n"))
    };
    let mut text = String::new();
    write!(
        text,
        "{{\n\"release\": {},\n\"pairs\": [\n{}\n],\n\"dropped\": [\n{}\n]\n}}\n",
        lessons["release"],
        lines("pairs")?,
        lines("dropped")?
    )?;
    Ok(text)
}

fn count(lessons: &Value) -> String {
    let pairs = lessons["pairs"].as_array().map_or(&[][..], Vec::as_slice);
    let with = |key: &str| pairs.iter().filter(|pair| pair.get(key).is_some()).count();
    let trial = &lessons["trial"];
    format!(
        "{} pairs held, {} carried, {} unlinked; of {} holds the tables had known {} by hand, {} \
         learned, {} either; of {} others they had accused {} by hand, {} learned",
        with("held"),
        with("carried"),
        with("unlinked"),
        trial["held"],
        trial["by_hand"],
        trial["by_learned"],
        trial["by_either"],
        trial["carried"],
        trial["wrong_by_hand"],
        trial["wrong_by_learned"]
    )
}

/// A build of lockwatch with these features, beside the others: as released, but for what
/// takes long to compile and changes no answer.
fn variant(workspace: &Workspace, name: &str, features: &str) -> Result<PathBuf> {
    let target = workspace.target.join("frames");
    let mut command = workspace::cargo();
    command.current_dir(&workspace.root).args([
        "build",
        "--release",
        "--locked",
        "--package",
        "lockwatch",
        "--bin",
        "lockwatch",
        "--features",
        features,
    ]);
    command
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
        .env("CARGO_PROFILE_RELEASE_INCREMENTAL", "true");
    process::run(command.arg("--target-dir").arg(&target))?;
    let built = target.join("release").join("lockwatch");
    let kept = target.join(format!("lockwatch-{name}"));
    fs::copy(&built, &kept).with_context(|| format!("cannot keep {}", built.display()))?;
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lessons_are_written_a_line_each() {
        let lessons = serde_json::json!({
            "release": "6.12",
            "pairs": [{"class": "s_umount", "held": 3}, {"class": "s_umount", "carried": 1}],
            "dropped": [["a", "b"]],
        });
        let text = text(&lessons).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), lessons);
        assert_eq!(text.lines().count(), 10);
        assert!(count(&lessons).starts_with("1 pairs held, 1 carried, 0 unlinked;"));
    }
}
