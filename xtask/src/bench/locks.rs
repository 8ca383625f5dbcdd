//! What tracing locks costs, in instructions of an emulated processor: per pair of acquiring and
//! releasing that nobody waits for, and per cycle in which one task waits.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde::Deserialize;

use super::Bench;
use super::figure::{Figure, Unit};
use crate::vm::{self, Question, Settings};
use crate::{demo, process};

/// The program that runs in the machines (tests/src/loops).
const LOOPS: &str = "lock-loops";

/// Kernels that are measured, and the one that `--check` compares.
const KERNELS: [&str; 4] = ["6.1", "6.12", "6.18", "7.3"];
const STEADY: &str = "6.12";

/// By the guest's clock.
const LIMIT_S: u64 = 600;

/// What the program tells.
#[derive(Debug, Deserialize)]
struct Told {
    loops: Vec<Counted>,
    modes: Vec<Mode>,
}

/// What one call of a loop does.
#[derive(Debug, Deserialize)]
struct Counted {
    name: String,
    /// By function that acquires or releases.
    calls: BTreeMap<String, f64>,
    /// For a lock.
    waits: f64,
}

#[derive(Debug, Deserialize)]
struct Mode {
    name: String,
    attach_ns: Option<u64>,
    loops: Vec<Loop>,
}

/// Instructions of one call.
#[derive(Debug, Deserialize)]
struct Loop {
    name: String,
    before: f64,
    with: f64,
    after: f64,
}

impl Loop {
    fn bare(&self) -> f64 {
        f64::midpoint(self.before, self.after)
    }

    fn added(&self) -> f64 {
        self.with - self.bare()
    }
}

/// Boots the kernels and has the loops run there.
pub(crate) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    process::run(demo::build_command(bench.workspace).args(["--bin", LOOPS]))?;
    let programs = [(LOOPS.to_owned(), bench.workspace.release_binary(LOOPS))];
    let kernels = if bench.only_steady {
        vec![STEADY.to_owned()]
    } else {
        KERNELS.map(str::to_owned).to_vec()
    };
    let question = Question {
        subject: "locks",
        command: LOOPS.to_owned(),
        limit_s: LIMIT_S,
    };
    let settings = Settings {
        icount: true,
        ..Settings::USUAL
    };
    let mut figures = Vec::new();
    for (kernel, told) in
        vm::ask::<Told>(bench.workspace, &kernels, &settings, &question, &programs)?
    {
        match told {
            Ok(told) => {
                eprintln!("{told:?}");
                figures.extend(told.figures(&kernel))
            }
            Err(why) => bail!("{kernel}: {why}"),
        }
    }
    Ok(figures)
}

impl Told {
    fn figures(&self, kernel: &str) -> Vec<Figure> {
        let count = |name: String, value| Figure::new(name, kernel, value, Unit::Instructions);
        let mut bare: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for one in self.modes.iter().flat_map(|mode| &mode.loops) {
            bare.entry(&one.name)
                .or_default()
                .extend([one.before, one.after]);
        }
        let mut figures = Vec::new();
        for (name, mut values) in bare {
            values.sort_by(f64::total_cmp);
            figures.push(count(format!("{name}/bare"), values[values.len() / 2]));
            for mode in &self.modes {
                for one in mode.loops.iter().filter(|one| one.name == name) {
                    figures.push(count(format!("{name}/{}", mode.name), one.added()));
                }
            }
        }
        for mode in &self.modes {
            if let Some(attach_ns) = mode.attach_ns {
                figures.push(count(format!("attach/{}", mode.name), attach_ns as f64));
            }
        }
        figures
    }
}
