//! The results as JUnit XML, the form that most CI systems read: one suite per kernel.

use std::fmt::Write as _;

use super::outcome::{Count, Outcome};
use super::transcript::{TestRun, Verdict};

/// The whole document.
pub(crate) fn document(outcomes: &[Outcome]) -> String {
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let all = Count::of_all(outcomes);
    open(&mut xml, 0, "testsuites", &[("name", "lockwatch vm")], all);
    for outcome in outcomes {
        let release = outcome.release.as_deref().unwrap_or("unavailable");
        let name = format!("{} ({release})", outcome.kernel.name);
        let time = format!("{:.3}", outcome.total.as_secs_f64());
        let attributes = [("name", name.as_str()), ("time", time.as_str())];
        open(&mut xml, 2, "testsuite", &attributes, outcome.count());
        if let Some(trouble) = &outcome.trouble {
            let machine = TestRun {
                target: "vm".to_owned(),
                name: "machine".to_owned(),
                took: outcome.total,
                verdict: Verdict::Failed(trouble.clone()),
                output: String::new(),
                first_try: None,
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
        " tests=\"{tests}\" failures=\"{}\" skipped=\"{}\">",
        count.failed, count.skipped
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
        let why = run.first_try.as_ref()?;
        Some(format!("\n      <{element} message=\"{}\"/>", escaped(why)))
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
                target: "live".to_owned(),
                name: "one".to_owned(),
                took: Duration::from_secs(1),
                verdict: Verdict::Failed("a < \"b\"".to_owned()),
                output: "\u{1b}[1mred & \n".to_owned(),
                first_try: None,
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
}
