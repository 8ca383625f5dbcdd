//! How long waits and holds were, for a person: a table, and a plot of what costs most.

mod plot;

use std::io::{self, Write};

use self::plot::{worth_a_plot, write_plot};
use super::page::{GLUE, Style, Text, Tone, width};
use crate::{
    figures::{Brief, Count},
    latency::{Distribution, Measure},
    report::histogram::{Histograms, Series, Source},
};

/// Series in the table for each measure; the rest is counted.
const ROWS: usize = 20;
/// Columns that names get at least: of classes, and of callers with their classes.
const NAME: usize = 24;
const LONG_NAME: usize = 40;

/// How much is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth {
    /// Callers that are named below each class.
    pub callers: usize,
}

/// Writes the table and the plots.
///
/// # Errors
/// When `out` does.
pub fn write_histograms(
    out: &mut dyn Write,
    histograms: &Histograms,
    depth: Depth,
    style: Style,
) -> io::Result<()> {
    head(histograms).write(out, style, 0)?;
    for line in &histograms.degraded {
        Text::new().with(Tone::Doubt, line).write(out, style, 0)?;
    }
    let lost = histograms.lost;
    if lost.total() > 0 {
        let lost = format!(
            "not in these figures, for want of room: {}, {}",
            Count(lost.waits).nouns("wait", "waits"),
            Count(lost.holds).nouns("hold", "holds")
        );
        Text::new().with(Tone::Alarm, lost).write(out, style, 0)?;
    }
    if histograms.series.is_empty() {
        return Text::plain("nothing was counted").write(out, style, 0);
    }
    let of_one_measure = |a: &Series, b: &Series| a.label.measure == b.label.measure;
    for series in histograms.series.chunk_by(of_one_measure) {
        writeln!(out)?;
        write_table(out, series, depth, style)?;
    }
    for series in histograms.series.chunk_by(of_one_measure) {
        for series in worth_a_plot(series) {
            writeln!(out)?;
            write_plot(out, series, style)?;
        }
    }
    Ok(())
}

fn head(histograms: &Histograms) -> Text {
    let mut text = Text::new().with(Tone::Strong, "how long locks were waited for and held");
    if let Some(hosts) = histograms.hosts_in_words() {
        text.push(Tone::Plain, format!(" on {hosts}"));
    }
    if let Some(span) = histograms.span_in_words() {
        text.push(Tone::Plain, format!(", {span}"));
    }
    if histograms.source == Source::Live {
        text.push(Tone::Plain, ", just now");
    }
    text
}

/// The columns behind the name: heading, width, and what is in them.
struct Column {
    heading: &'static str,
    width: usize,
    cell: fn(&Distribution) -> String,
}

const COLUMNS: [Column; 7] = [
    Column {
        heading: "count",
        width: 11,
        cell: |times| Count(times.count()).to_string(),
    },
    Column {
        heading: "p50",
        width: 7,
        cell: |times| Brief(times.quantile(0.5)).to_string(),
    },
    Column {
        heading: "p90",
        width: 7,
        cell: |times| Brief(times.quantile(0.9)).to_string(),
    },
    Column {
        heading: "p99",
        width: 7,
        cell: |times| Brief(times.quantile(0.99)).to_string(),
    },
    Column {
        heading: "p99.9",
        width: 7,
        cell: |times| Brief(times.quantile(0.999)).to_string(),
    },
    Column {
        heading: "max",
        width: 7,
        cell: |times| Brief(times.max()).to_string(),
    },
    Column {
        heading: "in all",
        width: 8,
        cell: |times| Brief(times.sum()).to_string(),
    },
];

/// What is left out first on a narrow page.
const LEFT_OUT: [&str; 4] = ["p90", "p99.9", "p50", "count"];

fn columns(style: Style, name: usize) -> Vec<&'static Column> {
    let mut columns: Vec<&Column> = COLUMNS.iter().collect();
    for heading in LEFT_OUT {
        let taken: usize = columns.iter().map(|column| column.width).sum();
        if taken + name <= style.columns() {
            break;
        }
        columns.retain(|column| column.heading != heading);
    }
    columns
}

