//! Tells what tracing locks costs: does the same things again and again, with nothing attached
//! and with a tool, in turns, and prints the times as JSON.
//!
//! It is made for a machine whose clock counts instructions (`cargo xtask bench locks`):
//! there 1 ns is one. Elsewhere the times are times.

mod cycle;
mod floor;
mod mode;
mod userfault;
mod work;

use std::{collections::BTreeMap, process::ExitCode, thread, time::Duration};

use anyhow::{Context as _, Result};
use clap::Parser;
use lockwatch_tests::{clock, tally::Tally};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use serde::Serialize;

use self::{
    cycle::{Cycle, HOLDER, Target, WAITER},
    floor::{Calls, Places},
    mode::MODES,
    work::{List, Protect, Sync, Work},
};

/// Tell what tracing locks costs on the running kernel; the result is printed as JSON
///
/// Needs root and BPF, and lockwatch (LOCKWATCH_BIN).
#[derive(Parser)]
#[command(name = "lock-loops", version)]
struct Args {
    /// Wait before the first measurement, in seconds: a kernel that has just booted has things
    /// to do
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    settle: u64,
    /// Only modes whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    mode: String,
    /// Other tools, too: /peers has their programs and libraries
    #[arg(long)]
    peers: bool,
}

/// Batches of calls, of which the median counts.
const BATCHES: usize = 15;
/// Calls of what is not timed in batches.
const SINGLE: usize = 601;

/// Calls of which it is counted what they do.
const COUNTED: u32 = 20;

/// Everything that was measured.
#[derive(Serialize)]
struct Told {
    loops: Vec<Counted>,
    modes: Vec<ModeTold>,
}

/// What one call does.
#[derive(Serialize)]
struct Counted {
    name: &'static str,
    /// Calls of functions that acquire or release a lock, by function.
    calls: BTreeMap<String, f64>,
    /// Waits for a lock.
    waits: f64,
}

#[derive(Serialize)]
struct ModeTold {
    name: &'static str,
    /// It is another tool.
    peer: bool,
    /// What the CPU did from before a tool is started until it is attached, ns.
    attach_ns: Option<u64>,
    loops: Vec<LoopTold>,
}

/// Times of a call, ns.
#[derive(Serialize)]
struct LoopTold {
    name: &'static str,
    before: f64,
    with: f64,
    after: f64,
}

fn main() -> ExitCode {
    match measure(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lock-loops: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &Args) -> Result<()> {
    stay_here()?;
    let folder = tempfile::tempdir().context("cannot make a folder")?;
    let mut works: Vec<Box<dyn Work>> = vec![
        Box::new(Sync::new()?),
        Box::new(Protect::new()?),
        Box::new(List::new(folder.path())?),
        Box::new(Cycle::new(
            "contended rwsem cycle",
            Target::file(folder.path())?,
        )?),
        Box::new(Cycle::new("contended mutex cycle", Target::pipe()?)?),
    ];
    thread::sleep(Duration::from_secs(args.settle));
    let places = Places::find()?;
    let loops = count_all(&mut works, &places)?;
    time_all(&mut works)?;
    let mut modes = Vec::new();
    let mut before = time_all(&mut works)?;
    let wanted = MODES
        .iter()
        .filter(|mode| mode.name.contains(&args.mode) && (args.peers || !mode.is_peer()));
    for mode in wanted {
        let (running, attach_ns) = match mode.start(&places).with_context(|| mode.name) {
            // Not every tool can be attached to every kernel.
            Err(error) if mode.is_peer() => {
                eprintln!("lock-loops: {error:#}");
                continue;
            }
            begun => begun?,
        };
        let with = time_all(&mut works).with_context(|| mode.name)?;
        running.stop().with_context(|| mode.name)?;
        let after = time_all(&mut works)?;
        let times = before.iter().zip(&with).zip(&after);
        let with_times = works.iter().zip(times);
        modes.push(ModeTold {
            name: mode.name,
            peer: mode.is_peer(),
            attach_ns,
            loops: with_times
                .map(|(work, ((before, with), after))| LoopTold {
                    name: work.name(),
                    before: *before,
                    with: *with,
                    after: *after,
                })
                .collect(),
        });
        before = after;
    }
    println!("{}", serde_json::to_string(&Told { loops, modes })?);
    Ok(())
}

/// Keeps this process and all that it starts on one CPU.
fn stay_here() -> Result<()> {
    let cpu = nix::sched::sched_getcpu().context("cannot tell the CPU")?;
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("cannot stay on a CPU")
}

/// Counts what single calls do.
fn count_all(works: &mut [Box<dyn Work>], places: &Places) -> Result<Vec<Counted>> {
    let mut counters = Counters {
        calls: places.count()?,
        tallies: [Tally::attach(WAITER)?, Tally::attach(HOLDER)?],
    };
    works
        .iter_mut()
        .map(|work| {
            // What is done once only, such as a first allocation, is not counted.
            count(work.as_mut(), &mut counters)?;
            count(work.as_mut(), &mut counters).with_context(|| work.name())
        })
        .collect()
}

struct Counters {
    calls: Calls,
    tallies: [Tally; 2],
}

impl Counters {
    /// Calls by function, and waits.
    fn now(&mut self) -> Result<(BTreeMap<String, u64>, usize)> {
        let [waiter, holder] = &mut self.tallies;
        let waits = waiter.waits()?.len() + holder.waits()?.len();
        Ok((self.calls.now()?, waits))
    }
}

fn count(work: &mut dyn Work, counters: &mut Counters) -> Result<Counted> {
    work.make_ready()?;
    let (begin, waits_begin) = counters.now()?;
    for _ in 0..COUNTED {
        work.call()?;
    }
    let (end, waits_end) = counters.now()?;
    let per_call = |number: u64| number as f64 / f64::from(COUNTED);
    let calls = end.iter().map(|(function, end)| {
        let calls = end - begin.get(function).unwrap_or(&0);
        (function.clone(), per_call(calls))
    });
    Ok(Counted {
        name: work.name(),
        calls: calls.filter(|(_, calls)| *calls > 0.0).collect(),
        waits: per_call((waits_end - waits_begin) as u64),
    })
}

fn time_all(works: &mut [Box<dyn Work>]) -> Result<Vec<f64>> {
    works
        .iter_mut()
        .map(|work| time(work.as_mut()).with_context(|| work.name()))
        .collect()
}

/// The median time of a call, ns.
fn time(work: &mut dyn Work) -> Result<f64> {
    let together = work.together();
    let batches = if together == 1 { SINGLE } else { BATCHES };
    let mut times = Vec::with_capacity(batches);
    // The first one is for what is done once.
    for batch in 0..=batches {
        work.make_ready()?;
        let begin = clock::monotonic_ns();
        for _ in 0..together {
            work.call()?;
        }
        let took = clock::monotonic_ns() - begin;
        if batch > 0 {
            times.push(took);
        }
    }
    times.sort_unstable();
    Ok(times[batches / 2] as f64 / together as f64)
}
