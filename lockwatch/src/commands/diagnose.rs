//! `lockwatch diagnose`: what is stuck now.

use std::io::{self, Write};

use anyhow::Context as _;

use super::{Outcome, allow_closed_pipe, output::Output};
use crate::{
    cli::{DiagnoseArgs, Format},
    report::{Host, Report, json, text},
    survey::{Survey, SurveyOptions, Surveyor},
    task::Nanos,
};

/// Takes one survey and reports it.
///
/// # Errors
/// When the output file cannot be created (before anything is read), no survey can be
/// taken, or the report cannot be written.
pub fn run(args: &DiagnoseArgs) -> anyhow::Result<Outcome> {
    let output = args.output.as_deref().map(Output::create).transpose()?;
    let survey = survey(args)?;
    let report = Report::from_survey(&survey, &Host::this(), Nanos::from_duration(args.threshold));
    match output {
        Some(mut output) => {
            write(args, &report, &mut output, args.look.for_file())
                .and_then(|()| output.flush())
                .with_context(|| format!("write {}", output.path().display()))?;
            output.keep()?;
        }
        None => {
            let mut stdout = io::BufWriter::new(io::stdout().lock());
            let written = write(args, &report, &mut stdout, args.look.for_stdout())
                .and_then(|()| stdout.flush());
            allow_closed_pipe(written).context("write to standard output")?;
        }
    }
    Ok(if report.has_stall() {
        Outcome::Stall
    } else {
        Outcome::Clear
    })
}

fn survey(args: &DiagnoseArgs) -> anyhow::Result<Survey> {
    let options = SurveyOptions {
        deadline: args.deadline,
        ..SurveyOptions::default()
    };
    let mut surveyor = Surveyor::open().context("no survey can be taken on this host")?;
    surveyor.survey(&options).context("the survey failed")
}

fn write(
    args: &DiagnoseArgs,
    report: &Report,
    out: &mut dyn Write,
    style: text::Style,
) -> io::Result<()> {
    match args.format {
        Format::Text => text::write_report(out, report, style),
        Format::Json => json::write_report(out, report),
    }
}
