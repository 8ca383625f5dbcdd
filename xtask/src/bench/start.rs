//! What it takes until lockwatch answers: time, memory, and what the verifier goes through.

mod run;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

pub(super) use self::run::peak;
use self::run::{Memory, Running};
use super::Bench;
use super::figure::{Figure, Unit};
use super::runs::median;
use crate::process::{self, say};
use crate::verified::{self, Cell, Loaded, Programs, RUNNING, Table};
use crate::vm::{self, Besides, Question, Settings};
use crate::workspace::Workspace;
use crate::{bpf, demo};

/// Part of its size by which the binary may grow: compilers differ.
const SIZE_TOLERANCE: f64 = 0.03;
/// A verifier counts the same for the same programs; the kernel's package moves within its
/// series.
const VERIFIED_TOLERANCE: f64 = 0.1;
/// Of maps, the same holds.
const MAPS_TOLERANCE: f64 = 0.02;
/// Resident memory is that of the binary and of the kernel's symbols, mostly.
const MEMORY_TOLERANCE: f64 = 0.1;

/// The kernel of the goals.
const MACHINE: &str = "6.12";

/// What goes on until it is told to stop, and how it says on stderr that all is attached.
const LASTING: [(&[&str], &str); 3] = [
    (&["watch"], "watching:"),
    (&["watch", "--track-holds"], "watching:"),
    (&["export", "--listen", "127.0.0.1:0"], "exporting:"),
];
/// What answers and ends.
const DIAGNOSE: &str = "diagnose";

/// Starts of each command, in turns.
const STARTS: usize = 15;
/// When memory is looked at: the first survey is over by then.
const SETTLED: Duration = Duration::from_secs(5);

/// The machine under emulation takes its time.
const MACHINE_LIMIT_S: u64 = 300;

/// Measures the released binary: its size, and what it takes on the running kernel, if that
/// allows BPF, and on the kernel of the goals.
pub(crate) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    process::run(&mut demo::build_command(bench.workspace))?;
    let binary = bench.workspace.release_binary("lockwatch");
    let size = fs::metadata(&binary)
        .with_context(|| format!("cannot see {}", binary.display()))?
        .len();
    let mut figures =
        vec![Figure::new("release binary", "", size as f64, Unit::Bytes).within(SIZE_TOLERANCE)];
    let programs = Programs::of_objects(&bench.workspace.root)?;
    let told = in_machine(bench.workspace)?;
    figures.extend(of_verifier(&programs, MACHINE, &told.loaded));
    figures.extend(of_memory(MACHINE, &told.memory));
    // Nothing below repeats on whatever machine this is.
    if bench.only_steady {
        return Ok(figures);
    }
    if let Some(why) = bpf::refusal() {
        say(format_args!("start: not on the running kernel: {why}"));
        return Ok(figures);
    }
    figures.extend(times(&binary)?);
    let memory = memory(&binary)?;
    let loaded = verified::on_running(bench.workspace)?;
    let steady = of_memory(RUNNING, &memory).chain(of_verifier(&programs, RUNNING, &loaded));
    figures.extend(steady.map(|figure| Figure {
        tolerance: None,
        ..figure
    }));
    figures.extend(load_times(&programs, &loaded));
    Ok(figures)
}

/// From exec to attached, and of `diagnose` with nothing stuck to its end: medians.
fn times(binary: &Path) -> Result<Vec<Figure>> {
    let mut took: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
    for _ in 0..STARTS {
        for (arguments, says) in LASTING {
            let began = Instant::now();
            let running = Running::start(binary, arguments, says)?;
            took.entry(arguments_of(arguments))
                .or_default()
                .push(began.elapsed());
            running.end()?;
        }
        let diagnose = took.entry(DIAGNOSE.to_owned()).or_default();
        diagnose.push(run::to_its_end(binary, &[DIAGNOSE])?);
    }
    let figures = took.into_iter().map(|(command, times)| {
        let median = median(times.iter().map(|time| time.as_nanos() as f64))?;
        let name = format!("ready/{command}");
        Ok(Figure::new(name, RUNNING, median, Unit::Nanoseconds))
    });
    figures.collect()
}

/// As the commands are called in figures: without what is of no account.
fn arguments_of(arguments: &[&str]) -> String {
    let kept = arguments.iter().take_while(|word| **word != "--listen");
    kept.copied().collect::<Vec<_>>().join(" ")
}

/// The memory of each command.
fn memory(binary: &Path) -> Result<BTreeMap<String, Memory>> {
    let mut memory = BTreeMap::new();
    for (arguments, says) in LASTING {
        let running = Running::start(binary, arguments, says)?;
        std::thread::sleep(SETTLED);
        let of_command = running.memory()?;
        running.end()?;
        memory.insert(arguments_of(arguments), of_command);
    }
    let peak = peak(binary, &[DIAGNOSE, "--deadline", "60s"])?;
    let diagnose = Memory {
        peak,
        ..Memory::default()
    };
    memory.insert(DIAGNOSE.to_owned(), diagnose);
    Ok(memory)
}

