//! What lockwatch adds to real work on the running kernel.
//!
//! Work of a fixed amount, done in turns: with nothing, with each tool, and with nothing once
//! more, in each of many rounds. A figure is the median of a tool's CPU time over that without
//! it *in the same round*: what the machine does besides weighs on both. How much such a median
//! wanders by itself is told by `nothing`, the second time, which is measured like a tool.

mod load;
mod tool;

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};

use self::load::{Load, Spent};
use self::tool::Tool;
use super::Bench;
use super::figure::{Figure, Unit};
use super::runs::median;
use crate::process::say;
use crate::verified::RUNNING;
use crate::{bpf, demo, packages, process};

const ROUNDS: usize = 7;
/// After a tool has come or gone: it frees what it had.
const SETTLE: Duration = Duration::from_millis(300);

/// Measures real loads, and each tool's part in them.
pub(crate) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    if let Some(why) = bpf::refusal() {
        bail!("lockwatch cannot be attached here: {why}");
    }
    process::run(&mut demo::build_command(bench.workspace))?;
    packages::ensure(&load::PROGRAMS)?;
    let tools = Tool::all(bench)?;
    let loads = load::all(bench)?;
    let mut spent: BTreeMap<(usize, usize), Vec<Ratio>> = BTreeMap::new();
    for round in 1..=ROUNDS {
        say(format_args!("  round {round} of {ROUNDS}"));
        let bare = run_all(&loads)?;
        // Each tool has each place in the order once in so many rounds.
        for turn in 0..tools.len() {
            let at = (turn + round) % tools.len();
            let running = tools[at].start()?;
            thread::sleep(SETTLE);
            let with = run_all(&loads)?;
            running.end()?;
            thread::sleep(SETTLE);
            for (index, (with, bare)) in with.iter().zip(&bare).enumerate() {
                let ratios = spent.entry((index, at)).or_default();
                ratios.push(Ratio::of(*with, *bare));
            }
        }
    }
    let mut figures = Vec::new();
    for ((load, tool), ratios) in &spent {
        let name = format!("{}/{}", loads[*load].name, tools[*tool].name);
        let cpu = median(ratios.iter().map(|ratio| ratio.cpu))?;
        let wall = median(ratios.iter().map(|ratio| ratio.wall))?;
        figures.push(Figure::new(
            format!("{name}: CPU time"),
            RUNNING,
            cpu,
            Unit::Ratio,
        ));
        figures.push(Figure::new(
            format!("{name}: elapsed"),
            RUNNING,
            wall,
            Unit::Ratio,
        ));
    }
    Ok(figures)
}

fn run_all(loads: &[Load]) -> Result<Vec<Spent>> {
    loads.iter().map(Load::run).collect()
}

/// With a tool over without.
#[derive(Clone, Copy, Debug)]
struct Ratio {
    cpu: f64,
    wall: f64,
}

impl Ratio {
    fn of(with: Spent, bare: Spent) -> Self {
        let over = |with: Duration, bare: Duration| with.as_secs_f64() / bare.as_secs_f64();
        Self {
            cpu: over(with.cpu, bare.cpu),
            wall: over(with.wall, bare.wall),
        }
    }
}
