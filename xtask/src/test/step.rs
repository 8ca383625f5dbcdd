//! The steps, in order: cheap ones first, those that need a machine last.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::live::targets;
use crate::workspace::{self, Workspace};
use crate::{bpf, demo, vm};

/// What the caller wants of the steps.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) long: bool,
    pub(crate) vm: Machines,
    /// By name.
    pub(crate) asked_for_vm: bool,
    pub(crate) filter: Option<&'a str>,
}

/// Whether the live tests are also run in virtual machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Machines {
    Wanted,
    /// The caller has said so; it is counted as skipped.
    LeftOut,
}

/// One step.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) limit: Duration,
    pub(crate) action: Action,
    /// A run of it without any test is a failure.
    pub(crate) must_test: bool,
}

/// What a step does.
#[derive(Debug)]
pub(crate) enum Action {
    /// Runs a command that passes or fails as one.
    Check(Command),
    /// Runs test binaries, whose tests are counted.
    Tests(Command),
    /// Cannot run here.
    Skip(String),
    /// Cannot run anywhere, as the tree is.
    Fail(String),
}

/// All steps for this tree and this machine.
pub(crate) fn steps(workspace: &Workspace, plan: &Plan<'_>) -> Result<Vec<Step>> {
    let cargo = |arguments: &[&str]| {
        let mut command = workspace::cargo();
        command.current_dir(&workspace.root).args(arguments);
        command
    };
    let xtask = std::env::current_exe().context("cannot find our own program")?;
    let verb = |arguments: &[&str]| {
        let mut command = Command::new(&xtask);
        command.args(arguments);
        command
    };
    let mut docs = cargo(&["doc", "--workspace", "--no-deps"]);
    docs.env("RUSTDOCFLAGS", "-Dwarnings");

    let doc_tests = filtered(
        cargo(&["test", "--workspace", "--no-fail-fast", "--doc"]),
        plan,
    );

    let mut steps = vec![
        check("format", 1, cargo(&["fmt", "--all", "--", "--check"])),
        check(
            "clippy",
            10,
            cargo(&["clippy", "--workspace", "--all-targets", "--", "-Dwarnings"]),
        ),
        // Either may have to make the private compiler first.
        check("objects", 10, verb(&["ebpf", "--check"])),
        check("clippy-bpf", 10, verb(&["ebpf", "--clippy"])),
        step("tests", 12, Action::Tests(plain_tests(workspace, plan))),
        Step {
            must_test: false,
            ..step("doc-tests", 6, Action::Tests(doc_tests))
        },
        check("binaries", 10, demo::build_command(workspace)),
        check("formats", 8, verb(&["formats"])),
        // May have to fetch the store that metrics are pushed to.
        check("otlp", 10, verb(&["otlp"])),
        step(METRICS, 8, Action::Tests(metrics(&xtask, plan))),
        step(
            LIVE,
            if plan.long { 65 } else { 20 },
            live_tests(&xtask, workspace, plan),
        ),
    ];
    let vm = in_machines(&xtask, plan);
    let unless_skipped = |arguments: &[&str]| match &vm {
        Action::Skip(why) => Action::Skip(why.clone()),
        _ => Action::Check(verb(arguments)),
    };
    let kernels = unless_skipped(&["kernels", "--check"]);
    let bench_vm = unless_skipped(&["bench", "--check", "start", "locks"]);
    steps.push(step(VM, 50, vm));
    steps.push(step("kernels", 1, kernels));
    steps.push(check("bench", 5, verb(&["bench", "--check", "--no-vm"])));
    steps.push(step(BENCH_VM, 8, bench_vm));
    let live_verb = |name| match bpf::refusal() {
        Some(reason) => Action::Skip(reason),
        None => Action::Check(verb(&[name])),
    };
    steps.push(step("mutation", 8, live_verb("mutation")));
    // Where BPF is refused, in a virtual machine.
    steps.push(check("demo", 8, verb(&["demo"])));
    steps.push(check("docs", 8, docs));
    if plan.filter.is_some() {
        let mut with_tests = vec!["tests", "doc-tests", METRICS, LIVE];
        // They boot for minutes: who looks for one test has to ask for them.
        with_tests.extend(plan.asked_for_vm.then_some(VM));
        steps.retain(|step| with_tests.contains(&step.name));
    }
    Ok(steps)
}

/// The step with the tests that need a Prometheus.
const METRICS: &str = "metrics";

/// The steps that run the live tests, here and in virtual machines.
pub(crate) const LIVE: &str = "live";
pub(crate) const VM: &str = "vm";

/// The step that counts instructions in a virtual machine.
const BENCH_VM: &str = "bench-vm";

/// Whether a step needs virtual machines, or their results.
pub(crate) fn needs_machines(name: &str) -> bool {
    [VM, "kernels", BENCH_VM].contains(&name)
}

fn metrics(xtask: &Path, plan: &Plan<'_>) -> Command {
    let mut command = Command::new(xtask);
    command.arg(METRICS).args(plan.filter);
    command
}

