//! Tells what tracing locks costs: does the same things again and again, with nothing attached
//! and with a tool, in turns, and prints the times as JSON.
//!
//! It is made for a machine whose clock counts instructions (`cargo xtask bench locks`):
//! there 1 ns is one. Elsewhere the times are times.

mod cycle;
mod mode;
mod userfault;
mod work;

use std::{process::ExitCode, thread, time::Duration};

use anyhow::{Context as _, Result};
use clap::Parser;
use lockwatch_tests::clock;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use serde::Serialize;

use self::{
    cycle::{Cycle, Target},
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
}

/// Batches of calls, of which the median counts.
const BATCHES: usize = 15;
/// Calls of what is not timed in batches.
const SINGLE: usize = 601;

/// Everything that was measured.
#[derive(Serialize)]
struct Told {
    modes: Vec<ModeTold>,
}

#[derive(Serialize)]
struct ModeTold {
    name: &'static str,
    /// From before it is started until it is attached, all that the CPU did, ns.
    attach_ns: u64,
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
    let mut modes = Vec::new();
    let mut before = time_all(&mut works)?;
    for mode in MODES.iter().filter(|mode| mode.name.contains(&args.mode)) {
        let (running, attach_ns) = mode.start().with_context(|| mode.name)?;
        let with = time_all(&mut works).with_context(|| mode.name)?;
        running.stop().with_context(|| mode.name)?;
        let after = time_all(&mut works)?;
        let times = before.iter().zip(&with).zip(&after);
        let loops = works.iter().zip(times);
        modes.push(ModeTold {
            name: mode.name,
            attach_ns,
            loops: loops
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
    println!("{}", serde_json::to_string(&Told { modes })?);
    Ok(())
}

/// Keeps this process and all that it starts on one CPU.
fn stay_here() -> Result<()> {
    let cpu = nix::sched::sched_getcpu().context("cannot tell the CPU")?;
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("cannot stay on a CPU")
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
