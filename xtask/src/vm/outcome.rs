//! How it went on a kernel, and the table of all.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use super::catalogue::Kernel;
use super::transcript::Fact;
use crate::live::count::Count;
use crate::live::run::{TestRun, Verdict};
use crate::live::story::Story;

/// One kernel's part of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) kernel: &'static Kernel,
    /// What `uname -r` says; unknown if it could not be fetched.
    pub(crate) release: Option<String>,
    /// From the start of QEMU to the first process, by the host's clock.
    pub(crate) boot: Option<Duration>,
    /// From the start of QEMU to its end.
    pub(crate) total: Duration,
    pub(crate) runs: Vec<TestRun>,
    /// All tests were asked for.
    pub(crate) is_whole: bool,
    /// What the machine has told of its kernel.
    pub(crate) facts: BTreeMap<String, Fact>,
    /// What went wrong apart from tests: no kernel, no boot, a crash.
    pub(crate) trouble: Option<String>,
}

impl Outcome {
    /// A kernel that never ran.
    pub(crate) fn unavailable(kernel: &'static Kernel, why: String) -> Self {
        Self {
            kernel,
            release: None,
            boot: None,
            total: Duration::ZERO,
            runs: Vec::new(),
            is_whole: false,
            facts: BTreeMap::new(),
            trouble: Some(why),
        }
    }

    /// What the machine has told of a subject, or why it has not.
    pub(crate) fn fact<T: serde::de::DeserializeOwned>(&self, subject: &str) -> Result<T, String> {
        let Some(fact) = self.facts.get(subject) else {
            let trouble = self.trouble.as_deref();
            return Err(trouble.unwrap_or("the machine has told nothing").to_owned());
        };
        fact.json().ok_or_else(|| {
            let last = fact.text.lines().rfind(|line| !line.trim().is_empty());
            format!("exit code {}: {}", fact.code, last.unwrap_or_default())
        })
    }

    /// Numbers of its tests; trouble counts as one failure more.
    pub(crate) fn count(&self) -> Count {
        let mut count = Count::of(&self.runs);
        count.failed += usize::from(self.trouble.is_some());
        count
    }

    /// What has failed on it.
    pub(crate) fn stories(&self) -> impl Iterator<Item = Story> + '_ {
        let name = self.kernel.name;
        let machine = format!("{name} (the machine)");
        let trouble = self.trouble.iter();
        trouble
            .map(move |trouble| Story::new(machine.clone(), trouble.clone()))
            .chain(Story::of(name, &self.runs))
    }

    /// Scenarios that the catalogue calls impossible here, and that no test has left out.
    fn possible_after_all(&self) -> impl Iterator<Item = &'static str> {
        let is_left_out = |scenario: &str| {
            self.runs.iter().any(|run| match &run.verdict {
                Verdict::Skipped(why) => why.split_once(": ").is_some_and(|(of, _)| of == scenario),
                Verdict::Passed | Verdict::Failed(_) => false,
            })
        };
        let impossible = self.kernel.impossible.iter().copied();
        // Single tests, and machines that ended early, say nothing.
        let whole = self.is_whole && self.trouble.is_none();
        impossible.filter(move |scenario| whole && !is_left_out(scenario))
    }

    /// Stalls that passed tests had to make again: each may hide a fault of the lab.
    fn made_again(&self) -> usize {
        self.runs
            .iter()
            .filter(|run| run.verdict == Verdict::Passed)
            .map(TestRun::made_again)
            .sum()
    }

    /// Time that was not boot.
    pub(crate) fn testing(&self) -> Duration {
        self.boot
            .map_or(Duration::ZERO, |boot| self.total.saturating_sub(boot))
    }
}

/// The table: a row per kernel, below it what did not pass.
#[derive(Debug)]
pub(crate) struct Table<'o>(pub(crate) &'o [Outcome]);

impl Display for Table<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<8} {:<28} {:>7} {:>7} {:>6} {:>6} {:>7} {:>5}",
            "kernel", "version", "boot s", "test s", "passed", "failed", "skipped", "flaky"
        )?;
        for outcome in self.0 {
            let seconds = |time: Duration| format!("{:.1}", time.as_secs_f64());
            let count = outcome.count();
            writeln!(
                f,
                "{:<8} {:<28} {:>7} {:>7} {:>6} {:>6} {:>7} {:>5}",
                outcome.kernel.name,
                outcome.release.as_deref().unwrap_or("-"),
                outcome.boot.map_or_else(|| "-".to_owned(), seconds),
                seconds(outcome.testing()),
                count.passed,
                count.failed,
                count.skipped,
                count.flaky
            )?;
            if let Some(trouble) = &outcome.trouble {
                writeln!(f, "  FAILED   {trouble}")?;
            }
            for scenario in outcome.possible_after_all() {
                writeln!(
                    f,
                    "  note: {scenario} is called impossible on this kernel, and no test left it out"
                )?;
            }
            match outcome.made_again() {
                0 => {}
                1 => writeln!(f, "  note: 1 stall had to be made again")?,
                number => writeln!(f, "  note: {number} stalls had to be made again")?,
            }
            for run in &outcome.runs {
                let (word, why) = match &run.verdict {
                    Verdict::Passed if run.is_flaky() => ("flaky", ""),
                    Verdict::Passed => ("ok", ""),
                    Verdict::Failed(why) => ("FAILED", why.as_str()),
                    Verdict::Skipped(why) => ("skipped", why.as_str()),
                };
                write!(
                    f,
                    "  {word:<8} {:>6.1} s  {}::{}",
                    run.took.as_secs_f64(),
                    run.target,
                    run.name
                )?;
                match why {
                    "" => writeln!(f)?,
                    why => writeln!(f, "  ({})", shortened(why))?,
                }
                if let Some(first) = &run.first {
                    writeln!(
                        f,
                        "           tried twice; at first: {}",
                        shortened(&first.why)
                    )?;
                }
            }
        }
        Ok(())
    }
}

