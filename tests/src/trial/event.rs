//! The lines of `lockwatch watch --format json`, as a stranger reads them.

use anyhow::{Context, Result};
use serde::Deserialize;

use super::report::{Chain, Daemon, Finding, Lock, Task};

/// One line.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Watching has begun.
    Watching {
        /// From here on a wait is a stall.
        threshold_ns: u64,
    },
    /// A stall stands.
    Stall(Box<Stall>),
    /// A stall has ended.
    StallEnded(Ended),
    /// Watching is over.
    Summary {
        /// Stalls that were reported.
        stalls: u64,
    },
}

/// A stall that stands.
#[derive(Clone, Debug, Deserialize)]
pub struct Stall {
    /// Its number.
    pub stall: u64,
    /// Why it is reported: `crossed`, `new-holder`, `stands`.
    pub reason: String,
    /// How long the longest wait has stood.
    pub age_ns: u64,
    /// How many wait.
    pub blocked_tasks: usize,
    /// The lock, if a survey has found it.
    pub lock: Option<Lock>,
    /// Daemons that tasks wait for.
    #[serde(default)]
    pub daemons: Vec<Daemon>,
    /// Whom its waiters wait for.
    #[serde(default)]
    pub chains: Vec<Chain>,
    /// What the detectors say of it.
    #[serde(default)]
    pub findings: Vec<Finding>,
}

/// A stall that has ended.
#[derive(Clone, Debug, Deserialize)]
pub struct Ended {
    /// Its number.
    pub stall: u64,
    /// The lock.
    pub name: String,
    /// How long it was.
    pub length_ns: u64,
    /// It may have been shorter.
    pub length_is_upper_bound: bool,
    /// How many waited.
    pub blocked_tasks: usize,
    /// Who was found holding the lock.
    pub holders: Vec<Task>,
    /// Forecasts of who is next that were checked.
    pub forecasts: Option<Forecasts>,
}

/// How many forecasts of who is next came true.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Forecasts {
    /// Those that did.
    pub right: u64,
    /// Those that did not.
    pub wrong: u64,
}

impl Event {
    /// Reads a line.
    ///
    /// # Errors
    /// When it is no event.
    pub fn read(line: &str) -> Result<Self> {
        serde_json::from_str(line).with_context(|| format!("no event of watch: {line}"))
    }
}
