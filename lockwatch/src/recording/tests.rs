//! What is written is read back, whatever happens to the file in between; and what is
//! played back is what was.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::{Read as _, Write as _},
    sync::Arc,
};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use proptest::prelude::*;

use super::*;
use crate::{
    detect::Detectors,
    graph::{Change, WaitGraph},
    lock::{LockAddr, LockKind, LockMode},
    report::example,
    stream::{Event, Scan, Wait},
    survey::Survey,
    task::{Nanos, TaskKey, TaskName, Tgid, Tid},
};

const SEC: u64 = 1_000_000_000;

fn header() -> Header {
    Header {
        recording: CONTRACT.to_owned(),
        lockwatch: "0.0.0".to_owned(),
        host: example::host(),
        began_at: "2026-03-01T03:12:00Z".parse().unwrap(),
        began_ns: 90_000 * SEC - 10 * SEC,
        threshold_ns: Nanos(SEC),
        thresholds: None,
        sources: vec!["surveys".to_owned()],
        gaps: Vec::new(),
    }
}

fn written(records: &[Record]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), &header()).unwrap();
    for record in records {
        writer.write(record).unwrap();
    }
    writer.finish(90_010 * SEC, Some(7)).unwrap()
}

fn read(file: &[u8]) -> (Vec<Record>, Option<Damage>) {
    let mut reader = Reader::new(file).unwrap();
    let records = reader.by_ref().collect();
    (records, reader.damage().cloned())
}

fn text(file: &[u8]) -> String {
    let mut text = String::new();
    GzDecoder::new(file).read_to_string(&mut text).unwrap();
    text
}

fn packed(text: &str) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(text.as_bytes()).unwrap();
    out.finish().unwrap()
}

fn wait(tid: u32, lock: u64, since_ns: u64) -> Wait {
    Wait {
        task: TaskName {
            key: TaskKey {
                tid: Tid(tid),
                start_ns: 5,
            },
            tgid: Tgid(tid),
            comm: format!("t\u{1b}\"{tid}").into(),
        },
        lock: LockAddr(0xffff_8880_0000_0000 + lock),
        kind: LockKind::Rwsem,
        mode: LockMode::Read,
        since_ns,
    }
}

/// What a session does with a survey that shows the only waits.
fn surveyed(survey: &Arc<Survey>) -> Vec<Record> {
    let scan = crate::stream::PolledWaits::default().read(survey);
    let at_ns = survey.taken_at_ns;
    [
        Input::Scan(scan),
        Input::Clock(at_ns),
        Input::Survey(Arc::clone(survey)),
    ]
    .map(Record::Input)
    .to_vec()
}

/// All that can be asked of a graph, in one text.
fn described(graph: &WaitGraph) -> String {
    let mut waits: Vec<String> = graph.waits().map(|wait| format!("{wait:?}")).collect();
    waits.sort();
    let mut out = waits.join("\n");
    for stall in graph.stalls() {
        describe(&mut out, stall);
    }
    out
}

fn describe(out: &mut String, stall: &crate::graph::Stall) {
    let blocked: BTreeSet<String> = stall.blocked.values().map(|w| format!("{w:?}")).collect();
    let lock = stall.facts.as_ref().map(crate::graph::Facts::lock);
    write!(
        out,
        "\n{} {} {} {} {} {blocked:?} {:?} {lock:?}",
        stall.id,
        stall.lock,
        stall.began_ns,
        stall.length().0,
        stall.is_length_exact(),
        stall.holders,
    )
    .unwrap();
}

/// Feeds a graph; what it is in the end, and the stalls that ended on the way.
fn fed(inputs: impl Iterator<Item = Input>) -> String {
    let mut graph = WaitGraph::new(Nanos(SEC));
    let mut out = String::new();
    for input in inputs {
        for change in graph.take(input) {
            match change {
                Change::Began(id) => write!(out, "\nbegan {id}").unwrap(),
                Change::Ended(stall) => describe(&mut out, &stall),
            }
        }
    }
    out + &described(&graph)
}

fn inputs(records: Vec<Record>) -> impl Iterator<Item = Input> {
    records.into_iter().filter_map(|record| match record {
        Record::Input(input) => Some(input),
        _ => None,
    })
}

