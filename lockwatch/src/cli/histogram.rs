//! `histogram`: its options.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};

use super::{CountArgs, Look, SourceArgs, duration, timestamp};
use crate::{
    latency::Measure,
    report::histogram::{By, Selection},
};

/// Options of `histogram`.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct HistogramArgs {
    /// What else to do.
    #[command(subcommand)]
    pub command: Option<HistogramCommand>,
    /// Logs to read, all together; without any, what happens from now on is counted
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Count for this long
    #[arg(
        long = "for",
        value_name = "DURATION",
        default_value = "10s",
        value_parser = duration,
        conflicts_with = "files"
    )]
    pub duration: Duration,
    /// How to write it
    #[arg(long, value_enum, default_value_t = HistogramFormat::Text)]
    pub format: HistogramFormat,
    /// Write it to FILE instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// What is told apart: locks by class, or callers, too
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = ByArg::Class)]
    pub by: ByArg,
    /// How many callers text names below each class
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub callers: usize,
    /// How long locks were waited for, or held [default: both; hgrm: wait]
    #[arg(long, value_name = "WHAT", value_enum)]
    pub measure: Option<MeasureArg>,
    /// What is counted, or what of logs is shown.
    #[command(flatten)]
    pub counts: CountArgs,
    /// What is attached.
    #[command(flatten)]
    pub sources: SourceArgs,
    /// Only intervals of the logs that begin at this time (2026-03-01T03:12:09Z) or later
    #[arg(long, value_name = "TIME", value_parser = timestamp, requires = "files")]
    pub from: Option<jiff::Timestamp>,
    /// Only intervals of the logs that begin before this time
    #[arg(long, value_name = "TIME", value_parser = timestamp, requires = "files")]
    pub to: Option<jiff::Timestamp>,
    /// What a value is worth in logs that lockwatch has not written; its own are always in ns
    #[arg(long, value_enum, default_value_t = Unit::Ns, requires = "files")]
    pub unit: Unit,
    /// How text looks.
    #[command(flatten)]
    pub look: Look,
}

impl HistogramArgs {
    /// What of all that was counted is shown.
    pub fn selection(&self) -> Selection {
        Selection {
            by: match self.by {
                ByArg::Class => By::Class,
                ByArg::Caller => By::Caller,
            },
            measure: match self.measure {
                Some(MeasureArg::Wait) => Some(Measure::Wait),
                Some(MeasureArg::Hold) => Some(Measure::Hold),
                Some(MeasureArg::Both) | None => None,
            },
            classes: self.counts.class.clone(),
            callers: self.counts.caller.clone(),
        }
    }
}

/// What else `histogram` does.
#[derive(Clone, Debug, Subcommand)]
pub enum HistogramCommand {
    /// Add up logs into one: of many hosts, or of many days
    ///
    /// The new log has one interval, from the beginning of the first to the end of the last,
    /// with the exact sum of all counts of each tag; hosts are named in comments. What was
    /// lost is added up, too. Logs of other tools are added up as well, by their tags and with
    /// their precision.
    #[command(after_long_help = "\
Examples:
  lockwatch histogram merge web1.hlog web2.hlog -o web.hlog
  lockwatch histogram merge waits.hlog.* waits.hlog -o all.hlog")]
    Merge(MergeArgs),
}

/// Options of `histogram merge`.
#[derive(Clone, Debug, Args)]
pub struct MergeArgs {
    /// The logs
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// The new log
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Replace it if it exists
    #[arg(long)]
    pub force: bool,
    /// Only intervals that begin at this time (2026-03-01T03:12:09Z) or later
    #[arg(long, value_name = "TIME", value_parser = timestamp)]
    pub from: Option<jiff::Timestamp>,
    /// Only intervals that begin before this time
    #[arg(long, value_name = "TIME", value_parser = timestamp)]
    pub to: Option<jiff::Timestamp>,
}

/// How histograms are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HistogramFormat {
    /// For a person: a table and a plot
    Text,
    /// The percentile table that HdrHistogram's plotter reads, of all that is selected
    Hgrm,
    /// A line for each bucket
    Csv,
    /// For a program: the contract lockwatch.histogram/1
    Json,
    /// A picture: a line of percentiles for each class
    Svg,
}

/// What is told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ByArg {
    /// Locks by class and mode
    Class,
    /// Callers, too
    Caller,
}

/// What the time was spent with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MeasureArg {
    /// Waiting for locks
    Wait,
    /// Holding them
    Hold,
    /// Both, apart
    Both,
}

/// What a value is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Unit {
    /// Nanoseconds
    Ns,
    /// Microseconds
    Us,
    /// Milliseconds
    Ms,
    /// Seconds
    S,
}

impl Unit {
    /// In ns.
    pub const fn ns(self) -> u64 {
        match self {
            Self::Ns => 1,
            Self::Us => 1_000,
            Self::Ms => 1_000_000,
            Self::S => 1_000_000_000,
        }
    }
}
