//! What is told at the end of a run of each test that has failed, once or twice, in the form
//! that test binaries have for it: `---- name ----`, then its words.

use std::fmt::{self, Display, Formatter};

use super::run::{PANICKED, TestRun};

/// The most that is told of what a test has said: a log may be read from its end only.
const LINES: usize = 30;

/// Around the name of what a story is of.
const BAR: &str = "----";

/// The line after the last story: libtest lists the names then.
pub(crate) const AFTER: &str = "failures:";

/// One failed try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Story {
    pub(crate) title: String,
    pub(crate) text: String,
}

impl Story {
    /// Of a thing that is no test.
    pub(crate) fn new(title: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            text: text.into(),
        }
    }

    /// One of each failed try of these tests.
    pub(crate) fn of<'r>(place: &'r str, runs: &'r [TestRun]) -> impl Iterator<Item = Self> + 'r {
        runs.iter().flat_map(move |run| {
            let story = |what: &str, why: &str, output: &str| {
                let title = format!("{place} {} ({what})", run.full_name());
                Self::new(title, told(why, output))
            };
            let first = run.first.as_ref().map(|first| {
                let what = if run.is_flaky() {
                    "flaky: it passed at the second try"
                } else {
                    "FAILED, first try"
                };
                story(what, &first.why, &first.output)
            });
            let last = run.failure().map(|why| {
                let what = match run.first {
                    Some(_) => "FAILED, second try",
                    None => "FAILED",
                };
                story(what, why, &run.output)
            });
            first.into_iter().chain(last)
        })
    }

    /// The title in a line that a story begins with.
    pub(crate) fn title_of(line: &str) -> Option<&str> {
        line.strip_prefix(BAR)?.strip_suffix(BAR).map(str::trim)
    }

    /// Without more lines than are told at the end of a run.
    pub(crate) fn shortened(&self) -> Self {
        Self::new(self.title.clone(), last_lines(&self.text))
    }
}

impl Display for Story {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{BAR} {} {BAR}\n{}\n", self.title, self.text.trim_end())
    }
}

/// The last lines that a failed test has said, or why it has failed if it has said nothing.
fn told(why: &str, output: &str) -> String {
    let words = last_lines(output);
    let why_is_told = words.contains(why);
    match words.as_str() {
        "" => why.to_owned(),
        _ if why_is_told => words,
        _ => format!("{why}\n{words}"),
    }
}

/// The last lines of what a test has said, with where it panicked and the line after that.
/// What libtest says around it says nothing.
fn last_lines(output: &str) -> String {
    let lines: Vec<&str> = output.lines().collect();
    let panicked = lines.iter().position(|line| line.contains(PANICKED));
    let from = panicked.unwrap_or(0);
    let is_end = |line: &&str| {
        line.starts_with("note: run with `RUST_BACKTRACE") || line.starts_with("test result: ")
    };
    let end = lines[from..]
        .iter()
        .position(is_end)
        .map_or(lines.len(), |at| from + at);
    let begin = end.saturating_sub(LINES);
    let mut kept = Vec::new();
    if let Some(panicked) = panicked.filter(|panicked| *panicked < begin) {
        let head = panicked..(panicked + 2).min(begin);
        kept.extend(&lines[head.clone()]);
        if head.end < begin {
            kept.push("…");
        }
    }
    kept.extend(&lines[begin..end]);
    let is_frame = |line: &&str| {
        line.trim().is_empty()
            || *line == AFTER
            || *line == "successes:"
            || line.starts_with("running ")
            || line.starts_with("test ")
            || Story::title_of(line).is_some()
    };
    // Libtest's own frame, before the words and behind them.
    let head = kept.iter().take_while(|line| is_frame(line)).count();
    let tail = kept[head..]
        .iter()
        .rev()
        .take_while(|line| is_frame(line))
        .count();
    kept[head..kept.len() - tail].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::run::Verdict;

    fn output(message: &str) -> String {
        format!(
            "\nrunning 1 test\ntest one ... FAILED\n\nfailures:\n\n---- one stdout ----\n\
             a word before\n\nthread 'one' (7) panicked at tests/x.rs:1:2:\n{message}\n\
             note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n\n\n\
             failures:\n    one\n\ntest result: FAILED. 0 passed; 1 failed; 0 ignored\n"
        )
    }

    fn run(message: &str) -> TestRun {
        TestRun {
            output: output(message),
            ..TestRun::failed("live", "one", message.lines().next().unwrap())
        }
    }

    #[test]
    fn both_tries_are_told() {
        let mut both = run("at first");
        both.tried_again(run("again"));
        let stories: Vec<String> = Story::of("6.12", &[both])
            .map(|story| story.to_string())
            .collect();
        assert_eq!(
            stories,
            [
                "---- 6.12 live::one (FAILED, first try) ----\na word before\n\n\
                 thread 'one' (7) panicked at tests/x.rs:1:2:\nat first\n",
                "---- 6.12 live::one (FAILED, second try) ----\na word before\n\n\
                 thread 'one' (7) panicked at tests/x.rs:1:2:\nagain\n",
            ]
        );
    }

    #[test]
    fn of_a_flaky_test_the_failure_is_told() {
        let mut flaky = run("late");
        let passed = TestRun {
            verdict: Verdict::Passed,
            ..run("never")
        };
        flaky.tried_again(passed.clone());
        let stories: Vec<Story> = Story::of("6.12", &[passed, flaky]).collect();
        assert_eq!(stories.len(), 1);
        let title = "6.12 live::one (flaky: it passed at the second try)";
        assert_eq!(stories[0].title, title);
        assert!(stories[0].text.ends_with("\nlate"), "{}", stories[0]);
        let line = stories[0].to_string();
        assert_eq!(Story::title_of(line.lines().next().unwrap()), Some(title));
    }

    #[test]
    fn of_a_long_message_the_head_and_the_end_are_told() {
        let long: Vec<String> = (0..100).map(|number| format!("line {number}")).collect();
        let text = last_lines(&output(&long.join("\n")));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), LINES + 3);
        assert_eq!(
            lines[..4],
            [
                "thread 'one' (7) panicked at tests/x.rs:1:2:",
                "line 0",
                "…",
                "line 70"
            ]
        );
        assert_eq!(lines.last(), Some(&"line 99"));
    }

    #[test]
    fn a_test_that_said_nothing_has_a_reason() {
        assert_eq!(told("Kernel panic", ""), "Kernel panic");
        assert_eq!(told("killed", "running 1 test\na word\n"), "killed\na word");
    }
}
