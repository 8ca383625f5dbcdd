//! What runs on which kernel, from the results of the machines.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::grid::Grid;
use crate::verified::{Cell, Loaded, Programs, Table};
use crate::vm::results::{KernelResult, Results, TestResult, Word};

const PASSED: &str = "✓";
const LEFT_OUT: &str = "–";
const FAILED: &str = "✗";

/// Test targets whose tests are features by themselves: their names are sentences.
const SINGLY: [(&str, &str); 3] = [
    ("live_diagnose", "`diagnose`"),
    ("live_watch", "`watch`"),
    ("live_holds", "hold tracking"),
];
/// Others are one feature together.
const TOGETHER: [(&str, &str); 20] = [
    ("live_deadlock", "deadlocks, and the incident at full size"),
    ("live_hung", "hanging tasks, by what they wait for"),
    (
        "live_symbols",
        "symbols in memory are those that the kernel lists",
    ),
    (
        "live_raw",
        "raw tracepoints do where typed ones are refused",
    ),
    ("live_holds_many", "many holds of one task"),
    ("live_daemon", "who serves FUSE"),
    ("live_counts", "every wait and hold is counted, once"),
    ("live_wanted", "only what is asked for is counted"),
    ("live_recent_holds", "who had a lock before it stalled"),
    ("live_record", "recordings"),
    ("live_beats", "samples of every CPU, for lockups"),
    ("live_hang_safe", "nothing that can hang is touched"),
    ("live_refusals", "refusals and errors say what is wrong"),
    ("vm_hung", "an NFS server that does not answer"),
    (
        "vm_second_opinion",
        "what the kernel's own detectors say, beside a finding",
    ),
    ("live_lockup", "CPUs that lock up, and tasks that hang"),
    (
        "vm_lockup",
        "CPUs without interrupts; what the kernel's own generator makes",
    ),
    ("live_healthy", "healthy load is no lockup and no hang"),
    (
        "vm_healthy",
        "CPUs that go and come, and a machine that stands still",
    ),
    (
        "vm",
        "each program needs at most 200,000 verified instructions",
    ),
];

/// Each live test, or group of tests, as a row.
pub(crate) fn features(results: &Results) -> Grid {
    let mut rows: BTreeMap<(usize, String), Vec<Option<Word>>> = BTreeMap::new();
    let count = results.kernels.len();
    for (number, kernel) in results.kernels.iter().enumerate() {
        for test in &kernel.tests {
            let words = rows.entry(row(test)).or_insert_with(|| vec![None; count]);
            let sum = words[number].map_or(test.verdict, |word| together(word, test.verdict));
            words[number] = Some(sum);
        }
    }
    let cell = |word: Option<Word>| match word {
        Some(Word::Passed) => PASSED,
        Some(Word::Skipped) => LEFT_OUT,
        Some(Word::Failed) | None => FAILED,
    };
    grid(
        "live test",
        results,
        rows.into_iter()
            .map(|((_, row), words)| {
                let cells = words.into_iter().map(|word| cell(word).to_owned());
                (row, cells.collect())
            })
            .collect(),
    )
}

/// A failure is one of the whole group; what was left out of it is told among the limits.
fn together(one: Word, other: Word) -> Word {
    match (one, other) {
        (Word::Failed, _) | (_, Word::Failed) => Word::Failed,
        (Word::Passed, _) | (_, Word::Passed) => Word::Passed,
        (Word::Skipped, Word::Skipped) => Word::Skipped,
    }
}

/// Where a test belongs in the table.
fn row(test: &TestResult) -> (usize, String) {
    let (target, name) = test.name.split_once("::").unwrap_or(("", &test.name));
    let place = |titles: &[(&str, &str)]| titles.iter().position(|(known, _)| *known == target);
    if let Some(number) = place(&TOGETHER) {
        return (SINGLY.len() + 1 + number, TOGETHER[number].1.to_owned());
    }
    let number = place(&SINGLY).unwrap_or(SINGLY.len());
    let title = SINGLY.get(number).map_or(target, |(_, title)| title);
    (number, format!("{title}: {}", name.replace('_', " ")))
}

