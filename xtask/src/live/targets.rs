//! The live tests: the binaries that have them, and their names.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::process;
use crate::workspace::{self, Workspace};

/// Test targets with this name, or with more behind it, need root and BPF.
const KIND: &str = "live";

/// Those need a machine of their own besides, which they may leave without a CPU or stop.
const OF_MACHINES: &str = "vm";

/// Those need a Prometheus.
const OF_METRICS: &str = "metrics";

/// The one of the live ones that takes minutes where nothing is emulated.
pub(crate) const SOAK: &str = "live_soak";

/// A test binary and its tests.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) binary: PathBuf,
    pub(crate) tests: Vec<String>,
}

/// Whether the tests of a target are live ones.
pub(crate) fn is_live(target: &str) -> bool {
    is_of(KIND, target)
}

/// Whether the tests of a target are live ones for virtual machines only.
pub(crate) fn is_of_machines(target: &str) -> bool {
    is_of(OF_MACHINES, target)
}

/// Whether the tests of a target need a Prometheus.
pub(crate) fn is_of_metrics(target: &str) -> bool {
    is_of(OF_METRICS, target)
}

fn is_of(kind: &str, target: &str) -> bool {
    target
        .strip_prefix(kind)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
}

/// Builds the tests of the targets that are `wanted`.
pub(crate) fn build(workspace: &Workspace, wanted: impl Fn(&str) -> bool) -> Result<Vec<Target>> {
    let mut command = workspace::cargo();
    command.current_dir(&workspace.root).args([
        "test",
        "--workspace",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    let names: Vec<&String> = workspace
        .test_targets
        .iter()
        .filter(|name| wanted(name))
        .collect();
    if names.is_empty() {
        bail!("tests/tests/ has no {KIND}_*.rs");
    }
    for name in names {
        command.args(["--test", name]);
    }
    let messages = process::capture(&mut command)?;
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| {
            let binary = message["executable"].as_str()?;
            let name = message["target"]["name"].as_str()?;
            let is_test = message["profile"]["test"] == true && wanted(name);
            is_test.then(|| (name.to_owned(), PathBuf::from(binary)))
        })
        .map(|(name, binary)| {
            let tests = list(&binary)?;
            Ok(Target {
                name,
                binary,
                tests,
            })
        })
        .collect()
}

/// The tests whose `target::name` contains one of these; all, if there are none.
pub(crate) fn chosen<'t>(
    targets: &'t [Target],
    filter: &'t [String],
) -> impl Iterator<Item = (&'t Target, &'t str)> {
    let all = targets.iter().flat_map(|target| {
        let tests = target.tests.iter();
        tests.map(move |name| (target, name.as_str()))
    });
    all.filter(|(target, name)| {
        let full = format!("{}::{name}", target.name);
        filter.is_empty() || filter.iter().any(|filter| full.contains(filter))
    })
}

/// The tests that a binary has; runs none.
fn list(binary: &Path) -> Result<Vec<String>> {
    let mut command = Command::new(binary);
    let text = process::capture(command.args(["--list", "--format", "terse"]))?;
    Ok(parse_list(&text))
}

fn parse_list(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_targets_are_told_by_their_names() {
        assert!(is_live("live") && is_live("live_mmap"));
        assert!(!is_live("lively") && !is_live("cli") && !is_live("vm_lockup"));
        assert!(is_of_machines("vm_lockup") && !is_of_machines("live_vm"));
        assert!(is_of_metrics("metrics_prometheus") && !is_of_metrics("live_metrics"));
    }

    #[test]
    fn tests_are_listed_without_benchmarks() {
        let text = "one::two: test\nslow: benchmark\n\n1 tests, 1 benchmarks\n";
        assert_eq!(parse_list(text), ["one::two"]);
    }

    #[test]
    fn a_filter_chooses_by_target_and_name() {
        let targets = ["live_a", "live_b"].map(|name| Target {
            name: name.to_owned(),
            binary: PathBuf::new(),
            tests: vec!["one".to_owned(), "two".to_owned()],
        });
        let names = |filter: &[&str]| {
            let filter: Vec<String> = filter.iter().map(ToString::to_string).collect();
            chosen(&targets, &filter)
                .map(|(target, name)| format!("{}::{name}", target.name))
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&[]).len(), 4);
        assert_eq!(names(&["a::t", "b::o"]), ["live_a::two", "live_b::one"]);
    }
}
