//! Tells what tracing locks costs: does the same things again and again, with nothing attached
//! and with a tool, in turns, and prints the times as JSON.
//!
//! It is made for a machine whose clock counts instructions (`cargo xtask bench locks`):
//! there 1 ns is one. Elsewhere the times are times.

mod cycle;
mod floor;
mod looper;
mod mode;
mod userfault;
mod work;

use std::{collections::BTreeMap, process::ExitCode, thread, time::Duration};

use anyhow::{Context as _, Result};
use clap::Parser;
use lockwatch_tests::tally::Tally;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use serde::Serialize;

use self::{
    cycle::{HOLDER, WAITER},
    floor::{Calls, Places},
    looper::Looper,
    mode::MODES,
};

/// Tell what tracing locks costs on the running kernel
///
/// Needs root and BPF, and lockwatch (LOCKWATCH_BIN).
#[derive(Parser)]
#[command(name = "lock-loops", version)]
enum Verb {
    /// Measure; the result is printed as JSON
    Measure(Args),
    /// Do what standard input says: the process that is measured
    #[command(hide = true, name = looper::VERB)]
    Loop,
}

#[derive(clap::Args)]
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
    name: String,
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
    name: String,
    before: f64,
    with: f64,
    after: f64,
}

fn main() -> ExitCode {
    let outcome = match Verb::parse() {
        Verb::Measure(args) => measure(&args),
        Verb::Loop => looper::obey(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lock-loops: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &Args) -> Result<()> {
    stay_here()?;
    let mut looper = Looper::start()?;
    thread::sleep(Duration::from_secs(args.settle));
    let places = Places::find(looper.pid())?;
    let loops = count_all(&mut looper, &places)?;
    // For what is done once.
    looper.time()?;
    let mut modes = Vec::new();
    let mut before = looper.time()?;
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
        let with = looper.time().with_context(|| mode.name)?;
        running.stop().with_context(|| mode.name)?;
        let after = looper.time()?;
        let times = before.iter().zip(&with).zip(&after);
        let with_times = looper.names.iter().zip(times);
        modes.push(ModeTold {
            name: mode.name,
            peer: mode.is_peer(),
            attach_ns,
            loops: with_times
                .map(|(name, ((before, with), after))| LoopTold {
                    name: name.clone(),
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
fn count_all(looper: &mut Looper, places: &Places) -> Result<Vec<Counted>> {
    let mut counters = Counters {
        calls: places.count()?,
        tallies: [Tally::attach(WAITER)?, Tally::attach(HOLDER)?],
    };
    let names = looper.names.clone();
    names
        .into_iter()
        .enumerate()
        .map(|(number, name)| {
            // What is done once only, such as a first allocation, is not counted.
            counters.over(looper, number, COUNTED)?;
            let fewer = counters.over(looper, number, COUNTED)?;
            let more = counters.over(looper, number, 2 * COUNTED)?;
            Ok(Counted::between(name, &fewer, &more))
        })
        .collect()
}

struct Counters {
    calls: Calls,
    tallies: [Tally; 2],
}

/// Calls by function, and waits.
struct Counts(BTreeMap<String, u64>, usize);

impl Counters {
    fn now(&mut self) -> Result<Counts> {
        let [waiter, holder] = &mut self.tallies;
        let waits = waiter.waits()?.len() + holder.waits()?.len();
        Ok(Counts(self.calls.now()?, waits))
    }

    /// What happened from before a loop was told to make so many calls until it said so.
    fn over(&mut self, looper: &mut Looper, number: usize, times: u32) -> Result<Counts> {
        let Counts(mut calls, waits) = self.now()?;
        looper.call(number, times)?;
        let Counts(end, waits_end) = self.now()?;
        for (function, calls) in &mut calls {
            *calls = end.get(function).unwrap_or(calls) - *calls;
        }
        Ok(Counts(calls, waits_end - waits))
    }
}

impl Counted {
    /// Of what was done for [`COUNTED`] calls, and for twice as many: what it took to tell the
    /// loop, too, is in both.
    fn between(name: String, fewer: &Counts, more: &Counts) -> Self {
        let per_call = |more: u64, fewer: u64| (more as f64 - fewer as f64) / f64::from(COUNTED);
        let calls = more.0.iter().map(|(function, more)| {
            let fewer = fewer.0.get(function).copied().unwrap_or_default();
            (function.clone(), per_call(*more, fewer))
        });
        Self {
            name,
            calls: calls.filter(|(_, calls)| *calls != 0.0).collect(),
            waits: per_call(more.1 as u64, fewer.1 as u64),
        }
    }
}
