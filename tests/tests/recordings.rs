//! Recordings of real stalls (tests/recordings/), replayed: what they say is held against
//! the truth that the stall lab has written beside them.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use lockwatch::{
    detect::Detectors,
    graph::{Input, WaitGraph},
    recording::{Chosen, Reader, Record, Replayed},
    report::json,
    stream::{Scan, Wait, WaitId},
    survey::Survey,
};
use lockwatch_tests::{
    trial::{Report, Span, Verdict},
    truth::{Event, Ready},
};

/// Each recording with its name, and the truth.
fn recordings() -> Vec<(String, PathBuf, Ready)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recordings");
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "lwr") {
            let truth = fs::read_to_string(path.with_extension("truth.json")).unwrap();
            let Event::Ready(truth) = serde_json::from_str(&truth).unwrap() else {
                panic!("{} has no truth", path.display());
            };
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            found.push((name, path, *truth));
        }
    }
    assert!(found.len() >= 4, "{found:?}");
    found
}

fn replayed(path: &Path, choice: Chosen) -> Replayed {
    Replayed::from_reader(Reader::open(path).unwrap(), choice, &Detectors::default())
}

fn verdict(replayed: &Replayed, truth: &Ready) -> Verdict {
    let (_, survey) = replayed.chosen.as_ref().unwrap();
    let mut text = Vec::new();
    json::write_report(
        &mut text,
        &replayed.report_of(survey, &Detectors::default()),
    )
    .unwrap();
    let report: Report = serde_json::from_slice(&text).unwrap();
    let span = Span {
        begun_ns: survey.taken_at_ns - survey.duration.0,
        ended_ns: survey.taken_at_ns,
    };
    Verdict::on(&report, truth, span)
}

fn tids(waits: impl Iterator<Item = u32>) -> BTreeSet<u32> {
    waits.collect()
}

fn waiters(truth: &Ready) -> BTreeSet<u32> {
    tids(truth.waiters.iter().map(|one| one.tid.0.unsigned_abs()))
}

#[test]
fn a_replayed_survey_names_the_holders_of_the_stall() {
    for (name, path, truth) in recordings() {
        let replayed = replayed(&path, Chosen::Worst);
        assert_eq!(replayed.damage, None, "{name}");
        assert!(replayed.has_stall(), "{name}");
        let verdict = verdict(&replayed, &truth);
        assert!(verdict.names_exactly_the_holders(), "{name}: {verdict:?}");
    }
}

#[test]
fn a_replayed_stall_has_its_tasks_its_holder_and_its_exact_length() {
    for (name, path, truth) in recordings() {
        let replayed = replayed(&path, Chosen::Worst);
        let is_whole = !name.ends_with("-once");
        let stall = if is_whole {
            assert_eq!((replayed.ended_count, replayed.standing().len()), (1, 0));
            replayed.ended[0].stall.clone()
        } else {
            replayed.standing()[0].clone()
        };
        let blocked = tids(stall.blocked.keys().map(|key| key.tid.0));
        assert_eq!(blocked, waiters(&truth), "{name}");
        let holders = tids(stall.holders.iter().map(|span| span.holder.task.key.tid.0));
        let holder = truth.holders[0].tid.0.unsigned_abs();
        assert!(holders.contains(&holder), "{name}: {holders:?}");
        if is_whole {
            assert!(stall.is_length_exact(), "{name}");
            // From the first waiter on until the lab let go.
            let queued_ns = truth.waiters.iter().map(|one| one.queued_ns).min().unwrap();
            let least = (truth.ends_at_ns - queued_ns) as f64 / 1e9;
            let seconds = stall.length().0 as f64 / 1e9;
            let fits = (least - 0.1..least + 0.5).contains(&seconds);
            assert!(fits, "{name}: {seconds}, not {least}");
        }
    }
}

#[test]
fn the_graph_is_what_the_last_survey_and_the_last_reading_say() {
    let ids = |waits: &mut dyn Iterator<Item = &Wait>| -> BTreeSet<String> {
        let ids: Vec<WaitId> = waits.map(Wait::id).collect();
        ids.iter().map(|id| format!("{id:?}")).collect()
    };
    for (name, path, truth) in recordings() {
        let mut reader = Reader::open(&path).unwrap();
        let mut graph = WaitGraph::new(reader.header().threshold_ns);
        let mut scan = Scan::default();
        let mut surveys: Vec<Arc<Survey>> = Vec::new();
        for record in reader.by_ref() {
            let Record::Input(input) = record else {
                continue;
            };
            match &input {
                Input::Scan(read) => scan = read.clone(),
                Input::Survey(survey) => surveys.push(Arc::clone(survey)),
                _ => {}
            }
            let survey = match &input {
                Input::Survey(survey) => Some(Arc::clone(survey)),
                _ => None,
            };
            graph.take(input);
            // While the stall stands, the stream and the surveys see the same queue.
            for lock in survey.iter().flat_map(|survey| &survey.locks) {
                let queued = tids(lock.waiters.iter().map(|waiter| waiter.task.key.tid.0));
                let known = graph.waits_for(lock.address);
                let known = tids(known.iter().map(|wait| wait.task.key.tid.0));
                if queued == waiters(&truth) {
                    assert_eq!(known, queued, "{name}");
                }
            }
        }
        assert!(!surveys.is_empty(), "{name}");
        let left = ids(&mut graph.waits());
        assert_eq!(left, ids(&mut scan.waits.iter()), "{name}");
    }
}
