//! `cargo xtask bench`: what lockwatch costs, and what its peers cost beside it.

mod diagnose;
mod events;
mod figure;
mod goal;
mod locks;
mod native;
mod page;
mod peers;
mod runs;
mod start;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::ValueEnum;

use self::figure::{Committed, Figure, Measured};
pub(crate) use self::start::{MachineArgs as StartArgs, tell as start_in_machine};
use crate::process::say;
use crate::workspace::Workspace;

/// Measure what lockwatch costs: instructions, time, memory.
///
/// Each part measures by itself, and everything that is compared is measured in the same run,
/// in turns. What repeats (instructions of an emulated processor, of the verifier,
/// allocations) is compared with the committed figures by --check, which is a step of
/// `cargo xtask test`. What does not repeat (times, on whatever machine this is) is told as
/// medians and ratios, and compared with nothing. docs/performance.md explains each part.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which parts [default: all; with --check: all of which something repeats]
    #[arg(value_name = "PART")]
    parts: Vec<Part>,
    /// Measure only what repeats, and fail if it is worse than what is committed
    #[arg(long, conflicts_with_all = ["write", "peers"])]
    check: bool,
    /// Keep the figures of these parts: docs/performance.json, and the tables of
    /// docs/performance.md
    #[arg(long)]
    write: bool,
    /// Leave out the parts that boot virtual machines
    #[arg(long)]
    no_vm: bool,
    /// Measure other tools beside lockwatch, too: they are fetched as Debian's packages
    #[arg(long)]
    peers: bool,
}

/// What is measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// From exec to the first answer: time, memory, and what the verifier goes through
    Start,
    /// Instructions that tracing adds to a lock, counted on emulated processors
    Locks,
    /// What is added to real work on the running kernel
    Native,
    /// How many events a second go from the kernel to the detectors, and what is lost
    Events,
    /// How long it takes to say what is stuck, by how many wait
    Diagnose,
}

/// What a part needs to know.
#[derive(Debug)]
pub(crate) struct Bench<'b> {
    pub(crate) workspace: &'b Workspace,
    /// Only what repeats, in little time.
    pub(crate) only_steady: bool,
    pub(crate) peers: bool,
}

impl Part {
    /// As it is called on the command line and in docs/performance.json.
    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether anything of it repeats.
    fn is_steady(self) -> bool {
        match self {
            Self::Start | Self::Locks | Self::Events => true,
            Self::Native | Self::Diagnose => false,
        }
    }

    /// Whether it boots virtual machines.
    fn needs_machines(self) -> bool {
        matches!(self, Self::Start | Self::Locks)
    }

    fn measure(self, bench: &Bench<'_>) -> Result<Vec<Figure>> {
        match self {
            Self::Start => start::measure(bench),
            Self::Locks => locks::measure(bench),
            Self::Native => native::measure(bench),
            Self::Events => events::measure(bench),
            Self::Diagnose => diagnose::measure(bench),
        }
    }
}

/// Exit code 0: everything was measured, and nothing that repeats is worse than before.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let bench = Bench {
        workspace: &workspace,
        only_steady: args.check,
        peers: args.peers,
    };
    let mut parts = args.parts.clone();
    if parts.is_empty() {
        parts.extend(Part::value_variants());
        parts.retain(|part| !args.check || part.is_steady());
    }
    parts.retain(|part| !args.no_vm || !part.needs_machines());
    if let Some(part) = parts.iter().find(|part| args.check && !part.is_steady()) {
        bail!("--check: nothing that {} measures repeats", part.name());
    }
    let mut committed = Committed::read(&workspace)?;
    let mut well = true;
    for part in parts {
        say(format_args!("bench: {} …", part.name()));
        let began = Instant::now();
        let measured = Measured::now(part.measure(&bench)?)?;
        println!("\n{} ({:.0?})\n", part.name(), began.elapsed());
        print!("{}", page::table(&measured));
        if args.check {
            let complaints = committed.complaints(&part.name(), &measured);
            for complaint in &complaints {
                println!("FAILED: {complaint}");
            }
            well &= complaints.is_empty();
        }
        if args.write {
            // Part by part: a long run that is stopped keeps what it has.
            committed.keep(&part.name(), measured);
            committed.write(&workspace)?;
            page::write(&workspace, &committed)?;
        }
    }
    Ok(if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
