//! What was measured, and what is committed of it.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::process;
use crate::workspace::Workspace;

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figure {
    /// What of what, from the general to the particular, such as `read pair/hold tracking`.
    pub(crate) name: String,
    /// The kernel that it was measured on, such as `6.12` or `running`; empty if it needs none.
    pub(crate) kernel: String,
    pub(crate) value: f64,
    pub(crate) unit: Unit,
    /// By what part of the value it may be worse than before; absent: it does not repeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tolerance: Option<f64>,
}

/// What a figure counts, and which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Unit {
    /// Of an emulated processor; less is better.
    Instructions,
    /// That the verifier has gone through; less is better.
    VerifiedInstructions,
    /// Of memory; less is better.
    Allocations,
    /// Less is better.
    Nanoseconds,
    /// Less is better.
    Bytes,
    /// Time or work with lockwatch over that without; less is better.
    Ratio,
    /// More is better.
    PerSecond,
    /// What happened, such as losses; where it repeats, any other number is wrong.
    Count,
}

impl Figure {
    /// A figure that differs from run to run.
    pub(crate) fn new(
        name: impl Into<String>,
        kernel: impl Into<String>,
        value: f64,
        unit: Unit,
    ) -> Self {
        Self {
            name: name.into(),
            kernel: kernel.into(),
            value,
            unit,
            tolerance: None,
        }
    }

    /// It repeats, but for this part of it.
    pub(crate) fn within(self, tolerance: f64) -> Self {
        Self {
            tolerance: Some(tolerance),
            ..self
        }
    }

    /// Says if this is worse than a committed one by more than its tolerance.
    fn is_worse_than(&self, before: &Self) -> bool {
        let Some(tolerance) = before.tolerance else {
            return false;
        };
        let room = before.value.abs() * tolerance + self.unit.slack();
        match self.unit {
            // What happens in a loop is what its other figures rest on.
            Unit::Count => (self.value - before.value).abs() > room,
            unit if unit.more_is_better() => self.value < before.value - room,
            _ => self.value > before.value + room,
        }
    }

    fn is(&self, other: &Self) -> bool {
        self.name == other.name && self.kernel == other.kernel
    }
}

impl Unit {
    pub(crate) fn more_is_better(self) -> bool {
        self == Self::PerSecond
    }

    /// What is no difference, however small the value.
    fn slack(self) -> f64 {
        match self {
            // Where the difference of two medians is told, a branch may go the other way.
            Self::Instructions => 8.0,
            // Per call, of hundreds: something else of the process may be among them. Another
            // loop would differ by a whole one.
            Self::Count => 0.3,
            _ => 0.0,
        }
    }

    /// A value with its unit, for people.
    pub(crate) fn tell(self, value: f64) -> String {
        match self {
            Self::Instructions | Self::VerifiedInstructions => {
                format!("{} instructions", thousands(value))
            }
            Self::Allocations if value < 0.001 => "less than 0.001 allocations".to_owned(),
            Self::Allocations => format!("{} allocations", (value * 1e3).round() / 1e3),
            Self::Nanoseconds if value >= 1e9 => format!("{:.2} s", value / 1e9),
            Self::Nanoseconds if value >= 1e6 => format!("{:.1} ms", value / 1e6),
            Self::Nanoseconds if value >= 1e4 => format!("{:.1} µs", value / 1e3),
            Self::Nanoseconds => format!("{value:.0} ns"),
            Self::Bytes if value >= 1024.0 * 1024.0 => {
                format!("{:.1} MiB", value / (1024.0 * 1024.0))
            }
            Self::Bytes if value >= 1024.0 => format!("{:.1} KiB", value / 1024.0),
            Self::Bytes => format!("{value:.0} B"),
            Self::Ratio => format!("{value:.3}×"),
            Self::PerSecond => format!("{}/s", thousands(value)),
            Self::Count => thousands(value),
        }
    }
}

fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value <= -0.5 {
        text.insert(0, '-');
    }
    text
}

impl Display for Figure {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        if !self.kernel.is_empty() {
            write!(f, " on {}", self.kernel)?;
        }
        write!(f, ": {}", self.unit.tell(self.value))
    }
}

/// The figures of one part, and what they were measured on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// `YYYY-MM-DD`.
    pub(crate) date: String,
    /// Processors of the machine.
    pub(crate) cpus: usize,
    /// Their model, as the kernel calls it.
    pub(crate) processor: String,
    /// Release of the running kernel.
    pub(crate) release: String,
    pub(crate) figures: Vec<Figure>,
}

impl Measured {
    /// What was measured on this machine today.
    pub(crate) fn now(figures: Vec<Figure>) -> Result<Self> {
        let line = |program: &str, argument: &str| -> Result<String> {
            let mut command = std::process::Command::new(program);
            Ok(process::capture(command.arg(argument))?.trim().to_owned())
        };
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
        let processor = cpuinfo
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.trim() == "model name")
            .map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned());
        Ok(Self {
            date: line("date", "+%Y-%m-%d")?,
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            processor,
            release: line("uname", "-r")?,
            figures,
        })
    }
}