/// How the plan of `lockwatch check` attaches on each kernel.
pub(crate) fn mechanisms(results: &Results) -> Grid {
    /// A row, and the purposes of hooks that belong to it.
    const ROWS: [(&str, &[&str]); 5] = [
        ("a wait begins", &["wait_begin"]),
        ("a wait ends", &["wait_end"]),
        ("holders of rwsems", &["acquire", "release", "downgrade"]),
        (
            "holders of mmap_lock only",
            &["mmap_start", "mmap_acquired", "mmap_released"],
        ),
        ("time of holders", &["holder_switch", "holder_wakeup"]),
    ];
    let mut rows: Vec<(String, Vec<String>)> = ROWS
        .iter()
        .map(|(row, purposes)| {
            let cells = results.kernels.iter().map(|kernel| {
                let plan = plan(kernel);
                joined(hooks(plan).filter_map(|hook| {
                    let purpose = hook["purpose"]["kind"].as_str()?;
                    purposes
                        .contains(&purpose)
                        .then(|| hook["mechanism"].as_str())?
                }))
            });
            ((*row).to_owned(), cells.collect())
        })
        .collect();
    let state = results
        .kernels
        .iter()
        .map(|kernel| joined(plan(kernel)["state"].as_str().into_iter()));
    rows.push(("state of tasks".to_owned(), state.collect()));
    grid("hook", results, rows)
}

fn plan(kernel: &KernelResult) -> &Value {
    kernel
        .check
        .as_ref()
        .map_or(&Value::Null, |check| &check["plan"])
}

fn hooks(plan: &Value) -> impl Iterator<Item = &Value> {
    plan["hooks"].as_array().into_iter().flatten()
}

fn joined<'w>(words: impl Iterator<Item = &'w str>) -> String {
    let words: BTreeSet<&str> = words.collect();
    match words.len() {
        0 => LEFT_OUT.to_owned(),
        _ => words.into_iter().collect::<Vec<_>>().join(", "),
    }
}

/// What is left out and what is missing, with the kernels it concerns.
pub(crate) fn limits(results: &Results) -> String {
    let mut kernels_of: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for kernel in &results.kernels {
        let mut add = |line: String| {
            let kernels = kernels_of.entry(line).or_default();
            if kernels.last() != Some(&kernel.kernel.as_str()) {
                kernels.push(&kernel.kernel);
            }
        };
        let skipped = |test: &&TestResult| test.verdict == Word::Skipped;
        for test in kernel.tests.iter().filter(skipped) {
            let (_, row) = row(test);
            add(format!(
                "{row}: {}",
                test.why.as_deref().unwrap_or_default()
            ));
        }
        for gap in plan(kernel)["gaps"].as_array().into_iter().flatten() {
            let part = |key: &str| gap[key].as_str().unwrap_or_default();
            add(format!("no {}: {}", part("missing"), part("why")));
        }
    }
    if kernels_of.is_empty() {
        return "Nothing was left out on any kernel.\n".to_owned();
    }
    kernels_of
        .iter()
        .map(|(line, kernels)| format!("- {}: {line}\n", kernels.join(", ")))
        .collect()
}

/// Versions, times, and what the verifier said.
pub(crate) fn figures(results: &Results, programs: &Programs) -> Vec<Grid> {
    let nothing = Loaded::default();
    let loaded: Vec<(&str, &Loaded)> = results
        .kernels
        .iter()
        .map(|kernel| {
            let loaded = kernel.loaded.as_ref().unwrap_or(&nothing);
            (kernel.kernel.as_str(), loaded)
        })
        .collect();
    let table = Table::new(programs, &loaded);
    let row = |name: &str, cell: &dyn Fn(usize, &KernelResult) -> String| {
        let cells = results.kernels.iter().enumerate();
        let cells = cells.map(|(number, kernel)| cell(number, kernel));
        (name.to_owned(), cells.collect::<Vec<String>>())
    };
    let count = |kernel: &KernelResult, word: Word| {
        let tests = kernel.tests.iter().filter(|test| test.verdict == word);
        tests.count().to_string()
    };
    let machines = vec![
        row("version", &|_, kernel| {
            kernel
                .release
                .clone()
                .unwrap_or_else(|| LEFT_OUT.to_owned())
        }),
        row("boot, s", &|_, kernel| {
            kernel
                .boot_s
                .map_or_else(|| LEFT_OUT.to_owned(), |boot| format!("{boot:.0}"))
        }),
        row("all tests, s", &|_, kernel| format!("{:.0}", kernel.test_s)),
        row("passed", &|_, kernel| count(kernel, Word::Passed)),
        row("left out", &|_, kernel| count(kernel, Word::Skipped)),
        row("maps of `watch`, KiB", &|number, _| {
            (table.map_bytes[number] >> 10).to_string()
        }),
    ];
    let verified = table.rows.iter().map(|row| {
        let cells = row.cells.iter().map(Cell::instructions);
        (
            format!("{} ({})", row.program, row.objects),
            cells.collect(),
        )
    });
    vec![
        grid("", results, machines),
        grid("verified instructions", results, verified.collect()),
    ]
}

