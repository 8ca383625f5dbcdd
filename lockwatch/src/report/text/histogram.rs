//! How long waits and holds were, for a person: a table, and a plot of what costs most.

use std::io::{self, Write};

use super::page::{GLUE, Style, Text, Tone, width};
use crate::{
    figures::{Brief, Count, Span},
    latency::{Distribution, Measure},
    report::histogram::{Histograms, Series, Source},
    task::Nanos,
};

/// Series in the table for each measure; the rest is counted.
const ROWS: usize = 20;
/// Series of each measure that are plotted, and the share of all time after which no more are.
const PLOTS: usize = 3;
const PLOTTED_SHARE: f64 = 0.95;
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
    if lost.waits + lost.holds > 0 {
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
    let hosts: Vec<&str> = histograms.hosts.iter().map(String::as_str).collect();
    match hosts.as_slice() {
        [] => {}
        few if few.len() <= 3 => text.push(Tone::Plain, format!(" on {}", few.join(", "))),
        many => text.push(Tone::Plain, format!(" on {} hosts", Count::of(many.len()))),
    }
    if let (Some(from), Some(to)) = (histograms.from, histograms.to) {
        let length = Nanos(to.duration_since(from).as_nanos().try_into().unwrap_or(0));
        let from = from.strftime("%FT%TZ");
        text.push(Tone::Plain, format!(", {} from {from}", Span(length)));
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

/// Those that most of the time was spent with.
fn worth_a_plot(series: &[Series]) -> impl Iterator<Item = &Series> {
    let all: f64 = series.iter().map(|series| series.sum_ns.0 as f64).sum();
    let mut plotted = 0.0;
    series.iter().take(PLOTS).take_while(move |series| {
        let is_worth = plotted < PLOTTED_SHARE * all;
        plotted += series.sum_ns.0 as f64;
        is_worth
    })
}

/// Times of a plot that are one line.
#[derive(Clone, Copy, Debug, Default)]
struct Step {
    from: u64,
    to: u64,
    count: u64,
    sum_ns: u64,
}

/// Round times in ns, each decade divided as `begins` say; from a minute on as people say them.
fn bounds(begins: &[u64]) -> Vec<u64> {
    const SECOND: u64 = 1_000_000_000;
    const MINUTE: u64 = 60 * SECOND;
    const HOUR: u64 = 60 * MINUTE;
    let powers = (0..=10).map(|power| 10_u64.pow(power));
    let minutes = [MINUTE, 10 * MINUTE].into_iter();
    let hours = (0..6).map(|power| HOUR * 10_u64.pow(power));
    let starts = powers.chain(minutes).chain(hours);
    let all = starts.flat_map(|start| begins.iter().map(move |&begin| start * begin));
    // 50 s would be next to a minute, 50 minutes next to an hour.
    all.filter(|&time| time != 50 * SECOND && time != 50 * MINUTE)
        .collect()
}

/// The times in 1 to 14 steps, each some times as long as the one before.
fn steps(times: &Distribution) -> Vec<Step> {
    let shortest = times.buckets().next().map_or(0, |(from, ..)| from.0).max(1);
    let longest = times.max().0.max(shortest);
    let decades = (longest as f64 / shortest as f64).log10();
    let all = bounds(match decades {
        ..3.0 => &[1, 2, 5],
        3.0..6.0 => &[1, 3],
        _ => &[1],
    });
    let steps = all.windows(2).map(|pair| Step {
        from: pair[0],
        to: pair[1],
        ..Step::default()
    });
    let mut steps: Vec<Step> = steps
        .filter(|step| step.to > shortest && step.from <= longest)
        .collect();
    for (from, _, counted) in times.buckets() {
        let place = steps.partition_point(|step| step.to <= from.0);
        let last = steps.len().saturating_sub(1);
        if let Some(step) = steps.get_mut(place.min(last)) {
            step.count += counted.count;
            step.sum_ns = step.sum_ns.saturating_add(counted.sum_ns);
        }
    }
    steps
}

/// How often, and how much of the time, side by side: what is rare can be what costs.
fn write_plot(out: &mut dyn Write, series: &Series, style: Style) -> io::Result<()> {
    /// Columns of the range, the count and the share.
    const RANGE: usize = 17;
    const COUNT: usize = 12;
    const SHARE: usize = 6;
    let (noun, spent) = match series.label.measure {
        Some(Measure::Wait) => ("wait", "time waited"),
        Some(Measure::Hold) => ("hold", "time held"),
        None => ("time", "time spent"),
    };
    let plural = format!("{noun}s");
    Text::new()
        .with(Tone::Strong, series.label.words())
        .with(Tone::Plain, ": ")
        .with(
            Tone::Plain,
            format!(
                "{}, {} in all, the longest {}",
                Count(series.count).nouns(noun, &plural),
                Brief(series.sum_ns),
                Brief(series.max_ns)
            ),
        )
        .write(out, style, 0)?;
    let bars = style.columns().saturating_sub(RANGE + COUNT + SHARE + 3);
    let bar_width = (bars / 2).clamp(2, 40);
    let heading = format!(
        "{:>RANGE$} {:>COUNT$} {:<bar_width$} {}",
        "how long", plural, "how often", spent
    );
    Text::new()
        .with(Tone::Dim, heading.replace(' ', &GLUE.to_string()))
        .write(out, style, 0)?;
    let steps = steps(&series.distribution);
    let most = steps.iter().map(|step| step.count).max().unwrap_or(0);
    let most_time = steps.iter().map(|step| step.sum_ns).max().unwrap_or(0);
    for step in steps {
        let range = format!("{}–{}", Brief(Nanos(step.from)), Brief(Nanos(step.to)));
        let share = step.sum_ns as f64 / series.sum_ns.0.max(1) as f64;
        let often = bar(step.count, most, bar_width);
        let costly = bar(step.sum_ns, most_time, bar_width);
        let padded = bar_width - width(&often);
        let share = match step.count {
            0 => String::new(),
            _ if share < 0.01 => " <1%".to_owned(),
            _ => format!(" {:.0}%", share * 100.0),
        };
        let count = match step.count {
            0 => String::new(),
            count => Count(count).to_string(),
        };
        let columns = format!("{range:>RANGE$} {count:>COUNT$} ");
        Text::plain(columns.replace(' ', &GLUE.to_string()))
            .with(Tone::Label, often)
            .with(Tone::Plain, glue(padded + 1))
            .with(Tone::Doubt, costly)
            .with(Tone::Plain, share.replace(' ', &GLUE.to_string()))
            .write(out, style, 0)?;
    }
    Ok(())
}

/// A bar as long as its share of the most, to an eighth of a column; what is there is seen.
fn bar(amount: u64, most: u64, columns: usize) -> String {
    const EIGHTHS: [char; 8] = ['█', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    if amount == 0 || most == 0 {
        return String::new();
    }
    let eighths = amount as f64 / most as f64 * columns as f64 * 8.0;
    let eighths = (eighths.round() as usize).max(1);
    let mut bar = EIGHTHS[0].to_string().repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        bar.push(EIGHTHS[eighths % 8]);
    }
    bar
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

    #[test]
    fn steps_hold_all_that_was_counted() {
        for times in [
            &[1][..],
            &[5, 7_000_000_000],
            &[0, 900, 1_100_000],
            &[99, 100, 101],
        ] {
            let mut distribution = Distribution::default();
            times
                .iter()
                .for_each(|&time| distribution.record(Nanos(time)));
            let steps = steps(&distribution);
            let count: u64 = steps.iter().map(|step| step.count).sum();
            assert_eq!(count, times.len() as u64, "{steps:?}");
            assert!(steps.len() <= 14, "{steps:?}");
            let ends = steps.iter().filter(|step| step.count == 0).count();
            assert!(ends < steps.len());
        }
    }

    #[test]
    fn what_is_there_is_seen() {
        assert_eq!(bar(1, 1_000_000, 10), "▏");
        assert_eq!(bar(1_000_000, 1_000_000, 4), "████");
        assert_eq!(bar(9, 16, 2), "█▏");
        assert_eq!(bar(0, 16, 2), "");
    }
}
