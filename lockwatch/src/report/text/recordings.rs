//! Many recordings at a glance, for a person.

use std::io::{self, Write};

use super::page::{GLUE, Style, Text, Tone, width};
use crate::{
    detect::Severity,
    figures::{Count, Span},
    report::recordings::{Recording, Recordings},
    task::Nanos,
};

/// Findings whose hosts are all named.
const NAMED: usize = 4;

/// Writes a line for each recording, and a paragraph for each kind of finding.
///
/// # Errors
/// When `out` does.
pub fn write_recordings(out: &mut dyn Write, of_all: &Recordings, style: Style) -> io::Result<()> {
    sum(of_all).write(out, style, 0)?;
    writeln!(out)?;
    let rows: Vec<[String; 6]> = of_all.recordings.iter().map(row).collect();
    let headings = ["host", "from", "length", "stalls", "longest", "most on"].map(str::to_owned);
    let column = |index: usize| {
        let cells = rows.iter().chain([&headings]);
        cells
            .map(|row| width(&row[index]))
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..headings.len()).map(column).collect();
    let line = |cells: &[String; 6]| {
        let mut line = String::new();
        for (cell, &columns) in cells.iter().zip(&widths) {
            let padding = columns - width(cell) + 2;
            line.push_str(cell);
            line.push_str(&GLUE.to_string().repeat(padding));
        }
        line.trim_end_matches(GLUE).replace(' ', &GLUE.to_string())
    };
    let table = widths.iter().sum::<usize>() + 2 * (widths.len() - 1);
    Text::new()
        .with(Tone::Label, line(&headings))
        .write(out, style, 0)?;
    for (row, recording) in rows.iter().zip(&of_all.recordings) {
        let tone = match recording.stalls + recording.hangs {
            0 => Tone::Dim,
            _ if recording.standing > 0 => Tone::Strong,
            _ => Tone::Plain,
        };
        let mut text = Text::new().with(tone, line(row));
        let mut file = recording.file.clone();
        if recording.is_cut_off {
            file.push_str(" (cut off or damaged: there may have been more)");
        }
        let padding = table - width(&line(row));
        if table + 2 + width(&file) <= style.columns() {
            text.push(Tone::Plain, GLUE.to_string().repeat(padding + 2));
            text.push(Tone::Dim, file);
            text.write(out, style, 0)?;
        } else {
            text.write(out, style, 0)?;
            write!(out, "  ")?;
            Text::new().with(Tone::Dim, file).write(out, style, 2)?;
        }
    }
    for finding in &of_all.findings {
        writeln!(out)?;
        let tone = match finding.severity {
            Severity::Critical => Tone::Alarm,
            Severity::Warning => Tone::Doubt,
            Severity::Info => Tone::Label,
        };
        let hosts: Vec<&str> = finding.hosts.iter().map(String::as_str).collect();
        let hosts = if hosts.len() > NAMED {
            format!("{} hosts", Count::of(hosts.len()))
        } else {
            hosts.join(", ")
        };
        Text::new()
            .with(tone, &finding.detector)
            .with(
                Tone::Plain,
                format!(
                    " {} on {hosts}",
                    Count(finding.count).nouns("time", "times")
                ),
            )
            .write(out, style, 0)?;
        write!(out, "  ")?;
        let about = format!("{}: {}", finding.of_host, finding.sentence);
        Text::plain(about).write(out, style, 2)?;
    }
    Ok(())
}

fn sum(of_all: &Recordings) -> Text {
    let stalls: u64 = of_all.recordings.iter().map(|it| it.stalls).sum();
    let hangs: u64 = of_all.recordings.iter().map(|it| it.hangs).sum();
    let standing: u64 = of_all.recordings.iter().map(|it| it.standing).sum();
    let mut sum = format!(
        "{} of {}: {}, {} at the end",
        Count::of(of_all.recordings.len()).nouns("recording", "recordings"),
        Count::of(of_all.hosts().len()).nouns("host", "hosts"),
        Count(stalls).nouns("stall", "stalls"),
        match standing {
            0 => "none stands".to_owned(),
            1 => "one stands".to_owned(),
            count => format!("{} stand", Count(count)),
        },
    );
    if hangs > 0 {
        let hung = Count(hangs).nouns("task or CPU hung", "tasks or CPUs hung");
        sum.push_str(&format!("; {hung} on what is no lock"));
    }
    Text::new().with(Tone::Strong, sum)
}

