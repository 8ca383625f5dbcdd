//! The results as JUnit XML, the form that most CI systems read: one suite per kernel.

use std::fmt::Write as _;

use super::outcome::Outcome;
use crate::live::count::Count;
use crate::live::run::{TestRun, Verdict};

/// The whole document.
pub(crate) fn document(outcomes: &[Outcome]) -> String {
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let all = outcomes.iter().map(Outcome::count).sum();
    open(&mut xml, 0, "testsuites", &[("name", "lockwatch vm")], all);
    for outcome in outcomes {
        let release = outcome.release.as_deref().unwrap_or("unavailable");
        let name = format!("{} ({release})", outcome.kernel.name);
        let time = format!("{:.3}", outcome.total.as_secs_f64());
        let attributes = [("name", name.as_str()), ("time", time.as_str())];
        open(&mut xml, 2, "testsuite", &attributes, outcome.count());
        if let Some(trouble) = &outcome.trouble {
            let machine = TestRun {
                took: outcome.total,
                ..TestRun::failed("vm", "machine", trouble.as_str())
            };
            case(&mut xml, outcome, &machine);
        }
        for run in &outcome.runs {
            case(&mut xml, outcome, run);
        }
        xml.push_str("  </testsuite>\n");
    }
    xml.push_str("</testsuites>\n");
    xml
}

fn open(xml: &mut String, indent: usize, tag: &str, attributes: &[(&str, &str)], count: Count) {
    let _ = write!(xml, "{:indent$}<{tag}", "");
    for (key, value) in attributes {
        let _ = write!(xml, " {key}=\"{}\"", escaped(value));
    }
    let tests = count.passed + count.failed + count.skipped;
    let _ = writeln!(
        xml,
        " tests=\"{tests}\" failures=\"{}\" skipped=\"{}\" flakes=\"{}\">",
        count.failed, count.skipped, count.flaky
    );
}

fn case(xml: &mut String, outcome: &Outcome, run: &TestRun) {
    let _ = write!(
        xml,
        "    <testcase classname=\"{}.{}\" name=\"{}\" time=\"{:.3}\"",
        escaped(outcome.kernel.name),
        escaped(&run.target),
        escaped(&run.name),
        run.took.as_secs_f64()
    );
    // What build servers know from Maven's Surefire: a first try that failed.
    let first = |element: &str| {
        let first = run.first.as_ref()?;
        Some(format!(
            "\n      <{element} message=\"{}\" type=\"\"><system-out>{}</system-out></{element}>",
            escaped(&first.why),
            escaped(&first.output)
        ))
    };
    let _ = match &run.verdict {
        Verdict::Passed => match first("flakyFailure") {
            None => writeln!(xml, "/>"),
            Some(first) => writeln!(xml, ">{first}\n    </testcase>"),
        },
        Verdict::Failed(why) => writeln!(
            xml,
            ">\n      <failure message=\"{}\">{}</failure>{}\n    </testcase>",
            escaped(why),
            escaped(&run.output),
            first("rerunFailure").unwrap_or_default()
        ),
        Verdict::Skipped(why) => writeln!(
            xml,
            ">\n      <skipped message=\"{}\"/>\n    </testcase>",
            escaped(why)
        ),
    };
}

/// As text or as an attribute's value; XML 1.0 has no way to write most control characters.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(char),
            char if char < ' ' || matches!(char, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            char => out.push(char),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::vm::catalogue::Kernel;

    #[test]
    fn suites_and_cases_are_counted_and_escaped() {
        let kernel = Kernel::by_name("6.12").unwrap();
        let outcome = Outcome {
            kernel,
            release: Some("6.12.1".to_owned()),
            boot: None,
            total: Duration::from_secs(2),
            runs: vec![TestRun {
                took: Duration::from_secs(1),
                output: "\u{1b}[1mred & \n".to_owned(),
                ..TestRun::failed("live", "one", "a < \"b\"")
            }],
            is_whole: true,
            facts: BTreeMap::new(),
            trouble: Some("it broke".to_owned()),
        };
        let xml = document(&[outcome]);
        assert!(
            xml.contains(
                "<testsuite name=\"6.12 (6.12.1)\" time=\"2.000\" tests=\"2\" failures=\"2\""
            ),
            "{xml}"
        );
        assert!(xml.contains("message=\"a &lt; &quot;b&quot;\">\u{fffd}[1mred &amp; \n</failure>"));
        assert!(xml.contains("name=\"machine\""), "{xml}");
    }

    #[test]
    fn a_flaky_test_is_a_pass_with_its_failure_in_it() {
        let kernel = Kernel::by_name("6.12").unwrap();
        let mut outcome = Outcome::unavailable(kernel, String::new());
        outcome.trouble = None;
        let mut flaky = TestRun {
            output: "late & wrong".to_owned(),
            ..TestRun::failed("live", "one", "late")
        };
        flaky.tried_again(TestRun {
            verdict: Verdict::Passed,
            ..TestRun::failed("live", "one", "")
        });
        outcome.runs = vec![flaky];
        let xml = document(&[outcome]);
        assert!(
            xml.contains("tests=\"1\" failures=\"0\" skipped=\"0\" flakes=\"1\""),
            "{xml}"
        );
        assert!(
            xml.contains(
                "<flakyFailure message=\"late\" type=\"\">\
                 <system-out>late &amp; wrong</system-out></flakyFailure>"
            ),
            "{xml}"
        );
        assert!(!xml.contains("<failure"), "{xml}");
    }
}
