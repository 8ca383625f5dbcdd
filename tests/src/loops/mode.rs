//! What runs while the loops do.

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use lockwatch_tests::trial::{self, Program};
use nix::sys::signal::Signal;

use crate::floor::{Attached, Floor, Places};

/// Whatever is started must be attached by then, and end when it is told to.
const LIMIT: Duration = Duration::from_secs(120);
/// What a tool does once after it is attached, such as a first survey, is over by then.
const SETTLE: Duration = Duration::from_secs(2);

/// What is attached, and how.
pub(crate) struct Mode {
    pub(crate) name: &'static str,
    what: What,
}

enum What {
    /// lockwatch with these arguments. It is attached when it says a line that begins so on
    /// standard error.
    Lockwatch(&'static [&'static str], &'static str),
    Floor(Floor),
}

/// Metrics are scraped from there, by nobody.
const EXPORT: [&str; 3] = ["export", "--listen", "127.0.0.1:9822"];

/// All of them.
pub(crate) const MODES: &[Mode] = &[
    Mode {
        name: "watch",
        what: What::Lockwatch(&["watch"], "watching"),
    },
    Mode {
        name: "counted",
        what: What::Lockwatch(&EXPORT, "exporting"),
    },
    Mode {
        name: "counted by class",
        what: What::Lockwatch(
            &[EXPORT[0], EXPORT[1], EXPORT[2], "--callers-from", "1h"],
            "exporting",
        ),
    },
    Mode {
        name: "mmap_lock tracked",
        what: What::Lockwatch(
            &["watch", "--track-holds", "--without", "fexit"],
            "watching",
        ),
    },
    Mode {
        name: "mmap_lock tracked and counted",
        what: What::Lockwatch(
            &[
                EXPORT[0],
                EXPORT[1],
                EXPORT[2],
                "--track-holds",
                "--without",
                "fexit",
            ],
            "exporting",
        ),
    },
    Mode {
        name: "holds tracked",
        what: What::Lockwatch(&["watch", "--track-holds"], "watching"),
    },
    Mode {
        name: "holds tracked and counted",
        what: What::Lockwatch(
            &[EXPORT[0], EXPORT[1], EXPORT[2], "--track-holds"],
            "exporting",
        ),
    },
    Mode {
        name: "floor of contention tracepoints",
        what: What::Floor(Floor::Contention),
    },
    Mode {
        name: "floor of contention tracepoints, begin kept",
        what: What::Floor(Floor::ContentionKept),
    },
    Mode {
        name: "floor of mmap_lock tracepoints",
        what: What::Floor(Floor::MmapLock),
    },
    Mode {
        name: "floor of hold tracking",
        what: What::Floor(Floor::Holds),
    },
];

/// It is attached. Dropped, it is gone.
pub(crate) enum Running {
    Lockwatch(Program),
    Floor(Attached),
}

impl Mode {
    /// Starts it, and waits until it is attached and has settled; how much the CPU did from the
    /// start of a tool until it was attached, ns.
    pub(crate) fn start(&self, places: &Places) -> Result<(Running, Option<u64>)> {
        let begun = match self.what {
            What::Lockwatch(arguments, ready) => {
                let mut command = Command::new(trial::lockwatch()?);
                command.args(arguments).stdin(Stdio::null());
                let begin = busy_ns()?;
                let program = start(&mut command, ready)?;
                (Running::Lockwatch(program), Some(busy_ns()? - begin))
            }
            What::Floor(floor) => (Running::Floor(places.attach(floor)?), None),
        };
        thread::sleep(SETTLE);
        Ok(begun)
    }
}

/// Starts it, and waits for a line on standard error that begins so.
fn start(command: &mut Command, ready: &str) -> Result<Program> {
    let mut program = Program::start(command)?;
    let end = Instant::now() + LIMIT;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match program.err_line(left)? {
            Some(line) if line.starts_with(ready) => return Ok(program),
            Some(_) => {}
            None => bail!("it ended: {}", program.end(LIMIT)?.describe()),
        }
    }
}

impl Running {
    /// Ends it.
    pub(crate) fn stop(self) -> Result<()> {
        match self {
            Self::Floor(attached) => drop(attached),
            Self::Lockwatch(program) => {
                program.signal(Signal::SIGINT);
                let ended = program.end(LIMIT)?;
                // lockwatch says with 1 that something was found.
                if !matches!(ended.code(), Some(0 | 1)) {
                    bail!("{}", ended.describe());
                }
            }
        }
        // What the kernel does later to free what was attached.
        thread::sleep(SETTLE);
        Ok(())
    }
}

/// How long all CPUs have run tasks, ns: the seventh figure of each CPU in /proc/schedstat
/// (Documentation/scheduler/sched-stats.rst, versions 15 to 17). What the running task does
/// is in it once it has slept.
fn busy_ns() -> Result<u64> {
    let text = fs::read_to_string("/proc/schedstat").context("no statistics of the scheduler")?;
    let cpus = text.lines().filter_map(|line| {
        let mut words = line.split(' ');
        words.next()?.strip_prefix("cpu")?;
        words.nth(6)?.parse::<u64>().ok()
    });
    Ok(cpus.sum())
}