/// The live tests in virtual machines, on the kernels that every run has to try.
fn in_machines(xtask: &Path, plan: &Plan<'_>) -> Action {
    if plan.vm == Machines::LeftOut {
        return Action::Skip("left out by --no-vm: nothing is known of other kernels".to_owned());
    }
    if let Some(reason) = vm::refusal() {
        return Action::Skip(reason);
    }
    let mut command = Command::new(xtask);
    command.arg("vm").args(vm::required());
    // What comes out differently now and then is found by `live`, in more runs.
    command.args(["--runs", if plan.long { "5" } else { "2" }]);
    if let Some(filter) = plan.filter {
        command.args(["--filter", filter]);
    }
    Action::Tests(command)
}

/// All tests that anyone can run: every target but the live ones, and those that need a
/// Prometheus.
///
/// Those are left out by name, not by their `#[ignore]`, so that no test is
/// counted as skipped here and as passed there.
fn plain_tests(workspace: &Workspace, plan: &Plan<'_>) -> Command {
    let mut command = workspace::cargo();
    command.current_dir(&workspace.root).args([
        "test",
        "--workspace",
        "--no-fail-fast",
        "--lib",
        "--bins",
    ]);
    let targets = workspace.test_targets.iter();
    let needs_more = |name: &str| {
        targets::is_live(name) || targets::is_of_machines(name) || targets::is_of_metrics(name)
    };
    for target in targets.filter(|name| !needs_more(name)) {
        command.args(["--test", target]);
    }
    filtered(command, plan)
}

/// The live tests on the running kernel.
fn live_tests(xtask: &Path, workspace: &Workspace, plan: &Plan<'_>) -> Action {
    if !workspace
        .test_targets
        .iter()
        .any(|name| targets::is_live(name))
    {
        return Action::Fail(format!("tests/tests/ has no {LIVE}_*.rs"));
    }
    if let Some(reason) = bpf::refusal() {
        return Action::Skip(reason);
    }
    let mut command = Command::new(xtask);
    command.arg("live");
    command.args(["--runs", if plan.long { "200" } else { "30" }]);
    command.args(["--soak", if plan.long { "1200" } else { "180" }]);
    if let Some(filter) = plan.filter {
        command.args(["--filter", filter]);
    }
    Action::Tests(command)
}

fn filtered(mut command: Command, plan: &Plan<'_>) -> Command {
    command.args(plan.filter);
    command
}

fn check(name: &'static str, limit: u64, command: Command) -> Step {
    step(name, limit, Action::Check(command))
}

/// A step with a limit in minutes.
fn step(name: &'static str, limit: u64, action: Action) -> Step {
    Step {
        name,
        limit: Duration::from_secs(60 * limit),
        must_test: matches!(action, Action::Tests(_)),
        action,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process;

    fn workspace(targets: &[&str]) -> Workspace {
        Workspace {
            root: "/nowhere".into(),
            target: "/nowhere/target".into(),
            test_targets: targets.iter().map(ToString::to_string).collect(),
        }
    }

    const PLAN: Plan<'_> = Plan {
        long: false,
        vm: Machines::Wanted,
        asked_for_vm: false,
        filter: None,
    };

    #[test]
    fn plain_tests_leave_out_what_needs_a_machine() {
        let command = plain_tests(
            &workspace(&["cli", "live_mmap", "lively", "metrics_x", "vm_old"]),
            &PLAN,
        );
        let line = process::name(&command);
        assert!(
            line.ends_with("--lib --bins --test cli --test lively"),
            "{line}"
        );
    }

    #[test]
    fn a_tree_without_live_tests_fails() {
        let steps = steps(&workspace(&["cli"]), &PLAN).unwrap();
        let live = steps.iter().find(|step| step.name == "live").unwrap();
        assert!(matches!(&live.action, Action::Fail(why) if why.contains("no live_*.rs")));
    }

    #[test]
    fn virtual_machines_are_a_step_unless_left_out() {
        let vm = |vm| {
            let plan = Plan { vm, ..PLAN };
            let mut steps = steps(&workspace(&["live_mmap"]), &plan).unwrap();
            let place = steps.iter().position(|step| step.name == "vm").unwrap();
            steps.remove(place).action
        };
        match vm(Machines::Wanted) {
            Action::Tests(command) => {
                let line = process::name(&command);
                assert!(
                    line.contains(" vm 5.10 6.1 6.1-rt 6.12 6.18 7.3 7.3-rt"),
                    "{line}"
                );
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(vm(Machines::LeftOut), Action::Skip(why) if why.contains("--no-vm")));
    }

    #[test]
    fn a_filter_leaves_only_steps_with_tests() {
        let plan = Plan {
            filter: Some("queue"),
            ..PLAN
        };
        let names: Vec<_> = steps(&workspace(&["live_mmap"]), &plan)
            .unwrap()
            .iter()
            .map(|step| step.name)
            .collect();
        assert_eq!(names, ["tests", "doc-tests", METRICS, LIVE]);
        let plan = Plan {
            asked_for_vm: true,
            ..plan
        };
        let steps = steps(&workspace(&["live_mmap"]), &plan).unwrap();
        assert!(steps.iter().any(|step| step.name == "vm"));
    }
}
