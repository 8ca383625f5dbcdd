//! A plot of percentiles as SVG, which any browser shows: a line for each series, over how
//! many of its times are no longer.

use std::{
    fmt,
    io::{self, Write},
};

use super::{Histograms, Series};
use crate::{
    figures::{Brief, Count},
    latency::Measure,
    report::text::is_unprintable,
    task::Nanos,
};

/// Series that are drawn, those with the longest sums; the rest is counted.
const DRAWN: usize = 8;
/// What is not told apart in the last part of the axis; nobody waits a billion times.
const MOST_NINES: u32 = 7;

/// The picture in its own units.
const WIDTH: f64 = 960.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 36.0;
const TOP: f64 = 64.0;
const PLOT_HEIGHT: f64 = 380.0;
const LEGEND_LINE: f64 = 22.0;
/// Characters of a name in the legend.
const LONGEST_NAME: usize = 60;

/// Writes the picture.
///
/// # Errors
/// When `out` does.
pub fn write(out: &mut dyn Write, histograms: &Histograms) -> io::Result<()> {
    let drawn: Vec<&Series> = {
        let mut all: Vec<&Series> = histograms.series.iter().collect();
        all.sort_by_key(|series| std::cmp::Reverse(series.sum_ns));
        all.into_iter().take(DRAWN).collect()
    };
    let axes = Axes::of(&drawn);
    let rest = histograms.series.len() - drawn.len();
    let legend = drawn.len() + usize::from(rest > 0);
    let height = TOP + PLOT_HEIGHT + 64.0 + legend as f64 * LEGEND_LINE + 16.0;
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" role=\"img\">"
    )?;
    let (title, subtitle) = titles(histograms);
    writeln!(out, "<title>{}</title>\n{STYLE}", Escaped(&title))?;
    writeln!(
        out,
        "<rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\"/>"
    )?;
    text(out, LEFT, 28.0, "title", "start", &title)?;
    text(out, LEFT, 48.0, "dim", "start", &subtitle)?;
    axes.write(out)?;
    for (number, series) in drawn.iter().enumerate() {
        axes.write_line(out, number, series)?;
    }
    let mut y = TOP + PLOT_HEIGHT + 76.0;
    for (number, series) in drawn.iter().enumerate() {
        let middle = y - 4.0;
        let end = LEFT + 28.0;
        writeln!(
            out,
            "<path class=\"line s{number}\" d=\"M{LEFT} {middle}H{end}\"/>"
        )?;
        text(out, LEFT + 40.0, y, "", "start", &cut(named(series)))?;
        let figures = format!(
            "{} · p99 {} · max {} · {} in all",
            Count(series.count),
            Brief(series.p99_ns),
            Brief(series.max_ns),
            Brief(series.sum_ns)
        );
        text(out, WIDTH - RIGHT, y, "dim", "end", &figures)?;
        y += LEGEND_LINE;
    }
    if rest > 0 {
        let rest = format!("and {} with less time, not drawn", Count::of(rest));
        text(out, LEFT + 40.0, y, "dim", "start", &rest)?;
    }
    writeln!(out, "</svg>")
}