/// The figures in the tree, by part.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Committed(pub(crate) BTreeMap<String, Measured>);

impl Committed {
    pub(crate) fn read(workspace: &Workspace) -> Result<Self> {
        let path = Self::path(workspace);
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not ours", path.display()))
    }

    pub(crate) fn write(&self, workspace: &Workspace) -> Result<()> {
        let path = Self::path(workspace);
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    fn path(workspace: &Workspace) -> PathBuf {
        workspace.root.join("docs/performance.json")
    }

    pub(crate) fn figures(&self) -> impl Iterator<Item = &Figure> {
        self.0.values().flat_map(|measured| &measured.figures)
    }

    /// Replaces the figures of a part; those that were not measured this time stay.
    pub(crate) fn keep(&mut self, part: &str, mut measured: Measured) {
        if let Some(before) = self.0.remove(part) {
            let old = before.figures.into_iter();
            let figures = &measured.figures;
            let left: Vec<Figure> = old
                .filter(|old| !figures.iter().any(|new| new.is(old)))
                .collect();
            measured.figures.extend(left);
        }
        self.0.insert(part.to_owned(), measured);
    }

    /// What is worse than what is committed of a part, or was not measured although it repeats.
    pub(crate) fn complaints(&self, part: &str, measured: &Measured) -> Vec<String> {
        let Some(before) = self.0.get(part) else {
            return vec![format!("no figures of {part} are committed")];
        };
        let mut found = Vec::new();
        for old in before.figures.iter().filter(|old| old.tolerance.is_some()) {
            match measured.figures.iter().find(|new| new.is(old)) {
                None => found.push(format!("{old} is committed, and was not measured")),
                Some(new) if new.is_worse_than(old) => {
                    found.push(format!("{new}; {} is committed", old.unit.tell(old.value)));
                }
                Some(_) => {}
            }
        }
        for new in measured
            .figures
            .iter()
            .filter(|new| new.tolerance.is_some())
        {
            if !before.figures.iter().any(|old| old.is(new)) {
                found.push(format!("{new}: nothing is committed"));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &str, value: f64) -> Figure {
        Figure::new(name, "6.12", value, Unit::Instructions).within(0.02)
    }

    fn measured(figures: Vec<Figure>) -> Measured {
        Measured {
            date: "2026-11-26".to_owned(),
            cpus: 2,
            processor: "x".to_owned(),
            release: "6.18".to_owned(),
            figures,
        }
    }

    #[test]
    fn what_is_worse_missing_or_new_is_complained_of() {
        let mut committed = Committed::default();
        assert_eq!(committed.complaints("locks", &measured(vec![])).len(), 1);
        let old = vec![figure("a", 100.0), figure("b", 100.0), figure("c", 100.0)];
        committed.keep("locks", measured(old));
        let new = vec![figure("a", 110.0), figure("b", 111.0), figure("d", 1.0)];
        assert_eq!(
            committed.complaints("locks", &measured(new)),
            [
                "b on 6.12: 111 instructions; 100 instructions is committed",
                "c on 6.12: 100 instructions is committed, and was not measured",
                "d on 6.12: 1 instructions: nothing is committed",
            ]
        );
        let better = vec![figure("a", 1.0), figure("b", 100.0), figure("c", 100.0)];
        assert!(committed.complaints("locks", &measured(better)).is_empty());
    }

    #[test]
    fn of_a_rate_less_is_worse() {
        let rate = |value| Figure::new("x", "", value, Unit::PerSecond).within(0.1);
        assert!(rate(89.0).is_worse_than(&rate(100.0)));
        assert!(!rate(91.0).is_worse_than(&rate(100.0)));
    }

    #[test]
    fn a_part_keeps_what_was_not_measured_again() {
        let mut committed = Committed::default();
        committed.keep("locks", measured(vec![figure("a", 1.0), figure("b", 2.0)]));
        committed.keep("locks", measured(vec![figure("b", 3.0)]));
        let values: Vec<f64> = committed.figures().map(|figure| figure.value).collect();
        assert_eq!(values, [3.0, 1.0]);
    }

    #[test]
    fn values_are_told_with_their_unit() {
        let told = |unit: Unit, value| unit.tell(value);
        assert_eq!(
            told(Unit::Instructions, 1234567.0),
            "1,234,567 instructions"
        );
        assert_eq!(told(Unit::Nanoseconds, 1.5e6), "1.5 ms");
        assert_eq!(told(Unit::Bytes, 25.0 * 1024.0 * 1024.0), "25.0 MiB");
        assert_eq!(told(Unit::PerSecond, 500_000.0), "500,000/s");
        assert_eq!(told(Unit::Ratio, 1.0071), "1.007×");
    }
}