fn write_table(
    out: &mut dyn Write,
    series: &[Series],
    depth: Depth,
    style: Style,
) -> io::Result<()> {
    let is_by_caller = series.iter().any(|series| series.label.caller.is_some());
    let least = if is_by_caller { LONG_NAME } else { NAME };
    let columns = columns(style, least);
    let taken: usize = columns.iter().map(|column| column.width).sum();
    let longest = series.iter().take(ROWS).flat_map(|series| {
        let callers = series.callers.iter().take(depth.callers);
        callers
            .map(|(name, _)| width(name) + 2)
            .chain([width(&series.label.words())])
    });
    let room = style.columns() - taken;
    let room = (longest.max().unwrap_or(0) + 1).clamp(NAME.min(room), room);
    let write_row = |out: &mut dyn Write, tone, indent: usize, name: &str, cells: Vec<String>| {
        let name = cut(name, room - indent);
        let filled = indent + width(&name);
        let mut row = Text::new().with(tone, glue(indent)).with(tone, name);
        if !cells.is_empty() {
            row.push(Tone::Plain, glue(room - filled));
        }
        for (column, cell) in columns.iter().zip(cells) {
            let padded = format!("{cell:>width$}", width = column.width);
            row.push(tone, padded.replace(' ', &GLUE.to_string()));
        }
        row.write(out, style, 0)
    };
    let name = match series.first().and_then(|series| series.label.measure) {
        Some(Measure::Wait) => "waits",
        Some(Measure::Hold) => "holds",
        None => "tags",
    };
    let headings = columns.iter().map(|column| column.heading.to_owned());
    write_row(out, Tone::Label, 0, name, headings.collect())?;
    let cells = |times: &Distribution| columns.iter().map(|column| (column.cell)(times)).collect();
    for series in series.iter().take(ROWS) {
        let name = series.label.words();
        write_row(out, Tone::Strong, 0, &name, cells(&series.distribution))?;
        for (name, times) in series.callers.iter().take(depth.callers) {
            // All of it is the only one's.
            let cells = match series.callers.len() {
                1 => Vec::new(),
                _ => cells(times),
            };
            write_row(out, Tone::Plain, 2, name, cells)?;
        }
        let others = series.callers.iter().skip(depth.callers);
        let count = others.len();
        if count > 0 && depth.callers > 0 {
            let mut times = Distribution::default();
            others.for_each(|(_, other)| times.merge(other));
            let name = Count::of(count).nouns("other caller", "other callers");
            write_row(out, Tone::Dim, 2, &name, cells(&times))?;
        }
    }
    if let Some(rest) = series.get(ROWS..).filter(|rest| !rest.is_empty()) {
        let mut times = Distribution::default();
        rest.iter()
            .for_each(|series| times.merge(&series.distribution));
        let name = format!("{} more", Count::of(rest.len()));
        write_row(out, Tone::Dim, 0, &name, cells(&times))?;
    }
    Ok(())
}

/// Spaces that are kept.
fn glue(columns: usize) -> String {
    GLUE.to_string().repeat(columns)
}

/// A name in so many columns, one of which stays free.
fn cut(name: &str, columns: usize) -> String {
    if width(name) < columns {
        return name.to_owned();
    }
    let mut cut = String::new();
    for c in name.chars() {
        if width(&cut) + 3 > columns {
            break;
        }
        cut.push(c);
    }
    cut + "…"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::histogram::{By, Selection, example};

    fn shown(selection: &Selection, columns: usize, color: bool) -> String {
        let mut out = Vec::new();
        let histograms = Histograms::of(example::counted(), selection);
        let style = Style {
            width: columns,
            color,
        };
        write_histograms(&mut out, &histograms, Depth { callers: 3 }, style).unwrap();
        let text = String::from_utf8(out).unwrap();
        if !color {
            for line in text.lines() {
                assert!(width(line) <= columns.max(Style::NARROWEST), "{line}");
            }
        }
        text
    }

    #[test]
    fn for_a_person() {
        insta::assert_snapshot!("by_class_100", shown(&Selection::default(), 100, false));
        let holds = Selection {
            measure: Some(Measure::Hold),
            ..Selection::default()
        };
        insta::assert_snapshot!("holds_60", shown(&holds, 60, false));
        let by_caller = Selection {
            by: By::Caller,
            measure: Some(Measure::Wait),
            ..Selection::default()
        };
        insta::assert_snapshot!("by_caller_80", shown(&by_caller, 80, false));
        insta::assert_snapshot!("holds_in_colour", shown(&holds, 60, true));
    }

    #[test]
    fn it_fits_any_page() {
        for columns in [1, 40, 41, 55, 77, 200] {
            shown(&Selection::default(), columns, false);
        }
    }

    #[test]
    fn without_anything_counted_it_says_so() {
        let mut counted = example::counted();
        counted.series.clear();
        let mut out = Vec::new();
        let histograms = Histograms::of(counted, &Selection::default());
        let style = Style {
            width: 80,
            color: false,
        };
        write_histograms(&mut out, &histograms, Depth { callers: 3 }, style).unwrap();
        assert!(
            String::from_utf8(out)
                .unwrap()
                .ends_with("nothing was counted\n")
        );
    }
}
