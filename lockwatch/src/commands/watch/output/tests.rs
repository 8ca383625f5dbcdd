//! What `watch` prints, letter for letter.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use super::*;
use crate::{
    graph::{Change, WaitGraph},
    report::{example, over_time},
    stream::{AsleepIn, Event, Times},
    task::{Nanos, StuckClass},
};

const SEC: u64 = 1_000_000_000;

/// What was written, kept.
#[derive(Clone, Default)]
struct Page(Rc<RefCell<Vec<u8>>>);

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn at() -> jiff::Timestamp {
    jiff::Timestamp::UNIX_EPOCH
}

/// A stall as it stands, with and without a survey, and as it ends.
fn printed(format: Format) -> String {
    let page = Page::default();
    let style = text::Style {
        width: 100,
        color: false,
    };
    let mut output = Output::new(Box::new(page.clone()), format, style);
    let survey = Arc::new(example::write_held_directory());
    let report = example::report(&survey, SEC);
    let lock = &survey.locks[0];
    let waits: Vec<Wait> = lock
        .waiters
        .iter()
        .map(|waiter| Wait {
            task: waiter.task.clone(),
            lock: lock.address,
            kind: lock.kind,
            mode: waiter.mode,
            since_ns: u64::from(waiter.position) * 1_000_000,
        })
        .collect();
    let mut graph = WaitGraph::new(Nanos(SEC));
    for wait in &waits {
        graph.apply(&Event::WaitBegin(wait.clone()));
    }
    graph.advance(2 * SEC);
    let now = Now {
        at: at(),
        ns: 2 * SEC,
    };
    let queue = graph.waits_for(lock.address);
    output
        .stall(graph.stalls()[0], None, &queue, &[], Reason::Crossed, now)
        .unwrap();

    let holder = HolderTimes {
        task: lock.holders[0].task.clone(),
        times: Times {
            from_ns: 2 * SEC,
            running: Nanos(80_000_000),
            runnable: Nanos(20_000_000),
            asleep: Nanos(2 * SEC),
            switches: 12,
            ..Times::default()
        },
        sleeps: vec![
            AsleepIn {
                class: StuckClass::Fuse,
                function: Some("request_wait_answer".to_owned()),
                time: Nanos(1_900_000_000),
            },
            AsleepIn {
                class: StuckClass::Unknown,
                function: None,
                time: Nanos(100_000_000),
            },
        ],
    };
    graph.reconcile_survey(&survey);
    let now = Now {
        at: at(),
        ns: 4 * SEC,
    };
    let queue = graph.waits_for(lock.address);
    output
        .stall(
            graph.stalls()[0],
            Some(&report),
            &queue,
            std::slice::from_ref(&holder),
            Reason::Stands,
            now,
        )
        .unwrap();

    for wait in waits {
        graph.apply(&Event::WaitEnd {
            wait,
            at_ns: 5 * SEC,
            acquired: true,
        });
    }
    for change in graph.advance(5 * SEC) {
        if let Change::Ended(stall) = change {
            output
                .ended(&stall, std::slice::from_ref(&holder), at())
                .unwrap();
        }
    }
    let text = page.0.borrow().clone();
    String::from_utf8(text).unwrap()
}

#[test]
fn text_tells_a_stall_from_begin_to_end() {
    insta::assert_snapshot!(printed(Format::Text));
}

#[test]
fn json_is_one_line_for_each_event() {
    let lines = printed(Format::Json);
    let events: Vec<serde_json::Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let kinds: Vec<&str> = events
        .iter()
        .filter_map(|event| event["event"].as_str())
        .collect();
    assert_eq!(kinds, ["stall", "stall", "stall_ended"]);
    assert!(events[0]["lock"].is_null() && events[0]["unsurveyed"].is_object());
    let sleeps = &events[1]["holders"][0]["sleeps"];
    assert_eq!(sleeps[0]["function"], "request_wait_answer");
    assert_eq!(sleeps[0]["class"], "fuse");
    assert_eq!(sleeps[1]["ns"], 100_000_000);
    assert!(sleeps[1].get("function").is_none());
    assert!(events[1]["lock"].is_object() && events[1]["unsurveyed"].is_null());
    assert_eq!(events[2]["length_ns"], 5 * SEC - 1_000_000);
    assert_eq!(events[2]["name"], events[1]["lock"]["name"]);
}

/// What an output writes in this format.
fn page(format: Format, write: impl FnOnce(&mut Output)) -> String {
    let page = Page::default();
    let style = text::Style {
        width: 100,
        color: false,
    };
    write(&mut Output::new(Box::new(page.clone()), format, style));
    String::from_utf8(page.0.borrow().clone()).unwrap()
}

#[test]
fn a_finding_has_its_own_stacks_and_no_others() {
    let survey = example::hung_without_locks();
    let report = example::report(&survey, SEC);
    let mut findings = over_time::Findings::default();
    let (due, _) = findings.take(&survey, &report, |_| true, survey.taken_at_ns);
    assert!(due.len() > 1, "{due:#?}");
    for due in &due {
        let now = Now {
            at: at(),
            ns: survey.taken_at_ns,
        };
        let line = page(Format::Json, |output| {
            output.finding(due, &report, now).unwrap();
        });
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        let tasks = line["hung"]["tasks"].as_array().unwrap();
        let of_line: Vec<_> = tasks
            .iter()
            .map(|task| &line["stacks"][task["stack"].as_u64().unwrap() as usize])
            .collect();
        let hung = report.hung_of(due.finding).unwrap();
        let of_report: Vec<_> = hung
            .tasks
            .iter()
            .map(|task| &report.stacks[task.stack.unwrap() as usize])
            .collect();
        assert_eq!(
            serde_json::to_value(&of_line).unwrap(),
            serde_json::to_value(&of_report).unwrap()
        );
        let distinct: std::collections::BTreeSet<_> = of_report.into_iter().collect();
        assert_eq!(line["stacks"].as_array().unwrap().len(), distinct.len());
        assert!(distinct.len() < report.stacks.len());
    }
}

#[test]
fn what_is_watched_for_is_told_with_its_thresholds() {
    let thresholds = Thresholds {
        hard_lockup: None,
        ..Thresholds::of_waits(Nanos(SEC))
    };
    assert_eq!(
        super::super::words::of_hangs(thresholds),
        "hung-task from 2m00s, soft-lockup from 20s, hard-lockup off"
    );
    let line = page(Format::Json, |output| {
        output.watching(thresholds, &[], &[]).unwrap();
    });
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["threshold_ns"], SEC);
    assert_eq!(line["hung_task_ns"], 120 * SEC);
    assert_eq!(line["soft_lockup_ns"], 20 * SEC);
    assert!(line.get("hard_lockup_ns").is_none());
}
