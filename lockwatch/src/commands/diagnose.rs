//! `lockwatch diagnose`: what is stuck now.

use std::{
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use super::{
    Outcome,
    memory::lock_memory,
    output::{Output, refuse_terminal, write_report, write_to},
    priority::go_first,
};
use crate::{
    cli::{self, DiagnoseArgs},
    graph::timeline::Timeline,
    report::{Host, Report},
    survey::{Survey, SurveyOptions, Surveyor},
};

/// What a survey that keeps its deadline may need after it, to put its words together.
const GRACE: Duration = Duration::from_millis(500);

/// Takes one survey and reports it.
///
/// # Errors
/// When the output file cannot be created (before anything is read), no survey can be
/// taken, the kernel does not answer before the deadline, or the report cannot be
/// written.
pub fn run(args: &DiagnoseArgs) -> anyhow::Result<Outcome> {
    refuse_terminal(args.format, args.output.as_deref())?;
    let output = args.output.as_deref().map(Output::create).transpose()?;
    go_first();
    lock_memory();
    let survey = survey_in_time(args.deadline)?;
    let thresholds = cli::thresholds(args.threshold, args.hang, None);
    let detectors = args.detect.detectors();
    let report = Report::from_survey(&survey, &Host::this(), thresholds, &detectors);
    let survey = Arc::new(survey);
    let timeline = || Timeline::of_survey(&survey, thresholds.wait);
    write_to(output, args.look, |out, style| {
        write_report(out, args.format, &report, &timeline, style)
    })?;
    Ok(if report.has_stall() {
        Outcome::Stall
    } else {
        Outcome::Clear
    })
}

/// How far the thread that surveys has come.
enum Progress {
    /// It begins this step.
    Step(&'static str),
    /// What the first look alone says.
    Known(Survey),
    /// It is done.
    Done(anyhow::Result<Survey>),
}

/// Surveys on a thread of its own: a kernel that hangs one of our calls must not keep
/// what is known by then from being printed.
pub(super) fn survey_in_time(deadline: Duration) -> anyhow::Result<Survey> {
    let (sender, receiver) = mpsc::channel();
    let began = Instant::now();
    thread::Builder::new()
        .name("survey".to_owned())
        .spawn(move || {
            let survey = survey(deadline, &sender);
            // The receiver is gone once the deadline has passed.
            let _ = sender.send(Progress::Done(survey));
        })
        .context("cannot start a thread")?;
    let mut step = "start";
    let mut known = None;
    loop {
        let left = (deadline + GRACE).saturating_sub(began.elapsed());
        match receiver.recv_timeout(left) {
            Ok(Progress::Step(next)) => step = next,
            Ok(Progress::Known(survey)) => known = Some(survey),
            Ok(Progress::Done(survey)) => return survey,
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the survey's thread ended early"),
            Err(RecvTimeoutError::Timeout) => break,
        }
    }
    let mut survey = known.with_context(|| {
        format!(
            "no answer within {deadline:?}: the kernel did not let lockwatch {step}; try a longer --deadline"
        )
    })?;
    survey.degraded.push(format!(
        "the kernel did not let lockwatch {step} in time: this is what the first look alone says"
    ));
    Ok(survey)
}

fn survey(deadline: Duration, progress: &Sender<Progress>) -> anyhow::Result<Survey> {
    let began = Instant::now();
    // Nobody is left to be told if these fail.
    let _ = progress.send(Progress::Step("load the survey's programs"));
    let mut surveyor = Surveyor::open().context("no survey can be taken on this host")?;
    let _ = progress.send(Progress::Step("read all tasks and their locks"));
    let options = SurveyOptions {
        deadline: deadline.saturating_sub(began.elapsed()),
        ..SurveyOptions::default()
    };
    surveyor
        .survey_in_steps(&options, &[], |first| {
            let _ = progress.send(Progress::Known(first));
        })
        .context("the survey failed")
}
