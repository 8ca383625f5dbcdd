//! Options of `diagnose` and `report`: what makes a report.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum, builder::PossibleValuesParser};

use super::{HangArgs, Look, duration, timestamp};
use crate::detect::{self, Detectors};

/// Options of `diagnose`.
#[derive(Clone, Debug, Args)]
pub struct DiagnoseArgs {
    /// How to write the report
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    pub format: ReportFormat,
    /// Write the report to FILE instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Shorter waits are counted, not reported
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    pub threshold: Duration,
    /// From when on tasks hang.
    #[command(flatten)]
    pub hang: HangArgs,
    /// Stop after this long and report what is known by then
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration)]
    pub deadline: Duration,
    /// Which detectors are asked.
    #[command(flatten)]
    pub detect: Detect,
    /// How text looks.
    #[command(flatten)]
    pub look: Look,
}

/// Options of `report`.
#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// The recording; several are summed up
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// How to write the report
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    pub format: ReportFormat,
    /// Write the report to FILE instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Report this survey of the recording, by its number from 1
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub survey: Option<u64>,
    /// Report the last survey taken by this time (2026-03-01T03:12:09Z)
    #[arg(long, value_name = "TIME", conflicts_with = "survey", value_parser = timestamp)]
    pub at: Option<jiff::Timestamp>,
    /// Which detectors are asked.
    #[command(flatten)]
    pub detect: Detect,
    /// How text looks.
    #[command(flatten)]
    pub look: Look,
}

/// How a report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// For a person
    Text,
    /// For a program: the contract lockwatch.report/1
    Json,
    /// A graph of tasks and locks for graphviz
    Dot,
    /// Folded stacks of the waiters, for flame graphs, weighted by wait in µs
    Folded,
    /// A trace for ui.perfetto.dev: a track for each lock, waits and holds as slices
    Perfetto,
}

/// Which detectors are asked.
#[derive(Clone, Debug, Default, Args)]
pub struct Detect {
    /// Ask only these detectors; may be repeated
    #[arg(
        long,
        value_name = "DETECTOR",
        value_delimiter = ',',
        value_parser = detector_names()
    )]
    pub detect: Vec<String>,
    /// Ask all detectors but these; may be repeated
    #[arg(
        long,
        value_name = "DETECTOR",
        value_delimiter = ',',
        value_parser = detector_names(),
        hide_possible_values = true
    )]
    pub no_detect: Vec<String>,
}

impl Detect {
    /// The detectors that these options leave.
    pub fn detectors(&self) -> Detectors {
        let only: Vec<&str> = self.detect.iter().map(String::as_str).collect();
        let without: Vec<&str> = self.no_detect.iter().map(String::as_str).collect();
        Detectors::selected(&only, &without)
    }
}

fn detector_names() -> PossibleValuesParser {
    PossibleValuesParser::new(detect::ALL.iter().map(|detector| detector.name()))
}
