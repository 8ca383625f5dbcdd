//! `cargo xtask test`: everything that must hold before a change is handed on.

mod step;
mod tally;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use self::step::{Action, Machines, Plan};
use self::tally::{Outcome, Tally};
use crate::live::story::Story;
use crate::live::{self, second};
use crate::process::{self, End};
use crate::workspace::Workspace;

const BUDGET: Duration = Duration::from_secs(35 * 60);
const LONG_BUDGET: Duration = Duration::from_secs(90 * 60);
/// More of it for virtual machines, their downloads included.
const VM_BUDGET: Duration = Duration::from_secs(50 * 60);

/// Run all checks and tests of the project, within a time budget.
///
/// The budget is 85 minutes, 140 with --long, and 50 less with --no-vm; each step has
/// a limit of its own and is killed, with all it has started, when it exceeds it.
/// The last line is the sum: `N passed, N failed, N skipped`. A test counts as
/// itself, a step without tests as one.
///
/// Steps: format, clippy, objects (the committed kernel objects are what the
/// sources give), clippy-bpf, tests, doc-tests, binaries, formats (reports
/// of recordings and logs of histograms, read by other projects' parsers), otlp (metrics,
/// pushed to receivers of OpenTelemetry's protocol), metrics (a real Prometheus scrapes them),
/// live (real stalls;
/// root and BPF), vm (the same on real kernels in virtual machines: `cargo xtask vm`; a
/// kernel that cannot be had is a failure), kernels (docs/kernels.md says what they gave),
/// bench and bench-vm (nothing that can be counted costs more than docs/performance.json says),
/// mutation (a live test must notice a defect made on purpose), demo, docs.
///
/// What the steps need of Debian's packages is installed if it is missing.
///
/// What failed tests have said is told once more at the end, before the summary. A live test
/// that fails is tried a second time; what passes then is flaky, and more than three flaky
/// tests, of all steps together, are a failure.
///
/// Nothing is skipped silently: a step that cannot run here fails the run,
/// unless --allow-skip names it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// More runs of each live test: 200 instead of 30, and 5 instead of 2 in a virtual machine;
    /// and a soak of 20 minutes instead of 3
    #[arg(long)]
    long: bool,
    /// Only tests whose name contains this; other steps are left out, and vm if no --step
    /// asks for it
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Only this step; may be given more than once
    #[arg(long = "step", value_name = "STEP")]
    steps: Vec<String>,
    /// Boot no virtual machines: their step counts as skipped, and the run may pass
    #[arg(long)]
    no_vm: bool,
    /// Do not fail because this step cannot run here; may be given more than once
    #[arg(long, value_name = "STEP")]
    allow_skip: Vec<String>,
}

/// Exit code 0: nothing failed, and nothing that is required was skipped.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let vm = if args.no_vm {
        Machines::LeftOut
    } else {
        Machines::Wanted
    };
    let mut steps = step::steps(
        &workspace,
        &Plan {
            long: args.long,
            vm,
            asked_for_vm: args.steps.iter().any(|step| step == "vm"),
            filter: args.filter.as_deref(),
        },
    )?;
    for name in args.steps.iter().chain(&args.allow_skip) {
        if !steps.iter().any(|step| step.name == name) {
            let names: Vec<&str> = steps.iter().map(|step| step.name).collect();
            bail!(
                "there is no step {name}: the steps are {}",
                names.join(", ")
            );
        }
    }
    if !args.steps.is_empty() {
        let wanted = |name: &str| args.steps.iter().any(|step| step == name);
        steps.retain(|step| wanted(step.name));
    }
    let mut budget = if args.long { LONG_BUDGET } else { BUDGET };
    if !args.no_vm {
        budget += VM_BUDGET;
    }
    println!("{} steps, time budget {}", steps.len(), minutes(budget));
    if let Some(filter) = &args.filter {
        println!("only tests whose name contains `{filter}`");
    }

    let deadline = Instant::now() + budget;
    let count = steps.len();
    let mut outcomes = Vec::new();
    for (number, step) in (1..).zip(steps) {
        println!(
            "\n=== {number}/{count} {} (limit {})",
            step.name,
            minutes(step.limit)
        );
        let start = Instant::now();
        let limit = step.limit.min(deadline.saturating_duration_since(start));
        let may_skip = |name: &str| args.allow_skip.iter().any(|allowed| allowed == name);
        // Who can do without the machines can do without what is made of their results.
        let allowed = may_skip(step.name)
            || step::needs_machines(step.name) && (args.no_vm || may_skip(step::VM));
        let mut tally = perform(step.action, limit)?;
        if step.must_test && args.filter.is_none() && tally.is_empty() {
            tally = tally.and_failed("no test was run");
        }
        let outcome = Outcome {
            name: step.name,
            limit: step.limit,
            took: start.elapsed(),
            tally,
            allowed,
        };
        println!("=== {outcome}");
        outcomes.push(outcome);
    }
    Ok(summary(&outcomes, args.filter.as_deref()))
}

