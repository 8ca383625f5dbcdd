//! `lockwatch report`: reports from a recording, or from many.

mod many;

use std::{
    io::{self, Write},
    path::Path,
};

use anyhow::{Context as _, bail};

use super::{
    Outcome,
    output::{Output, refuse_terminal, write_report, write_to},
    watch::{by_kind, printable, unsurveyed},
};
use crate::{
    cli::{ReportArgs, ReportFormat},
    detect::Detectors,
    figures::{Count, Span},
    graph::{Stall, timeline::Timeline},
    recording::{Chosen, Ended, Reader, Replayed},
    report::{
        Report, perfetto,
        text::{self, Style},
    },
};

/// Stalls of each kind that get a paragraph; the rest is counted.
const SHOWN: usize = 10;

/// Reads a recording and reports it.
///
/// # Errors
/// When the file is no recording, has not what is asked for, or the report cannot be
/// written.
pub fn run(args: &ReportArgs) -> anyhow::Result<Outcome> {
    let [path] = args.files.as_slice() else {
        return many::run(args);
    };
    refuse_terminal(args.format, args.output.as_deref())?;
    let file = path.display();
    let reader = Reader::open(path).with_context(|| format!("{file}"))?;
    let choice = match (args.survey, args.at) {
        (Some(number), _) => Chosen::Number(number),
        (None, Some(at)) => Chosen::At(at),
        (None, None) => Chosen::Worst,
    };
    let detectors = args.detect.detectors();
    let replayed = Replayed::from_reader(reader, choice, &detectors);
    if let Some(damage) = &replayed.damage {
        tracing::warn!("{file}: {damage}");
    }
    let report = replayed
        .chosen
        .as_ref()
        .map(|(_, survey)| replayed.report_of(survey, &detectors));
    let is_of_all = choice == Chosen::Worst && args.format == ReportFormat::Text;
    let is_trace = args.format == ReportFormat::Perfetto;
    let output = args.output.as_deref().map(Output::create).transpose()?;
    match &report {
        _ if is_of_all => write_to(output, args.look, |out, style| {
            write_text(out, &replayed, &detectors, style)
        })?,
        _ if is_trace => write_to(output, args.look, |out, _| {
            perfetto::write_trace(out, &replayed.header.host, &replayed.timeline)
        })?,
        Some(report) => write_to(output, args.look, |out, style| {
            // The only format that draws a timeline is written above.
            let timeline = || Timeline::new(report.threshold);
            write_report(out, args.format, report, &timeline, style)
        })?,
        None => bail!(no_survey(path, choice, &replayed)),
    }
    let asked = report.filter(|_| choice != Chosen::Worst && !is_trace);
    let found = asked.map_or_else(|| replayed.has_stall(), |report| report.has_stall());
    Ok(match (found, &replayed.damage) {
        (true, _) => Outcome::Stall,
        (false, None) => Outcome::Clear,
        // The stall may be in what could not be read.
        (false, Some(_)) => Outcome::Unread,
    })
}

fn no_survey(file: &Path, choice: Chosen, replayed: &Replayed) -> String {
    let file = file.display();
    match (choice, replayed.surveys) {
        (_, 0) => format!("{file} holds no survey: use --format text or perfetto"),
        (Chosen::At(at), _) => format!("{file} holds no survey that was taken by {at}"),
        (Chosen::Number(_), 1) => format!("{file} holds only survey 1"),
        (_, surveys) => format!("{file} holds the surveys 1 to {surveys}"),
    }
}

/// What was recorded, and each stall as the last survey saw it.
fn write_text(
    out: &mut dyn Write,
    replayed: &Replayed,
    detectors: &Detectors,
    style: Style,
) -> io::Result<()> {
    let standing = replayed.standing();
    write_summary(out, replayed, standing.len() as u64)?;
    for stall in standing.iter().take(SHOWN) {
        let stood = Span(stall.age(replayed.last_ns));
        let began = clock(replayed, stall.began_ns);
        let what = format!("{began} stall {} stands at the end, for {stood}", stall.id);
        let waits = replayed.graph.waits_for(stall.lock);
        let unknown = unsurveyed(stall, &waits, replayed.last_ns);
        let report = reported(replayed, stall, detectors);
        write_stall(out, stall, report.as_ref(), &what, &unknown, style)?;
    }
    write_rest(out, standing.len() as u64, "that stand at the end")?;
    for Ended { stall, name, .. } in replayed.ended.iter().take(SHOWN) {
        let bound = if stall.is_length_exact() {
            ""
        } else {
            "at most "
        };
        let what = format!(
            "{} stall {} ended after {bound}{} · {} · {} blocked",
            clock(replayed, stall.began_ns),
            stall.id,
            Span(stall.length()),
            printable(name.as_deref().unwrap_or("no survey has found the lock")),
            Count::of(stall.blocked.len()).nouns("task was", "tasks were"),
        );
        let report = reported(replayed, stall, detectors);
        write_stall(out, stall, report.as_ref(), &what, "", style)?;
    }
    write_rest(out, replayed.ended_count, "that ended")?;
    write_hangs(out, replayed, detectors, style)
}

