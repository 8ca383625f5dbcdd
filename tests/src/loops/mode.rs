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

/// Whatever is started must be attached by then, and end when it is told to.
const LIMIT: Duration = Duration::from_secs(120);
/// What a tool does once after it is attached, such as a first survey, is over by then.
const SETTLE: Duration = Duration::from_secs(2);

/// A tool with its options.
pub(crate) struct Mode {
    pub(crate) name: &'static str,
    /// Of lockwatch.
    arguments: &'static [&'static str],
    /// It is attached when it says a line that begins so on standard error.
    ready: &'static str,
}

/// Metrics are scraped from there, by nobody.
const EXPORT: [&str; 3] = ["export", "--listen", "127.0.0.1:9822"];

/// All of them.
pub(crate) const MODES: &[Mode] = &[
    Mode {
        name: "watch",
        arguments: &["watch"],
        ready: "watching",
    },
    Mode {
        name: "counted",
        arguments: &EXPORT,
        ready: "exporting",
    },
    Mode {
        name: "counted by class",
        arguments: &[EXPORT[0], EXPORT[1], EXPORT[2], "--callers-from", "1h"],
        ready: "exporting",
    },
    Mode {
        name: "mmap_lock tracked",
        arguments: &["watch", "--track-holds", "--without", "fexit"],
        ready: "watching",
    },
    Mode {
        name: "holds tracked",
        arguments: &["watch", "--track-holds"],
        ready: "watching",
    },
    Mode {
        name: "holds tracked and counted",
        arguments: &[EXPORT[0], EXPORT[1], EXPORT[2], "--track-holds"],
        ready: "exporting",
    },
];

/// It is attached. Dropped, it is killed.
pub(crate) struct Running(Program);

impl Mode {
    /// Starts it, and waits until it is attached and has settled; how much the CPU did from its
    /// start until it was attached, ns.
    pub(crate) fn start(&self) -> Result<(Running, u64)> {
        let mut command = Command::new(trial::lockwatch()?);
        command.args(self.arguments).stdin(Stdio::null());
        let begin = busy_ns()?;
        let mut program = Program::start(&mut command)?;
        let end = Instant::now() + LIMIT;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match program.err_line(left)? {
                Some(line) if line.starts_with(self.ready) => break,
                Some(_) => {}
                None => bail!("it ended: {}", program.end(LIMIT)?.describe()),
            }
        }
        let attach_ns = busy_ns()? - begin;
        thread::sleep(SETTLE);
        Ok((Running(program), attach_ns))
    }
}

impl Running {
    /// Ends it.
    pub(crate) fn stop(self) -> Result<()> {
        self.0.signal(Signal::SIGINT);
        let ended = self.0.end(LIMIT)?;
        // lockwatch says with 1 that something was found.
        if !matches!(ended.code(), Some(0 | 1)) {
            bail!("{}", ended.describe());
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