/// Runs one step; whatever goes wrong in it is counted, not returned.
fn perform(action: Action, limit: Duration) -> Result<Tally> {
    let (mut command, has_tests) = match action {
        Action::Skip(reason) => return Ok(Tally::skipped(reason)),
        Action::Fail(reason) => return Ok(Tally::failed(reason)),
        Action::Check(command) => (command, false),
        Action::Tests(command) => (command, true),
    };
    if limit.is_zero() {
        return Ok(Tally::failed("no time was left in the budget"));
    }
    println!("$ {}", process::name(&command));
    let mut tally = Tally::default();
    let end = process::supervise(&mut command, limit, |line| {
        println!("{line}");
        if has_tests {
            tally.add_line(line);
        }
    })?;
    Ok(match end {
        End::TimedOut => tally.and_failed(format!("killed after {}", minutes(limit))),
        End::Exited(status) if status.success() && has_tests => tally,
        End::Exited(status) if status.success() => Tally::passed(),
        // Failed tests are counted already; else it did not even come to tests.
        End::Exited(_) if tally.failed > 0 => tally,
        End::Exited(_) if second::too_many(tally.flaky).is_some() => {
            let why = second::too_many(tally.flaky);
            tally.and_failed(why.unwrap_or_default())
        }
        End::Exited(status) => tally.and_failed(format!("ended with {status}")),
    })
}

/// Prints the table and, last, the sum.
fn summary(outcomes: &[Outcome], filter: Option<&str>) -> ExitCode {
    let stories: Vec<Story> = outcomes
        .iter()
        .flat_map(|outcome| outcome.tally.stories())
        .collect();
    if !stories.is_empty() {
        println!("\nwhat failed tests have said\n");
    }
    for story in stories {
        println!("{story}");
    }
    println!("\nsummary");
    for outcome in outcomes {
        println!("  {outcome}");
    }
    let total: Tally = outcomes.iter().map(|outcome| &outcome.tally).sum();
    let mut green = total.failed == 0;
    for outcome in outcomes
        .iter()
        .filter(|outcome| outcome.lacks_permission_to_skip())
    {
        println!(
            "the run fails: {0} is required and could not run (--allow-skip {0} accepts that)",
            outcome.name
        );
        green = false;
    }
    if let Some(why) = second::too_many(total.flaky) {
        println!("the run fails: {why}");
        green = false;
    }
    if let Some(filter) = filter
        && total.passed + total.failed == 0
    {
        println!("the run fails: no test was run whose name contains `{filter}`");
        green = false;
    }
    if total.flaky > 0 {
        println!("{}{}", live::FLAKY, total.flaky);
    }
    println!(
        "{} passed, {} failed, {} skipped",
        total.passed, total.failed, total.skipped
    );
    if green {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn minutes(time: Duration) -> String {
    match time.as_secs() {
        seconds if seconds < 120 => format!("{seconds} s"),
        seconds => format!("{} min", seconds.div_ceil(60)),
    }
}