/// One screen line is enough; the whole is in the log.
fn shortened(text: &str) -> String {
    const MOST: usize = 200;
    if text.chars().count() <= MOST {
        return text.to_owned();
    }
    text.chars().take(MOST).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str, verdict: Verdict) -> TestRun {
        TestRun {
            took: Duration::from_millis(1250),
            verdict,
            ..TestRun::failed("live", name, "")
        }
    }

    #[test]
    fn a_second_try_is_told_and_counted() {
        let kernel = Kernel::by_name("6.12").unwrap();
        let mut outcome = Outcome::unavailable(kernel, String::new());
        outcome.trouble = None;
        outcome.runs = vec![run("one", Verdict::Passed), run("two", Verdict::Passed)];
        let mut twice = run("two", Verdict::Failed("it took 12 s".to_owned()));
        twice.tried_again(run("two", Verdict::Passed));
        outcome.runs[1] = twice;
        let count = outcome.count();
        assert_eq!((count.passed, count.failed, count.flaky), (2, 0, 1));
        let table = Table(&[outcome]).to_string();
        assert!(
            table.ends_with(
                "  flaky       1.2 s  live::two\n           tried twice; at first: it took 12 s\n"
            ),
            "{table}"
        );
    }

    #[test]
    fn a_kernel_that_never_ran_is_a_failure() {
        let kernel = Kernel::by_name("6.12").unwrap();
        let outcomes = [
            Outcome::unavailable(kernel, "it is gone".to_owned()),
            Outcome {
                kernel,
                release: Some("6.12.1-cloud".to_owned()),
                boot: Some(Duration::from_secs(4)),
                total: Duration::from_secs(10),
                runs: vec![
                    run("one", Verdict::Passed),
                    run("two", Verdict::Failed("it went wrong".to_owned())),
                    run("three", Verdict::Skipped("not here".to_owned())),
                ],
                is_whole: false,
                facts: BTreeMap::new(),
                trouble: None,
            },
        ];
        assert_eq!(
            outcomes
                .iter()
                .map(Outcome::count)
                .sum::<Count>()
                .to_string(),
            "1 passed, 2 failed, 1 skipped"
        );
        let table = Table(&outcomes).to_string();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[2], "  FAILED   it is gone");
        assert!(
            lines[3].contains("6.12.1-cloud") && lines[3].contains("6.0"),
            "{table}"
        );
        assert_eq!(lines[4], "  ok          1.2 s  live::one");
        assert_eq!(lines[5], "  FAILED      1.2 s  live::two  (it went wrong)");
    }

    #[test]
    fn a_scenario_that_was_possible_is_noted() {
        let kernel = Kernel::by_name("6.12-rt").unwrap();
        let mut outcome = Outcome::unavailable(kernel, String::new());
        outcome.trouble = None;
        let why = format!("{}: the kernel has none", kernel.impossible[0]);
        outcome.runs = vec![run("one", Verdict::Skipped(why))];
        assert_eq!(outcome.possible_after_all().count(), 0);
        outcome.is_whole = true;
        let noted: Vec<&str> = outcome.possible_after_all().collect();
        assert_eq!(noted, kernel.impossible[1..]);
    }

    #[test]
    fn stalls_that_had_to_be_made_again_are_noted() {
        let kernel = Kernel::by_name("5.10").unwrap();
        let mut outcome = Outcome::unavailable(kernel, String::new());
        outcome.trouble = None;
        let mut again = |name, verdict| {
            let mut run = run(name, verdict);
            run.output = "made again: attempt 1 of 3: why\n".to_owned();
            outcome.runs.push(run);
        };
        again("one", Verdict::Passed);
        again("two", Verdict::Failed("it went wrong".to_owned()));
        again("three", Verdict::Passed);
        let table = Table(&[outcome]).to_string();
        assert!(
            table.contains("\n  note: 2 stalls had to be made again\n"),
            "{table}"
        );
    }

    #[test]
    fn long_reasons_are_cut() {
        assert_eq!(shortened(&"é".repeat(300)).chars().count(), 201);
    }
}
