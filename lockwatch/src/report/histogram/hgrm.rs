//! The percentile table of `HdrHistogram` (.hgrm), which its online plotter reads: one
//! distribution, values in ms.

use std::io::{self, Write};

use super::Histograms;
use crate::{latency::Distribution, task::Nanos};

/// Values of the table, in ns.
const UNIT_NS: f64 = 1e6;
/// Lines for each halving of what is left to 100 %, as the other implementations have it.
const TICKS: f64 = 5.0;

/// Writes all series as one distribution.
///
/// # Errors
/// When `out` does.
pub fn write(out: &mut dyn Write, histograms: &Histograms) -> io::Result<()> {
    let mut all = Distribution::default();
    for series in &histograms.series {
        all.merge(&series.distribution);
    }
    let histogram = all.histogram();
    writeln!(
        out,
        "{:>12} {:>14} {:>10} {:>14}\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    )?;
    for step in steps(&all) {
        let value = step.longest.0 as f64 / UNIT_NS;
        let share = step.percent / 100.0;
        write!(out, "{value:>12.6} {share:.12} {:>10}", step.counted)?;
        if step.percent < 100.0 {
            write!(out, " {:>14.2}", 1.0 / (1.0 - share))?;
        }
        writeln!(out)?;
    }
    let (mean, deviation) = (histogram.mean() / UNIT_NS, histogram.stdev() / UNIT_NS);
    let (max, count) = (histogram.max() as f64 / UNIT_NS, histogram.len());
    writeln!(
        out,
        "#[Mean    = {mean:>12.6}, StdDeviation   = {deviation:>12.6}]"
    )?;
    writeln!(
        out,
        "#[Max     = {max:>12.6}, Total count    = {count:>12}]"
    )?;
    // Of a histogram of 2 digits from 1 ns to 1 h.
    writeln!(
        out,
        "#[Buckets = {:>12}, SubBuckets     = {:>12}]",
        histogram.distinct_values() / 128 - 1,
        256
    )
}

/// A line: so many are no longer than this.
struct Step {
    longest: Nanos,
    percent: f64,
    counted: u64,
}

/// The lines of the Java and the JavaScript implementation, by their arithmetic: where a share
/// of the count is a whole number, the smallest error would make another line of it.
fn steps(times: &Distribution) -> Vec<Step> {
    let mut steps = Vec::new();
    let (mut percent, mut counted, total) = (0.0_f64, 0, times.count());
    for (_, longest, here) in times.buckets() {
        counted += here.count;
        while percent < 100.0 && 100.0 * counted as f64 / total as f64 >= percent {
            steps.push(Step {
                longest,
                percent,
                counted,
            });
            let halvings = (100.0 / (100.0 - percent)).log2().floor();
            percent += 100.0 / (TICKS * 2_f64.powf(halvings + 1.0));
            if counted == total {
                break;
            }
        }
    }
    if counted > 0 {
        steps.push(Step {
            longest: times.max(),
            percent: 100.0,
            counted,
        });
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::histogram::{Selection, example};

    #[test]
    fn by_example() {
        let selection = Selection {
            classes: vec!["cgroup_mutex".to_owned()],
            ..Selection::default()
        };
        let mut out = Vec::new();
        write(&mut out, &Histograms::of(example::counted(), &selection)).unwrap();
        insta::assert_snapshot!(String::from_utf8(out).unwrap());
    }
}
