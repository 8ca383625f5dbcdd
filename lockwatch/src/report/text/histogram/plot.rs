//! The plot of one series: how often how long, and what that cost.

use std::io::{self, Write};

use super::{
    super::page::{GLUE, Style, Text, Tone, width},
    glue,
};
use crate::{
    figures::{Brief, Count},
    latency::{Distribution, Measure},
    report::histogram::Series,
    task::Nanos,
};

/// Series of each measure that are plotted, and the share of all time after which no more are.
const PLOTS: usize = 3;
const PLOTTED_SHARE: f64 = 0.95;

/// Those that most of the time was spent with.
pub(super) fn worth_a_plot(series: &[Series]) -> impl Iterator<Item = &Series> {
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
pub(super) fn write_plot(out: &mut dyn Write, series: &Series, style: Style) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
