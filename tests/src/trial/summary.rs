//! Many trials of one scenario in one line.

use std::{fmt, time::Duration};

use super::{Verdict, report::Confidence};

/// Counts over all runs of a scenario.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    runs: usize,
    exact: usize,
    certain: usize,
    likely: usize,
    decoys_possible: usize,
    times: Vec<Duration>,
    peak_rss_kib: u64,
}

impl Summary {
    /// Adds a run.
    pub fn add(&mut self, verdict: &Verdict, took: Duration, peak_rss_kib: u64) {
        let count = |confidence| {
            let same = |one: &&Confidence| **one == confidence;
            verdict.confidences.iter().filter(same).count()
        };
        self.runs += 1;
        self.exact += usize::from(verdict.names_exactly_the_holders());
        self.certain += count(Confidence::Certain);
        self.likely += count(Confidence::Likely);
        self.decoys_possible += verdict.decoys_possible;
        self.times.push(took);
        self.peak_rss_kib = self.peak_rss_kib.max(peak_rss_kib);
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut times = self.times.clone();
        times.sort_unstable();
        let at = |index: usize| times.get(index).map_or(0, Duration::as_millis);
        write!(
            f,
            "{} runs, {} right, holders certain {} likely {}, decoys possible {}, \
             median {} ms, slowest {} ms, peak {} MiB",
            self.runs,
            self.exact,
            self.certain,
            self.likely,
            self.decoys_possible,
            at(times.len() / 2),
            at(times.len().saturating_sub(1)),
            self.peak_rss_kib >> 10
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_is_wrong_does_not_count_as_right() {
        let mut summary = Summary::default();
        let mut verdict = Verdict {
            confidences: vec![Confidence::Certain],
            ..Verdict::default()
        };
        summary.add(&verdict, Duration::from_millis(100), 30 << 10);
        verdict.wrong.push("something".into());
        verdict.decoys_possible = 1;
        summary.add(&verdict, Duration::from_millis(120), 31 << 10);
        assert_eq!(
            summary.to_string(),
            "2 runs, 1 right, holders certain 2 likely 0, decoys possible 1, \
             median 120 ms, slowest 120 ms, peak 31 MiB"
        );
    }
}
