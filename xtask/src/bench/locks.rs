//! What tracing locks costs, in instructions of an emulated processor: per pair of acquiring and
//! releasing that nobody waits for, and per cycle in which one task waits.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde::Deserialize;

use super::Bench;
use super::figure::{Figure, Unit};
use super::peers;
use crate::vm::{self, Besides, Question, Settings};
use crate::{demo, process};

/// The program that runs in the machines (tests/src/loops).
const LOOPS: &str = "lock-loops";

/// Kernels that are measured, and the one that `--check` compares.
const KERNELS: [&str; 4] = ["6.1", "6.12", "6.18", "7.3"];
const STEADY: &str = "6.12";

/// By the guest's clock.
const LIMIT_S: u64 = 900;
/// Other tools fill the machine's file system.
const MEMORY_MIB: u32 = 1536;

/// By what part instructions may grow without a reason of ours: the kernel's newest update is
/// measured.
const TOLERANCE: f64 = 0.03;
/// The same of whole cycles: they go through the scheduler.
const OF_CYCLES: f64 = 0.1;
/// The same of attaching, which waits for other things that the kernel does.
const OF_ATTACHING: f64 = 0.1;

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

/// What was attached.
#[derive(Debug, Deserialize)]
struct Mode {
    name: String,
    /// Another tool.
    peer: bool,
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

impl Counted {
    /// Calls of functions whose name begins so.
    fn calls_of(&self, begin: &str) -> f64 {
        let calls = self.calls.iter();
        calls
            .filter(|(function, _)| function.starts_with(begin))
            .map(|(_, calls)| calls)
            .sum()
    }

    fn tolerance(&self) -> f64 {
        if self.waits > 0.0 {
            OF_CYCLES
        } else {
            TOLERANCE
        }
    }
}

impl Loop {
    /// What a mode adds; whole instructions, for what is timed together is divided.
    fn added(&self) -> f64 {
        (self.with - f64::midpoint(self.before, self.after)).round() + 0.0
    }
}

/// Boots the kernels and has the loops run there.
pub(crate) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    process::run(demo::build_command(bench.workspace).args(["--bin", LOOPS]))?;
    let programs = [(LOOPS.to_owned(), bench.workspace.release_binary(LOOPS))];
    let (files, peers) = if bench.peers {
        (peers::files()?, " --peers")
    } else {
        (Vec::new(), "")
    };
    let besides = Besides {
        programs: &programs,
        files: &files,
    };
    let kernels: &[&str] = if bench.only_steady {
        &[STEADY]
    } else {
        &KERNELS
    };
    let kernels: Vec<String> = kernels.iter().map(ToString::to_string).collect();
    let question = Question {
        subject: "locks",
        command: format!("{LOOPS} measure{peers}"),
        limit_s: LIMIT_S,
    };
    let settings = Settings {
        icount: true,
        memory: MEMORY_MIB,
        ..Settings::USUAL
    };
    let told = vm::ask::<Told>(bench.workspace, &kernels, &settings, &question, besides)?;
    let mut figures = Vec::new();
    for (kernel, told) in told {
        match told {
            Ok(told) => figures.extend(told.figures(&kernel)),
            Err(why) => bail!("{kernel}: {why}"),
        }
    }
    Ok(figures)
}

impl Told {
    /// What one call of each loop does, what it costs bare, and what is added to it; last, what
    /// it takes to attach.
    fn figures(&self, kernel: &str) -> Vec<Figure> {
        // What is not measured every time is compared with nothing.
        let figure = |name: String, value: f64, unit, tolerance: Option<f64>| Figure {
            tolerance: tolerance.filter(|_| kernel == STEADY),
            ..Figure::new(name, kernel, value, unit)
        };
        let counts = |name, value, mode: &Mode, tolerance: f64| {
            let tolerance = (!mode.peer).then_some(tolerance);
            figure(name, value, Unit::Instructions, tolerance)
        };
        let mut figures = Vec::new();
        for counted in &self.loops {
            let name = &counted.name;
            let mutexes = counted.calls_of("mutex_") - counted.calls_of("mutex_unlock");
            for (what, number) in [
                ("rwsem acquisitions", counted.calls_of("down_")),
                ("mutex acquisitions", mutexes),
                ("waits", counted.waits),
            ] {
                let name = format!("{name}/{what}");
                figures.push(figure(name, number, Unit::Count, Some(0.0)));
            }
            let of_modes = || {
                let modes = self.modes.iter();
                let all = modes.flat_map(|mode| mode.loops.iter().map(move |one| (mode, one)));
                all.filter(|(_, one)| one.name == *name)
            };
            if let Some((_, first)) = of_modes().next() {
                // The kernel's own affair.
                let name = format!("{name}/bare");
                figures.push(figure(name, first.before, Unit::Instructions, None));
            }
            for (mode, one) in of_modes() {
                let name = format!("{name}/{}", mode.name);
                figures.push(counts(name, one.added(), mode, counted.tolerance()));
            }
        }
        for mode in &self.modes {
            if let Some(attach_ns) = mode.attach_ns {
                let name = format!("attach/{}", mode.name);
                figures.push(counts(name, attach_ns as f64, mode, OF_ATTACHING));
            }
        }
        figures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> Told {
        let told = serde_json::json!({
            "loops": [
                {"name": "pair", "calls": {"down_read": 1.0, "up_read": 1.0}, "waits": 0.0},
                {"name": "cycle", "calls": {"mutex_lock": 3.0, "mutex_unlock": 3.0}, "waits": 1.0},
            ],
            "modes": [
                {"name": "watch", "peer": false, "attach_ns": 5_000, "loops": [
                    {"name": "pair", "before": 628.4, "with": 628.4, "after": 628.4},
                    {"name": "cycle", "before": 100.0, "with": 130.0, "after": 110.0},
                ]},
                {"name": "other", "peer": true, "attach_ns": null, "loops": [
                    {"name": "pair", "before": 628.4, "with": 630.9, "after": 628.4},
                ]},
            ],
        });
        serde_json::from_value(told).unwrap()
    }

    #[test]
    fn figures_are_by_loop_and_then_by_what_is_attached() {
        let figures = told().figures(STEADY);
        let told: Vec<(&str, f64, Option<f64>)> = figures
            .iter()
            .map(|figure| (figure.name.as_str(), figure.value, figure.tolerance))
            .collect();
        assert_eq!(
            told,
            [
                ("pair/rwsem acquisitions", 1.0, Some(0.0)),
                ("pair/mutex acquisitions", 0.0, Some(0.0)),
                ("pair/waits", 0.0, Some(0.0)),
                ("pair/bare", 628.4, None),
                ("pair/watch", 0.0, Some(TOLERANCE)),
                ("pair/other", 3.0, None),
                ("cycle/rwsem acquisitions", 0.0, Some(0.0)),
                ("cycle/mutex acquisitions", 3.0, Some(0.0)),
                ("cycle/waits", 1.0, Some(0.0)),
                ("cycle/bare", 100.0, None),
                ("cycle/watch", 25.0, Some(OF_CYCLES)),
                ("attach/watch", 5_000.0, Some(OF_ATTACHING)),
            ]
        );
    }

    #[test]
    fn only_the_kernel_that_is_checked_has_tolerances() {
        let figures = told().figures("7.3");
        assert!(figures.iter().all(|figure| figure.tolerance.is_none()));
    }
}
