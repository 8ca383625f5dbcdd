//! `lockwatch record`: what watch sees, into a file.

use std::{sync::Arc, time::Duration};

use super::{
    Outcome, diagnose,
    memory::lock_memory,
    priority::go_first,
    recorder::{self, Recorder},
    watch::{self, Summary, by_kind, findings_of_hangs, say},
};
use crate::{
    cli::{self, RecordArgs},
    detect::Detectors,
    figures::{Count, Span},
    graph::{Forecasts, Input},
    recording::Header,
    report::Report,
    stream::{Lost, PolledWaits},
};

/// A single survey takes no longer than this.
const DEADLINE: Duration = Duration::from_secs(2);

/// Records until told to stop.
///
/// # Errors
/// When the file cannot be created or written, or nothing can be seen on this host.
pub fn run(args: &RecordArgs) -> anyhow::Result<Outcome> {
    if args.once {
        return once(args);
    }
    let file = recorder::create(&args.output, args.force)?;
    let (recorder, summary) = watch::record(args, |header| {
        say(&format!(
            "recording to {}: waits of {} and longer; {}",
            args.output.display(),
            Span(header.threshold_ns),
            header.sources.join("; ")
        ));
        for gap in &header.gaps {
            say(&format!("not here: {gap}"));
        }
        Recorder::start(&args.output, file, header)
    })
    // A file without a header is of no use to anybody.
    .inspect_err(|_| remove_if_empty(args))?;
    finish(args, recorder, &summary)
}

/// Records one survey.
fn once(args: &RecordArgs) -> anyhow::Result<Outcome> {
    let thresholds = cli::thresholds(args.threshold, args.hang, None);
    let file = recorder::create(&args.output, args.force)?;
    go_first();
    lock_memory();
    let header = Header::now(thresholds, vec!["one survey".to_owned()], Vec::new());
    let survey = diagnose::survey_in_time(DEADLINE).inspect_err(|_| remove_if_empty(args))?;
    let survey = Arc::new(survey);
    let mut recorder = Recorder::start(&args.output, file, &header)?;
    let stalled = survey
        .locks
        .iter()
        .filter(|lock| lock.oldest_wait() >= thresholds.wait);
    let report = Report::from_survey(&survey, &header.host, thresholds, &Detectors::default());
    let of_hangs = report
        .findings
        .iter()
        .filter(|finding| finding.subject.is_some());
    let summary = Summary {
        waits: None,
        stalls: stalled.count() as u64,
        findings: of_hangs.count() as u64,
        surveys: 1,
        forecasts: Forecasts::default(),
        lost: Lost::default(),
    };
    recorder.input(&Input::Scan(PolledWaits::of_others().read(&survey)));
    recorder.input(&Input::Clock(survey.taken_at_ns));
    recorder.input(&Input::Survey(survey));
    finish(args, recorder, &summary)
}

fn finish(args: &RecordArgs, recorder: Recorder, summary: &Summary) -> anyhow::Result<Outcome> {
    let length = recorder.finish(summary.waits)?;
    say(&format!(
        "recorded {}{} and {}, lost: {}; lockwatch report reads {} ({} kB)",
        Count(summary.stalls).nouns("stall", "stalls"),
        findings_of_hangs(summary.findings),
        Count(summary.surveys).nouns("survey", "surveys"),
        by_kind(&summary.lost),
        args.output.display(),
        Count(length.div_ceil(1_000)),
    ));
    Ok(if summary.stalls + summary.findings > 0 {
        Outcome::Stall
    } else {
        Outcome::Clear
    })
}

/// Removes the file that was created for nothing.
fn remove_if_empty(args: &RecordArgs) {
    let path = &args.output;
    let is_empty = path
        .symlink_metadata()
        .is_ok_and(|found| found.is_file() && found.len() == 0);
    if is_empty && let Err(error) = std::fs::remove_file(path) {
        tracing::debug!("cannot remove {}: {error}", path.display());
    }
}