/// Anything that the graph may take in, in any order.
fn any_input() -> impl Strategy<Value = Input> {
    let any_wait = || {
        (1..6_u32, 0..3_u64, 0..40_u64)
            .prop_map(|(tid, lock, at)| wait(tid, lock, 80_000 * SEC + at * SEC / 4))
    };
    let survey = (0..40_u64, 0..3_u64).prop_map(|(at, lock)| {
        let mut survey = example::write_held_directory();
        survey.taken_at_ns = 80_000 * SEC + at * SEC / 4;
        survey.locks[0].address = LockAddr(0xffff_8880_0000_0000 + lock);
        Input::Survey(Arc::new(survey))
    });
    prop_oneof![
        3 => any_wait().prop_map(|wait| Input::Event(Event::WaitBegin(wait))),
        3 => (any_wait(), 0..12_u64, any::<bool>()).prop_map(|(wait, after, acquired)| {
            let at_ns = wait.since_ns + after * SEC / 4;
            Input::Event(Event::WaitEnd { wait, at_ns, acquired })
        }),
        4 => (0..40_u64, prop::collection::vec(any_wait(), 0..5), any::<bool>()).prop_map(
            |(at, waits, complete)| {
                Input::Scan(Scan { at_ns: 80_000 * SEC + at * SEC / 4, waits, complete })
            }
        ),
        1 => any_wait().prop_map(Input::Refuted),
        1 => survey,
        3 => (0..40_u64).prop_map(|at| Input::Clock(80_000 * SEC + at * SEC / 4)),
    ]
}

/// Waits of one scan are those of a map: one for each task and lock. In which order they
/// are does not matter.
fn settled(input: Input) -> Input {
    match input {
        Input::Scan(mut scan) => {
            scan.waits
                .sort_by_key(|wait| (wait.task.key, wait.lock, wait.since_ns));
            scan.waits.dedup_by_key(|wait| (wait.task.key, wait.lock));
            Input::Scan(scan)
        }
        other => other,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_graph_fed_by_a_recording_is_the_one_fed_live(
        live in prop::collection::vec(any_input().prop_map(settled), 0..60)
    ) {
        let records: Vec<Record> = live.iter().cloned().map(Record::Input).collect();
        let (read, damage) = read(&written(&records));
        prop_assert_eq!(damage, None);
        prop_assert_eq!(fed(inputs(read)), fed(live.into_iter()));
    }

    #[test]
    fn a_recording_cut_anywhere_gives_what_is_before_the_cut(
        live in prop::collection::vec(any_input().prop_map(settled), 0..30),
        cut in 0.0..1.0_f64,
    ) {
        let mut writer = Writer::new(Vec::new(), &header()).unwrap();
        for input in &live {
            writer.write(&Record::Input(input.clone())).unwrap();
            // As if each came a second after the one before.
            writer.flush().unwrap();
        }
        let file = writer.finish(0, None).unwrap();
        let cut = (file.len() as f64 * cut) as usize;
        match Reader::new(&file[..cut]) {
            Err(error) => prop_assert!(matches!(error, OpenError::Empty(_)), "{error:?}"),
            Ok(mut reader) => {
                let read: Vec<Record> = reader.by_ref().collect();
                let damage = reader.damage().cloned().expect("it is cut off");
                prop_assert_eq!(damage.records, read.len() as u64);
                let whole = live.into_iter().take(read.len());
                prop_assert_eq!(fed(inputs(read)), fed(whole));
            }
        }
    }

    #[test]
    fn a_file_of_anything_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(Reader::new(bytes.as_slice()).is_err());
        // And if it looks like gzip, or unpacks to anything at all.
        let mut gzip = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
        gzip.extend(&bytes);
        prop_assert!(Reader::new(gzip.as_slice()).is_err());
        let mut out = GzEncoder::new(Vec::new(), Compression::fast());
        out.write_all(&bytes).unwrap();
        prop_assert!(Reader::new(out.finish().unwrap().as_slice()).is_err());
    }

    #[test]
    fn flipped_bits_are_noticed(at in 0.0..1.0_f64, bit in 0..8_u8) {
        let records = surveyed(&Arc::new(example::write_held_directory()));
        let mut file = written(&records);
        let at = (file.len() as f64 * at) as usize;
        file[at] ^= 1 << bit;
        match Reader::new(file.as_slice()) {
            Err(_) => {}
            Ok(mut reader) => {
                let replayed = Replayed::from_reader(
                    Reader::new(file.as_slice()).unwrap(),
                    Chosen::Worst, &Detectors::default());
                let read: Vec<Record> = reader.by_ref().collect();
                prop_assert_eq!(replayed.damage.as_ref(), reader.damage());
                // Some bits of gzip mean nothing.
                if reader.damage().is_none() {
                    prop_assert_eq!(fed(inputs(read)), fed(inputs(records)));
                }
            }
        }
    }

    #[test]
    fn a_changed_text_is_read_or_refused_without_a_panic(
        cut in 0.0..1.0_f64,
        new in "[0-9a-z{}\\[\\]\",:]{0,12}",
        gone in 0..12_usize,
    ) {
        let text = text(&written(&surveyed(&Arc::new(example::write_held_directory()))));
        let mut bytes = text.into_bytes();
        let cut = (bytes.len() as f64 * cut) as usize;
        let end = (cut + gone).min(bytes.len());
        bytes.splice(cut..end, new.bytes());
        let file = packed(&String::from_utf8_lossy(&bytes));
        if let Ok(reader) = Reader::new(file.as_slice()) {
            let replayed = Replayed::from_reader(reader, Chosen::Worst, &Detectors::default());
            if let Some((_, survey)) = &replayed.chosen {
                replayed.report_of(survey, &Detectors::default());
            }
        }
    }
}

