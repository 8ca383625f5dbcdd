//! What a guest says on its serial port, line by line (init.sh), as results.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::live::run::{TestRun, Verdict, judge};

/// No machine stands still for longer, whatever it asks for.
const STILL_AT_MOST: Duration = Duration::from_secs(30);

/// What a command in a guest has said of its kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fact {
    /// Of the command.
    pub(crate) code: i32,
    pub(crate) text: String,
}

impl Fact {
    /// The JSON object in it: what a kernel logs may stand beside it.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        let (begin, end) = (self.text.find('{')?, self.text.rfind('}')?);
        serde_json::from_str(self.text.get(begin..=end)?).ok()
    }
}

/// Everything a guest has said so far.
#[derive(Debug, Default)]
pub(crate) struct Transcript {
    /// By the guest's own clock, when the first process was ready; and its kernel.
    pub(crate) boot: Option<(Duration, String)>,
    /// Finished tests, in order.
    pub(crate) runs: Vec<TestRun>,
    /// Exit code of a script.
    pub(crate) script: Option<i32>,
    /// What the guest has told of its kernel, by subject.
    pub(crate) facts: BTreeMap<String, Fact>,
    /// The fact that is being told.
    telling: Option<(String, String)>,
    /// The test that runs.
    open: Option<TestRun>,
}

/// Something that a reader of progress lines wants to know.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum News<'l> {
    Booted,
    Tested,
    /// A line of a script, or of a test.
    Said(&'l str),
    /// A test asks its host to let the machine stand still for so long.
    StandStill(Duration),
    Nothing,
}

impl Transcript {
    /// Takes one line.
    pub(crate) fn add<'l>(&mut self, line: &'l str) -> News<'l> {
        let line = line.trim_end_matches('\r');
        let Some(words) = line.strip_prefix("@@vm ") else {
            let text = match (&mut self.open, &mut self.telling) {
                (Some(open), _) => Some(&mut open.output),
                (None, Some((_, text))) => Some(text),
                (None, None) => None,
            };
            if let Some(text) = text {
                text.push_str(line);
                text.push('\n');
            }
            return News::Said(line);
        };
        let words: Vec<&str> = words.split(' ').collect();
        match words[..] {
            ["boot", time, release] => {
                self.boot = Some((centiseconds(time), release.to_owned()));
                News::Booted
            }
            ["test", target, name] => {
                self.interrupted("the guest went on without a word of its end");
                self.open = Some(TestRun::failed(target, name, "it has not ended"));
                News::Nothing
            }
            ["end", code, time] => {
                if let Some(mut run) = self.open.take() {
                    run.took = centiseconds(time);
                    run.verdict = judge(code.parse().unwrap_or(-1), &run.output);
                    self.runs.push(run);
                }
                News::Tested
            }
            ["fact", subject] => {
                self.telling = Some((subject.to_owned(), String::new()));
                News::Nothing
            }
            ["told", code] => {
                if let Some((subject, text)) = self.telling.take() {
                    let code = code.parse().unwrap_or(-1);
                    self.facts.insert(subject, Fact { code, text });
                }
                News::Nothing
            }
            ["stand-still", ms] => {
                let time = Duration::from_millis(ms.parse().unwrap_or(0));
                News::StandStill(time.min(STILL_AT_MOST))
            }
            ["script", code] => {
                self.script = code.parse().ok();
                News::Nothing
            }
            _ => News::Nothing,
        }
    }

    /// The machine is gone: what ran then has failed.
    pub(crate) fn interrupted(&mut self, why: &str) {
        if let Some(mut run) = self.open.take() {
            run.verdict = Verdict::Failed(why.to_owned());
            self.runs.push(run);
        }
    }
}

