//! The text as a whole.

use std::time::Duration;

use super::*;
use crate::{
    export::{Cost, Hang, Root, Stalls},
    latency::{Caller, CountsLost, Measure, SeriesKey, Snapshot},
    lock::{LockClass, LockKind, LockMode},
    task::Nanos,
};

fn key(class: LockClass, caller: Caller) -> SeriesKey {
    SeriesKey {
        measure: Measure::Wait,
        class,
        kind: LockKind::PercpuRwsem,
        mode: LockMode::Read,
        caller,
    }
}

/// A bit of everything, odd names too.
fn state() -> State {
    let mut latency = Snapshot {
        lost: CountsLost { waits: 3, holds: 0 },
        ..Snapshot::default()
    };
    let odd = LockClass::Symbol("a\"lock\\ with\nall".to_owned());
    let caller = Caller::Function("do_mmap".to_owned());
    for (key, time) in [
        (key(odd, Caller::Short), 1_500),
        (key(LockClass::MmapLock, caller.clone()), 250_000_000),
        (key(LockClass::MmapLock, caller), 4_000_000_000_000),
    ] {
        latency.series.entry(key).or_default().record(Nanos(time));
    }
    let held = SeriesKey {
        measure: Measure::Hold,
        ..key(LockClass::Unknown, Caller::Unknown)
    };
    latency.series.entry(held).or_default().record(Nanos(7));
    State {
        at: "2026-05-01T10:00:07Z".parse().expect("a time"),
        since: "2026-05-01T10:00:00.25Z".parse().expect("a time"),
        latency,
        stalls: Stalls {
            threshold: Nanos(100_000_000),
            total: 5,
            standing: 1,
            longest_standing: Nanos(1_500_000_000),
            longest: Nanos(60_000_000_000),
        },
        blocked_tasks: 12,
        roots: vec![Root {
            class: LockClass::MmapLock,
            comm: "a \"comm\"\\\n\u{fffd}".to_owned(),
            stuck: "block-io".to_owned(),
            blocked_tasks: 12,
        }],
        hangs: vec![
            Hang {
                detector: "hung-task",
                total: 2,
                standing: 1,
            },
            Hang {
                detector: "soft-lockup",
                total: 0,
                standing: 0,
            },
        ],
        lost: vec![("events", 7), ("surveys", 0)],
        cost: Cost {
            cpu: Duration::from_millis(1250),
            resident_bytes: 12_000_000,
            map_bytes: 9_000_000,
        },
    }
}

#[test]
fn open_metrics() {
    insta::assert_snapshot!(
        Exposition::new(10, "6.12.0-1-amd64").text(state(), Format::OpenMetrics)
    );
}

#[test]
fn classic() {
    insta::assert_snapshot!(Exposition::new(10, "6.12.0-1-amd64").text(state(), Format::Classic));
}

#[test]
fn of_nothing_too() {
    let text = Exposition::new(10, "6.12.0-1-amd64").text(State::default(), Format::OpenMetrics);
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert!(text.contains("\nlockwatch_stalls_total 0\n"), "{text}");
}

/// Each metric of the catalogue is written, with its header, and none that is not in it.
#[test]
fn the_catalogue_is_what_is_written() {
    let text = Exposition::new(10, "6.12.0-1-amd64").text(state(), Format::Classic);
    let types: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| line.split_once(' '))
        .collect();
    let expected: Vec<(String, &str)> = ALL
        .iter()
        .map(|metric| (metric.name(), metric.kind()))
        .map(|(name, kind)| (name, if kind == "info" { "gauge" } else { kind }))
        .collect();
    let expected: Vec<(&str, &str)> = expected
        .iter()
        .map(|(name, kind)| (name.as_str(), *kind))
        .collect();
    assert_eq!(types, expected);
}

/// The table of docs/prometheus.md is the catalogue.
#[test]
fn the_docs_tell_of_every_metric() {
    let docs = include_str!("../../../../docs/prometheus.md");
    let written: Vec<&str> = docs
        .lines()
        .filter(|line| line.starts_with("| `lockwatch_"))
        .collect();
    let expected: Vec<String> = ALL
        .iter()
        .map(|metric| {
            let labels: Vec<String> = metric
                .labels
                .iter()
                .map(|label| format!("`{label}`"))
                .collect();
            format!(
                "| `{}` | {} | {} | {} |",
                metric.name(),
                metric.kind(),
                labels.join(", "),
                metric.help
            )
        })
        .collect();
    assert_eq!(
        written,
        expected,
        "the table should be\n{}",
        expected.join("\n")
    );
}

/// Each line of its example is one that we could have written.
#[test]
fn the_docs_show_metrics_that_there_are() {
    let docs = include_str!("../../../../docs/prometheus.md");
    let lines = docs.lines().filter_map(|line| line.strip_prefix("    "));
    let mut count = 0;
    for line in lines.filter(|line| line.starts_with("lockwatch_")) {
        // Questions look alike, but have no value at their end.
        let Some((series, value)) = line.rsplit_once(' ') else {
            continue;
        };
        if value.parse::<f64>().is_err() || series.contains(' ') {
            continue;
        }
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let metric = ALL.iter().find(|metric| {
            let rest = name.strip_prefix(&metric.name());
            rest.is_some_and(|rest| ["", "_sum", "_count", "_bucket"].contains(&rest))
        });
        let metric = metric.unwrap_or_else(|| panic!("there is no {name}"));
        let names: Vec<&str> = labels
            .split(['{', ',', '}'])
            .filter_map(|label| Some(label.split_once('=')?.0))
            .filter(|name| *name != "le")
            .collect();
        assert_eq!(names, metric.labels, "{line}");
        count += 1;
    }
    assert!(count > 10, "{count} lines");
}