#[test]
fn every_example_survives_the_file() {
    for survey in [
        example::incident(),
        example::write_held_directory(),
        example::hostile_comm(),
        example::several_locks(),
        example::granted_reader(),
        example::unknown_holder(),
        example::cycle(),
    ] {
        let (records, damage) = read(&written(&surveyed(&Arc::new(survey.clone()))));
        assert_eq!(damage, None);
        let Some(Record::Input(Input::Survey(read))) = records.get(2) else {
            panic!("{records:?}");
        };
        assert_eq!(format!("{read:?}"), format!("{survey:?}"));
    }
}

#[test]
fn a_recording_is_lines_of_json_in_gzip() {
    let mut survey = example::several_locks();
    survey.locks.truncate(1);
    survey.locks[0].waiters.truncate(1);
    let mut records = surveyed(&Arc::new(survey));
    let lost = Lost {
        ends: 3,
        ..Lost::default()
    };
    records.extend([Record::Lost(lost), Record::Missing(2)]);
    insta::assert_snapshot!(text(&written(&records)));
}

#[test]
fn readings_are_told_by_what_changed() {
    let scan = |at_ns, tids: &[u32]| Scan {
        at_ns,
        waits: tids.iter().map(|&tid| wait(tid, 0, 1)).collect(),
        complete: true,
    };
    let scans = [
        scan(2, &[1, 2]),
        scan(3, &[1, 2]),
        scan(4, &[2, 3]),
        scan(5, &[]),
    ];
    let records: Vec<Record> = scans
        .iter()
        .cloned()
        .map(Input::Scan)
        .map(Record::Input)
        .collect();
    let file = written(&records);
    let (read, _) = read(&file);
    let read: Vec<Scan> = inputs(read)
        .map(|input| match input {
            Input::Scan(scan) => scan,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(read, scans);
    assert!(text(&file).contains(r#"{"scan":{"at_ns":3,"complete":true}}"#));
}

#[test]
fn what_only_a_newer_lockwatch_knows_is_left_out() {
    let text = text(&written(&surveyed(&Arc::new(example::incident()))));
    let text = text
        .replace(r#"{"clock":"#, "{\"weather\":{\"fair\":true}}\n{\"clock\":")
        .replace(r#""records":3"#, r#""records":4,"mood":1"#);
    let file = packed(&text);
    let mut reader = Reader::new(file.as_slice()).unwrap();
    assert_eq!(reader.by_ref().count(), 4);
    assert_eq!((reader.damage(), reader.unknown()), (None, 1));
}

#[test]
fn a_file_that_is_none_says_so() {
    let refused = |file: &[u8]| Reader::new(file).unwrap_err().to_string();
    assert_eq!(refused(b"PNG"), "not a lockwatch recording: no gzip file");
    assert_eq!(
        refused(&packed("{\"recording\":\"something/1\"}\n")),
        "not a lockwatch recording: its first line names another format"
    );
    assert_eq!(
        refused(&packed("hello\n")),
        "not a lockwatch recording: its first line names no recording"
    );
    assert_eq!(refused(b""), "it holds no record: the file is empty");
    assert_eq!(
        refused(&packed("{\"recording\"")),
        "it holds no record: the recording is cut off"
    );
    let newer = text(&written(&[])).replace("recording/1", "recording/2");
    assert_eq!(
        refused(&packed(&newer)),
        "it is a lockwatch.recording/2 recording, which this lockwatch (lockwatch.recording/1) \
         cannot read: use the lockwatch that made it, or a newer one"
    );
}

#[test]
fn a_record_that_is_too_long_is_not_kept_in_memory() {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    crate::report::json::write_line(&mut out, &header()).unwrap();
    let zeros = vec![b' '; 1 << 20];
    for _ in 0..64 {
        out.write_all(&zeros).unwrap();
    }
    let (records, damage) = read(&out.finish().unwrap());
    assert!(records.is_empty());
    let why = damage.unwrap().why;
    assert_eq!(why, "a record is longer than any that is written");
}

#[test]
fn records_that_are_missing_in_the_middle_are_noticed() {
    let text = text(&written(&surveyed(&Arc::new(example::incident()))));
    let without: String = text
        .split_inclusive('\n')
        .filter(|line| !line.starts_with("{\"clock\""))
        .collect();
    let (_, damage) = read(&packed(&without));
    let why = damage.unwrap().why;
    assert_eq!(why, "what was read is not what was written");
}

#[test]
fn the_worst_survey_is_reported_unless_another_is_asked_for() {
    let mut surveys = [
        example::write_held_directory(),
        example::incident(),
        example::no_stall(),
    ];
    let mut records = Vec::new();
    for (second, survey) in (0..).zip(&mut surveys) {
        survey.taken_at_ns += second * SEC;
        survey.taken_at += jiff::SignedDuration::from_secs(second.cast_signed());
        records.extend(surveyed(&Arc::new(survey.clone())));
    }
    let file = written(&records);
    let chosen = |choice| {
        let reader = Reader::new(file.as_slice()).unwrap();
        let replayed = Replayed::from_reader(reader, choice, &Detectors::default());
        replayed.chosen.map(|(number, _)| number)
    };
    assert_eq!(chosen(Chosen::Worst), Some(2));
    assert_eq!(chosen(Chosen::Number(3)), Some(3));
    assert_eq!(chosen(Chosen::Number(4)), None);
    assert_eq!(chosen(Chosen::At(surveys[0].taken_at)), Some(1));
    assert_eq!(chosen(Chosen::At(jiff::Timestamp::UNIX_EPOCH)), None);
}

#[test]
fn what_hangs_counts_if_its_detector_is_asked() {
    let lockups = example::hard_lockup();
    let hung = example::hung_without_locks();
    let detectors = |without: &[&str]| Detectors::selected(&[], without);
    for (survey, detector) in [(lockups, "hard-lockup"), (hung, "hung-task")] {
        let mut records = surveyed(&Arc::new(survey.clone()));
        let mut next = example::no_stall();
        next.taken_at_ns += SEC;
        records.extend(surveyed(&Arc::new(next)));
        let file = written(&records);
        let replayed = |detectors: &Detectors| {
            let reader = Reader::new(file.as_slice()).unwrap();
            Replayed::from_reader(reader, Chosen::Worst, detectors)
        };
        let asked = replayed(&detectors(&["soft-lockup"]));
        assert!(asked.has_stall(), "{detector}");
        assert_eq!(asked.hangs.found[0].detector, detector);
        assert_eq!(asked.chosen.as_ref().unwrap().0, 1);
        assert!(asked.report_of(&survey, &Detectors::default()).has_stall());
        let without = detectors(&[detector]);
        let unasked = replayed(&without);
        assert!(!unasked.has_stall(), "{detector}");
        assert_eq!(
            unasked.chosen.as_ref().unwrap().0,
            2,
            "the last, not the worst"
        );
        assert!(!unasked.report_of(&survey, &without).has_stall());
    }
}

#[test]
fn a_report_says_that_it_is_of_a_recording_and_what_that_lacks() {
    let mut records = surveyed(&Arc::new(example::incident()));
    records.push(Record::Missing(2));
    let file = written(&records);
    let reader = Reader::new(&file[..file.len() - 12]).unwrap();
    let replayed = Replayed::from_reader(reader, Chosen::Worst, &Detectors::default());
    let (_, survey) = replayed.chosen.as_ref().unwrap();
    let report = replayed.report_of(survey, &Detectors::default());
    assert_eq!(report.coverage.source, crate::report::Source::Recording);
    let lost = report.coverage.lost.unwrap();
    assert_eq!((lost["records"], lost["ends"]), (2, 0));
    let degraded = report.coverage.degraded.join("; ");
    assert!(degraded.contains("4 records could be read"), "{degraded}");
    assert!(degraded.contains("2 records are missing"), "{degraded}");
    assert_eq!(replayed.standing().len(), 1);
}

#[test]
fn times_that_no_run_can_have_seen_are_damage() {
    let replayed = |record: Record| {
        let file = written(&[record]);
        let reader = Reader::new(file.as_slice()).unwrap();
        let replayed = Replayed::from_reader(reader, Chosen::Worst, &Detectors::default());
        (replayed.length(), replayed.damage.map(|damage| damage.why))
    };
    let (length, why) = replayed(Record::Input(Input::Clock(u64::MAX)));
    assert_eq!(length, Nanos(0));
    assert_eq!(
        why.as_deref(),
        Some("record 1 is damaged (it is from years after the first)")
    );
    let mut survey = example::incident();
    survey.locks[0].waiters[7].wait = Nanos(u64::MAX);
    let (_, why) = replayed(Record::Input(Input::Survey(Arc::new(survey))));
    assert_eq!(
        why.as_deref(),
        Some("record 1 is damaged (a task waits in it for years)")
    );
}

#[test]
fn surveys_are_kept_only_while_a_stall_needs_them_and_never_without_bound() {
    let survey_of = |lock: u64, second: u64| {
        let mut survey = example::write_held_directory();
        survey.taken_at_ns += second * SEC;
        survey.locks.truncate(1);
        survey.locks[0].address = LockAddr(0xffff_8880_0000_0000 + lock);
        Arc::new(survey)
    };
    let of_one: Vec<Record> = (0..50).flat_map(|at| surveyed(&survey_of(1, at))).collect();
    let replayed = |records: &[Record]| {
        let file = written(records);
        let reader = Reader::new(file.as_slice()).unwrap();
        Replayed::within(reader, Chosen::Worst, &Detectors::default(), 50_000)
    };
    assert_eq!(replayed(&of_one).damage, None);
    // Each survey is the last that saw its lock, and each wait goes on.
    let mut of_many = Vec::new();
    for number in 0..50 {
        let survey = survey_of(number, number);
        let mut records = surveyed(&survey);
        if let Record::Input(Input::Scan(scan)) = &mut records[0] {
            scan.complete = false;
        }
        of_many.extend(records);
    }
    let replayed = replayed(&of_many);
    assert!(replayed.surveys < 50, "{}", replayed.surveys);
    let why = replayed.damage.unwrap().why;
    assert_eq!(
        why,
        "its stalls need more surveys at a time than can be kept"
    );
}

#[test]
fn the_incident_is_a_small_file() {
    let survey = Arc::new(example::incident());
    let first = written(&surveyed(&survey)).len();
    let again: Vec<Record> = (0..10)
        .flat_map(|_| surveyed(&survey))
        .chain((0..100).map(|at| Record::Input(Input::Clock(at))))
        .collect();
    let ten = written(&again).len();
    // 1,469 tasks wait: some 20 bytes for each, in a survey as in the first reading; a
    // second survey costs the same again, a reading that shows nothing new next to nothing.
    assert!(first < 80_000, "{first} bytes");
    assert!(ten < 500_000, "{ten} bytes");
}