/// Colours that are told apart by all eyes, on light and on dark pages (Okabe and Ito's, some
/// of them darker or lighter).
const STYLE: &str = "<style>
  .page { fill: #ffffff } text { font: 13px system-ui, sans-serif; fill: #1b1f24 }
  .title { font-size: 17px; font-weight: 600 } .dim { fill: #5b6470 }
  .grid { stroke: #dfe3e8; stroke-width: 1 } .axis { stroke: #5b6470; stroke-width: 1; fill: none }
  .line { fill: none; stroke-width: 2; stroke-linejoin: round }
  .s0 { stroke: #0072b2 } .s1 { stroke: #d55e00 } .s2 { stroke: #009e73 } .s3 { stroke: #a3478a }
  .s4 { stroke: #b58900 } .s5 { stroke: #2a9fd6 } .s6 { stroke: #7a5c3e } .s7 { stroke: #555555 }
  .s4, .s5, .s6, .s7 { stroke-dasharray: 6 3 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #14171a } text { fill: #e6e9ec } .dim { fill: #9aa4af }
    .grid { stroke: #2a3036 } .axis { stroke: #9aa4af }
    .s0 { stroke: #4aa8e0 } .s1 { stroke: #ff8a3d } .s2 { stroke: #2fd3a5 } .s3 { stroke: #d987c4 }
    .s4 { stroke: #e3c04f } .s5 { stroke: #8fd0f5 } .s6 { stroke: #c9a27c } .s7 { stroke: #bbbbbb }
  }
</style>";

fn titles(histograms: &Histograms) -> (String, String) {
    let measures: Vec<Option<Measure>> = histograms
        .series
        .iter()
        .map(|series| series.label.measure)
        .collect();
    let is_all = |measure| !measures.is_empty() && measures.iter().all(|&it| it == measure);
    let title = match () {
        () if is_all(Some(Measure::Wait)) => "How long tasks waited for locks",
        () if is_all(Some(Measure::Hold)) => "How long tasks held locks",
        () if is_all(None) => "How long it took",
        () => "How long tasks waited for locks and held them",
    };
    let mut parts = Vec::new();
    parts.extend(histograms.hosts_in_words());
    parts.extend(histograms.span_in_words());
    let lost = histograms.lost.total();
    if lost > 0 {
        parts.push(format!("{} more were not counted", Count(lost)));
    }
    (title.to_owned(), parts.join(" · "))
}

fn named(series: &Series) -> String {
    match series.label.measure {
        Some(measure) => format!("{} {}", measure.word(), series.label.words()),
        None => series.label.words(),
    }
}

/// So that it does not run into the figures beside it.
fn cut(name: String) -> String {
    match name.char_indices().nth(LONGEST_NAME) {
        Some((at, _)) => format!("{}…", &name[..at]),
        None => name,
    }
}

/// The scales: percentiles by how many nines they have, times by their logarithm.
struct Axes {
    /// Nines of the last percentile: 2.0 is 99 %.
    nines: f64,
    /// Logarithms to the base 10 of the first and the last time in ns.
    decades: (f64, f64),
}

impl Axes {
    fn of(series: &[&Series]) -> Self {
        let count = series.iter().map(|series| series.count).max().unwrap_or(1);
        let nines = (count.max(10) as f64).log10().ceil();
        let shortest = series.iter().filter_map(|series| series.buckets.first());
        let shortest = shortest.map(|bucket| bucket.to_ns.0.max(1)).min();
        let longest = series.iter().map(|series| series.max_ns.0.max(1)).max();
        let first = (shortest.unwrap_or(1) as f64).log10().floor();
        let last = (longest.unwrap_or(1) as f64).log10().ceil();
        Self {
            nines: nines.min(f64::from(MOST_NINES)),
            decades: (first, last.max(first + 1.0)),
        }
    }

    /// Where a share is: each nine takes as much room.
    fn x(&self, share: f64) -> f64 {
        let nines = -(1.0 - share).max(1e-12).log10();
        LEFT + nines.min(self.nines) / self.nines * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, time: Nanos) -> f64 {
        let (first, last) = self.decades;
        let place = ((time.0.max(1) as f64).log10() - first) / (last - first);
        TOP + PLOT_HEIGHT * (1.0 - place.clamp(0.0, 1.0))
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let (right, bottom) = (WIDTH - RIGHT, TOP + PLOT_HEIGHT);
        let (first, last) = self.decades;
        for decade in first as i32..=last as i32 {
            let time = Nanos(10_u64.saturating_pow(decade.unsigned_abs()));
            let y = self.y(time);
            writeln!(
                out,
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right:.1}\"/>"
            )?;
            text(
                out,
                LEFT - 8.0,
                y + 4.0,
                "",
                "end",
                &Brief(time).to_string(),
            )?;
        }
        let mut shares = vec![0.0, 0.5];
        shares.extend((1..=self.nines as i32).map(|nines| 1.0 - 10_f64.powi(-nines)));
        for share in shares {
            let x = self.x(share);
            writeln!(
                out,
                "<path class=\"grid\" d=\"M{x:.1} {TOP}V{bottom:.1}\"/>"
            )?;
            text(out, x, bottom + 20.0, "", "middle", &percent(share))?;
        }
        writeln!(
            out,
            "<path class=\"axis\" d=\"M{LEFT} {TOP}V{bottom:.1}H{right:.1}\"/>"
        )?;
        let middle = f64::midpoint(LEFT, right);
        let meaning = "this share of them took no longer";
        text(out, middle, bottom + 42.0, "dim", "middle", meaning)
    }

    /// Steps: a time is that of all shares up to its own.
    fn write_line(&self, out: &mut dyn Write, number: usize, series: &Series) -> io::Result<()> {
        let mut path = String::new();
        let mut counted = 0;
        for bucket in &series.buckets {
            let y = self.y(bucket.to_ns);
            if path.is_empty() {
                path = format!("M{:.1} {y:.1}", self.x(0.0));
            } else {
                path.push_str(&format!("V{y:.1}"));
            }
            counted += bucket.count;
            let share = counted as f64 / series.count as f64;
            path.push_str(&format!("H{:.1}", self.x(share.min(self.last(series)))));
        }
        writeln!(
            out,
            "<path class=\"line s{number}\" d=\"{path}\"><title>{}</title></path>",
            Escaped(&named(series))
        )
    }

    /// Where a line ends: beyond the last time but one there is a single time, of a share that
    /// this many cannot tell.
    fn last(&self, series: &Series) -> f64 {
        1.0 - 0.5 / series.count as f64
    }
}

fn percent(share: f64) -> String {
    let text = format!("{:.5}", share * 100.0);
    format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
}

fn text(
    out: &mut dyn Write,
    x: f64,
    y: f64,
    class: &str,
    anchor: &str,
    content: &str,
) -> io::Result<()> {
    writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\" text-anchor=\"{anchor}\">{}</text>",
        Escaped(content)
    )
}

/// Text as it is written in XML.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                c if is_unprintable(c) => f.write_char('?')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::histogram::{Selection, example};

    #[test]
    fn by_example() {
        let selection = Selection {
            measure: Some(Measure::Wait),
            classes: vec!["cgroup_mutex".to_owned(), "unknown".to_owned()],
            ..Selection::default()
        };
        let mut out = Vec::new();
        write(&mut out, &Histograms::of(example::counted(), &selection)).unwrap();
        insta::assert_snapshot!(String::from_utf8(out).unwrap());
    }

    #[test]
    fn names_do_no_harm() {
        let text = Escaped("<script>\"&\u{202e}").to_string();
        assert_eq!(text, "&lt;script&gt;&quot;&amp;?");
    }

    #[test]
    fn shares_have_their_nines() {
        assert_eq!(percent(0.0), "0%");
        assert_eq!(percent(0.5), "50%");
        assert_eq!(percent(1.0 - 1e-7), "99.99999%");
    }
}