fn row(recording: &Recording) -> [String; 6] {
    let length = recording.to.duration_since(recording.from).as_nanos();
    let length = Nanos(length.try_into().unwrap_or_default());
    let longest = recording
        .longest_ns
        .map(|longest| Span(longest).to_string());
    // The most stalls; of as many, those with the longest.
    let classes = recording.classes.iter().rev();
    let most = classes.max_by_key(|class| class.stalls).map(|most| {
        let class = most.class.as_str();
        format!("{class} ({})", Count(most.stalls))
    });
    let least = if recording.is_cut_off { "≥" } else { "" };
    [
        recording.host.hostname.clone(),
        recording.from.strftime("%FT%TZ").to_string(),
        Span(length).to_string(),
        format!("{least}{}", Count(recording.stalls)),
        longest.unwrap_or_else(|| "–".to_owned()),
        most.unwrap_or_else(|| "–".to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::report::{Host, recordings::ClassOfStalls};

    fn recording(host: &str, stalls: u64, cut_off: bool) -> Recording {
        let class = |class: &str, stalls, seconds: u64| ClassOfStalls {
            class: class.to_owned(),
            stalls,
            longest_ns: Nanos(seconds * 1_000_000_000),
        };
        let from = jiff::Timestamp::from_second(1_764_135_000).unwrap();
        let classes = match stalls {
            0 => Vec::new(),
            count => vec![class("i_rwsem", 1, 372), class("mmap_lock", count - 1, 3)],
        };
        Recording {
            file: format!("{host}.lwr"),
            host: Host {
                hostname: host.to_owned(),
                kernel: "6.12".to_owned(),
                arch: "x86_64".to_owned(),
                boot_id: None,
            },
            from,
            to: from + jiff::SignedDuration::from_secs(3_600),
            threshold_ns: Nanos(1_000_000_000),
            stalls,
            standing: stalls / 4,
            longest_ns: classes.first().map(|class| class.longest_ns),
            classes,
            hangs: u64::from(cut_off),
            degraded: Vec::new(),
            is_cut_off: cut_off,
            findings: match stalls {
                0 => Vec::new(),
                _ => vec![
                    (
                        "convoy".to_owned(),
                        Severity::Warning,
                        "12 readers wait behind a writer although the lock is only read-held"
                            .to_owned(),
                    ),
                    (
                        "deadlock".to_owned(),
                        Severity::Critical,
                        format!("a[1] and b[2] of {host} wait for each other"),
                    ),
                ],
            },
        }
    }

    #[test]
    fn at_a_glance() {
        let all = Recordings::of(vec![
            recording("db1", 0, false),
            recording("web1", 2, false),
            recording("a-host-with-a-long-name.example.org", 9, true),
        ]);
        let mut out = Vec::new();
        let style = Style {
            width: 100,
            color: false,
        };
        write_recordings(&mut out, &all, style).unwrap();
        insta::assert_snapshot!(String::from_utf8(out).unwrap());
    }

    #[test]
    fn those_that_say_the_same_are_one() {
        let all = Recordings::of(vec![
            recording("web1", 2, false),
            recording("web2", 2, false),
        ]);
        let detectors: Vec<(&str, u64)> = all
            .findings
            .iter()
            .map(|it| (it.detector.as_str(), it.count))
            .collect();
        assert_eq!(detectors, [("deadlock", 2), ("convoy", 2)]);
        let hosts: BTreeSet<String> = ["web1".to_owned(), "web2".to_owned()].into();
        assert_eq!(all.findings[0].hosts, hosts);
    }
}