fn grid(corner: &str, results: &Results, rows: Vec<(String, Vec<String>)>) -> Grid {
    let columns = results.kernels.iter().map(|kernel| kernel.kernel.clone());
    Grid {
        corner: corner.to_owned(),
        columns: columns.collect(),
        rows,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn results() -> Results {
        let kernel = |name: &str, word: &str, mechanism: &str| {
            json!({
                "kernel": name, "release": null, "boot_s": 3.5, "test_s": 60.0, "trouble": null,
                "tests": [
                    {"name": "live_diagnose::a_lock", "verdict": word, "why": "it has none", "took_s": 1.0},
                    {"name": "live_new::one", "verdict": "passed", "why": null, "took_s": 1.0},
                    {"name": "live_refusals::one", "verdict": "passed", "why": null, "took_s": 1.0},
                    {"name": "live_refusals::two", "verdict": "failed", "why": "no", "took_s": 1.0},
                    {"name": "live_hang_safe::one", "verdict": "passed", "why": null, "took_s": 1.0},
                    {"name": "live_hang_safe::two", "verdict": "skipped", "why": "no", "took_s": 1.0},
                ],
                "loaded": null,
                "check": {"plan": {
                    "hooks": [{"purpose": {"kind": "wait_begin"}, "mechanism": mechanism, "target": "x"}],
                    "state": "hash",
                    "gaps": [{"subject": "holds", "missing": "exact holders", "why": "none is allowed"}],
                }},
            })
        };
        let kernels = [
            kernel("5.10", "skipped", "kprobe"),
            kernel("6.1", "passed", "tp_btf"),
        ];
        serde_json::from_value(json!({ "kernels": kernels })).unwrap()
    }

    #[test]
    fn tests_are_rows_and_a_group_fails_with_one_of_its_tests() {
        let grid = features(&results());
        assert_eq!(grid.columns, ["5.10", "6.1"]);
        let rows: Vec<(&str, String)> = grid
            .rows
            .iter()
            .map(|(row, cells)| (row.as_str(), cells.concat()))
            .collect();
        assert_eq!(
            rows,
            [
                ("`diagnose`: a lock", "–✓".to_owned()),
                ("live_new: one", "✓✓".to_owned()),
                ("nothing that can hang is touched", "✓✓".to_owned()),
                ("refusals and errors say what is wrong", "✗✗".to_owned()),
            ]
        );
    }

    #[test]
    fn a_flaky_pass_is_a_pass() {
        let mut flaky = results();
        for test in flaky
            .kernels
            .iter_mut()
            .flat_map(|kernel| &mut kernel.tests)
        {
            if test.verdict == Word::Passed {
                test.first_try = Some("it took 12 s".to_owned());
            }
        }
        assert_eq!(features(&flaky), features(&results()));
        assert_eq!(limits(&flaky), limits(&results()));
    }

    #[test]
    fn hooks_are_told_by_their_purpose() {
        let grid = mechanisms(&results());
        assert_eq!(grid.rows[0].1, ["kprobe", "tp_btf"]);
        assert_eq!(grid.rows[1].1, ["–", "–"]);
        assert_eq!(grid.rows[5].1, ["hash", "hash"]);
    }

    #[test]
    fn limits_name_their_kernels() {
        assert_eq!(
            limits(&results()),
            "- 5.10: `diagnose`: a lock: it has none\n- 5.10, 6.1: no exact holders: none is allowed\n- 5.10, 6.1: nothing that can hang is touched: no\n"
        );
    }
}