/// What hung that is about no lock alone, each as the last survey saw it.
fn write_hangs(
    out: &mut dyn Write,
    replayed: &Replayed,
    detectors: &Detectors,
    style: Style,
) -> io::Result<()> {
    for hang in replayed.hangs.found.iter().take(SHOWN) {
        let (first, last) = (
            clock(replayed, hang.first_ns),
            clock(replayed, hang.last_ns),
        );
        writeln!(out, "\n{first} {}, last seen at {last}", hang.detector)?;
        let report = hang.survey.as_ref();
        let report = report.map(|survey| replayed.report_of(survey, detectors));
        let finding = report.as_ref().and_then(|report| {
            let mut findings = report.findings.iter();
            findings.find(|finding| finding.subject.as_ref() == Some(&hang.subject))
        });
        match (&report, finding) {
            (Some(report), Some(finding)) => text::write_finding(out, report, finding, style)?,
            // Its survey is not kept.
            _ => writeln!(out, "{}", printable(&hang.sentence))?,
        }
    }
    match replayed.hangs.count.saturating_sub(SHOWN as u64) {
        0 => Ok(()),
        rest => {
            let more = Count(rest).nouns("task or CPU that hung", "tasks or CPUs that hung");
            writeln!(out, "\n… and {more} (--format json --survey N shows each)")
        }
    }
}

fn write_summary(out: &mut dyn Write, replayed: &Replayed, standing: u64) -> io::Result<()> {
    let header = &replayed.header;
    let host = &header.host;
    writeln!(
        out,
        "recording of {} ({}, {}): {} from {}, by lockwatch {}",
        printable(&host.hostname),
        printable(&host.kernel),
        printable(&host.arch),
        Span(replayed.length()),
        seconds(header.began_at),
        printable(&header.lockwatch),
    )?;
    let stalls = Count(standing + replayed.ended_count).nouns("stall", "stalls");
    let (least, part, end) = match replayed.damage {
        None => ("", "", "at the end"),
        Some(_) => ("at least ", " in what could be read", "at the end of that"),
    };
    writeln!(
        out,
        "{least}{stalls} of {} and longer{part}, {} {end}; {}, {}, lost: {}",
        Span(header.threshold_ns),
        match standing {
            0 => "none stands".to_owned(),
            1 => "one stands".to_owned(),
            count => format!("{} stand", Count(count)),
        },
        Count(replayed.surveys).nouns("survey", "surveys"),
        Count(replayed.events).nouns("event", "events"),
        by_kind(&replayed.lost),
    )?;
    for line in replayed.degraded() {
        writeln!(out, "not known: {}", printable(&line))?;
    }
    Ok(())
}

/// The report of the last survey that saw a stall.
fn reported(replayed: &Replayed, stall: &Stall, detectors: &Detectors) -> Option<Report> {
    let facts = stall.facts.as_ref()?;
    Some(replayed.report_of(facts.survey(), detectors))
}

fn write_stall(
    out: &mut dyn Write,
    stall: &Stall,
    report: Option<&Report>,
    what: &str,
    unknown: &str,
    style: Style,
) -> io::Result<()> {
    let Some(report) = report else {
        return write!(out, "\n{what}\n{unknown}");
    };
    writeln!(out, "\n{what}, as found at {}", seconds(report.taken_at))?;
    match report.locks.iter().find(|lock| lock.at == stall.lock) {
        Some(lock) => text::write_stalled(out, report, lock, style),
        None => Ok(()),
    }
}

fn write_rest(out: &mut dyn Write, count: u64, which: &str) -> io::Result<()> {
    match count.saturating_sub(SHOWN as u64) {
        0 => Ok(()),
        rest => {
            let stalls = Count(rest).nouns("stall", "stalls");
            writeln!(
                out,
                "\n… and {stalls} more {which} (--format perfetto shows all)"
            )
        }
    }
}

fn clock(replayed: &Replayed, at_ns: u64) -> impl std::fmt::Display {
    seconds(replayed.header.time_of(at_ns))
}

fn seconds(at: jiff::Timestamp) -> impl std::fmt::Display {
    at.strftime("%FT%TZ")
}