fn centiseconds(text: &str) -> Duration {
    // The guest's arithmetic may leave zeroes in front.
    Duration::from_millis(text.parse::<u64>().unwrap_or(0) * 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transcript(lines: &[&str]) -> Transcript {
        let mut transcript = Transcript::default();
        for line in lines {
            transcript.add(line);
        }
        transcript
    }

    #[test]
    fn tests_are_attributed_and_judged() {
        let found = transcript(&[
            "@@vm boot 312 6.12.1-cloud",
            "@@vm test live_diagnose one",
            "test one ... ok",
            "test result: ok. 1 passed; 0 failed; 0 ignored",
            "@@vm end 0 150",
            "@@vm test live_diagnose two",
            "thread 'two' panicked at tests/x.rs:1:2:",
            "called `Result::unwrap()` on an `Err` value: it went wrong",
            "@@vm end 101 20",
            "@@vm test live_diagnose three",
            "test result: ok. 0 passed; 0 failed; 0 ignored",
            "@@vm end 0 1",
            "@@vm test live_diagnose four",
            "@@vm end 137 6000",
            "@@vm test live_diagnose five",
            "skipped: this kernel has no such lock",
            "test result: ok. 1 passed; 0 failed; 0 ignored",
            "@@vm end 0 10",
        ]);
        let (boot, release) = found.boot.unwrap();
        assert_eq!((boot.as_millis(), &*release), (3120, "6.12.1-cloud"));
        let verdicts: Vec<_> = found.runs.iter().map(|run| run.verdict.clone()).collect();
        let failed = |why: &str| Verdict::Failed(why.to_owned());
        assert_eq!(
            verdicts,
            [
                Verdict::Passed,
                failed("it went wrong"),
                failed("the test was not run"),
                failed("killed at its time limit"),
                Verdict::Skipped("this kernel has no such lock".to_owned()),
            ]
        );
        assert_eq!(found.runs[0].took, Duration::from_millis(1500));
        assert!(found.runs[1].output.contains("it went wrong"));
    }

    #[test]
    fn stalls_that_were_made_again_are_counted() {
        let found = transcript(&[
            "@@vm test live one",
            "made again: attempt 1 of 3: the lab made no stall: stall-lab: cannot",
            "a line of it that says made again: no more",
            "made again: attempt 2 of 3: the lab made no stall: stall-lab: cannot",
            "test result: ok. 1 passed; 0 failed; 0 ignored",
            "@@vm end 0 150",
        ]);
        assert_eq!(found.runs[0].verdict, Verdict::Passed);
        assert_eq!(found.runs[0].made_again(), 2);
    }

    #[test]
    fn facts_are_told_between_tests() {
        let found = transcript(&[
            "@@vm fact check",
            "a word on stderr",
            "{\"mode\":",
            " 3}",
            "@@vm told 1",
            "@@vm test live one",
            "{}",
            "@@vm end 1 2",
        ]);
        let fact = &found.facts["check"];
        assert_eq!(fact.code, 1);
        let json: serde_json::Value = fact.json().unwrap();
        assert_eq!(json["mode"], 3);
        assert_eq!(found.runs[0].output, "{}\n");
    }

    #[test]
    fn a_test_may_have_its_machine_stand_still() {
        let mut found = transcript(&["@@vm test live one"]);
        let still = |seconds| News::StandStill(Duration::from_secs(seconds));
        assert_eq!(found.add("@@vm stand-still 8000"), still(8));
        assert_eq!(found.add("@@vm stand-still 3600000"), still(30));
        found.add("test result: ok. 1 passed; 0 failed; 0 ignored");
        found.add("@@vm end 0 900");
        assert_eq!(found.runs[0].verdict, Verdict::Passed);
    }

    #[test]
    fn a_test_without_an_end_has_failed() {
        let mut found = transcript(&["@@vm test live one", "half a li"]);
        assert!(found.runs.is_empty());
        found.interrupted("Kernel panic");
        assert_eq!(
            found.runs[0].verdict,
            Verdict::Failed("Kernel panic".to_owned())
        );
    }
}