fn of_memory(kernel: &str, memory: &BTreeMap<String, Memory>) -> impl Iterator<Item = Figure> {
    memory.iter().flat_map(move |(command, memory)| {
        [
            ("resident", memory.resident, MEMORY_TOLERANCE),
            ("peak", memory.peak, MEMORY_TOLERANCE),
            ("maps", memory.maps, MAPS_TOLERANCE),
        ]
        .into_iter()
        // What ends has nothing but a peak.
        .filter(|(_, bytes, _)| *bytes > 0)
        .map(move |(what, bytes, tolerance)| {
            let name = format!("{what}/{command}");
            Figure::new(name, kernel, bytes as f64, Unit::Bytes).within(tolerance)
        })
    })
}

/// What the verifier goes through for each program, and for all.
fn of_verifier(programs: &Programs, kernel: &str, loaded: &Loaded) -> Vec<Figure> {
    let figure = |name: &str, count: u64| {
        let name = format!("verified/{name}");
        Figure::new(name, kernel, count as f64, Unit::VerifiedInstructions)
            .within(VERIFIED_TOLERANCE)
    };
    let found = |(name, instructions, _): (String, Option<u64>, u64)| Some((name, instructions?));
    let each: Vec<(String, u64)> = cells(programs, kernel, loaded).filter_map(found).collect();
    let all = each.iter().map(|(_, count)| count).sum();
    let each = each.iter().map(|(name, count)| figure(name, *count));
    each.chain([figure("all programs", all)]).collect()
}

/// How long the kernel takes to load each program, under ptrace.
fn load_times(programs: &Programs, loaded: &Loaded) -> Vec<Figure> {
    cells(programs, RUNNING, loaded)
        .map(|(name, _, took_us)| {
            let name = format!("load/{name}");
            Figure::new(name, RUNNING, took_us as f64 * 1e3, Unit::Nanoseconds)
        })
        .collect()
}

/// Name, verified instructions, and microseconds to load of what was loaded.
fn cells(
    programs: &Programs,
    kernel: &str,
    loaded: &Loaded,
) -> impl Iterator<Item = (String, Option<u64>, u64)> {
    let table = Table::new(programs, &[(kernel, loaded)]);
    table.rows.into_iter().filter_map(|row| {
        let program = row.program.clone();
        match row.cells.into_iter().next()? {
            Cell::Loaded {
                instructions,
                took_us,
            } => Some((program, instructions, took_us)),
            Cell::Absent | Cell::Refused(_) => None,
        }
    })
}

/// What a machine tells.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    loaded: Loaded,
    memory: BTreeMap<String, Memory>,
}

/// Asks a machine with the kernel of the goals.
fn in_machine(workspace: &Workspace) -> Result<Told> {
    let question = Question {
        subject: "start",
        command: "xtask vm-start".to_owned(),
        limit_s: MACHINE_LIMIT_S,
    };
    let told = vm::ask(
        workspace,
        &[MACHINE.to_owned()],
        &Settings::USUAL,
        &question,
        Besides::default(),
    )?;
    let (_, told) = told.into_iter().next().context("no machine was asked")?;
    told.map_err(anyhow::Error::msg)
        .with_context(|| format!("cannot measure on {MACHINE}"))
}

/// Tell, as JSON, what lockwatch loads and what memory it takes on the kernel that this runs
/// on.
#[derive(Debug, clap::Args)]
pub(crate) struct MachineArgs {
    /// The program lockwatch
    #[arg(default_value = "/bin/lockwatch")]
    lockwatch: PathBuf,
}

/// Runs lockwatch and writes one line.
pub(crate) fn tell(args: &MachineArgs) -> Result<()> {
    let told = Told {
        memory: memory(&args.lockwatch)?,
        loaded: verified::loaded_by(&args.lockwatch)?,
    };
    println!("{}", serde_json::to_string(&told)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_named_by_what_matters() {
        let names = LASTING.map(|(arguments, _)| arguments_of(arguments));
        assert_eq!(names, ["watch", "watch --track-holds", "export"]);
    }

    #[test]
    fn what_has_ended_has_only_a_peak() {
        let diagnose = Memory {
            peak: 1 << 20,
            ..Memory::default()
        };
        let all = BTreeMap::from([(DIAGNOSE.to_owned(), diagnose)]);
        let told: Vec<String> = of_memory("6.12", &all)
            .map(|figure| figure.to_string())
            .collect();
        assert_eq!(told, ["peak/diagnose on 6.12: 1.0 MiB"]);
    }
}
