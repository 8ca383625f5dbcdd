//! `lockwatch histogram` and `report` over many files, as their user meets them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use lockwatch::{
    export::hdr_log::{HdrLog, Header, Rotation},
    latency::{Caller, CountsLost, Measure, SeriesKey, Snapshot},
    lock::{LockClass, LockKind, LockMode},
    task::Nanos,
};
use serde_json::Value;

fn lockwatch(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lockwatch"))
        .args(arguments)
        .env_remove("COLUMNS")
        .env_remove("CLICOLOR_FORCE")
        .output()
        .expect("the binary under test runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn fails(arguments: &[&str]) -> String {
    let output = lockwatch(arguments);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    text(&output.stderr)
}

fn succeeds(arguments: &[&str]) -> String {
    let output = lockwatch(arguments);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    text(&output.stdout)
}

/// A log of one interval: so many waits of 1 ms for mmap_lock, and a hold of 2 s.
fn log(folder: &Path, host: &str, waits: u64) -> PathBuf {
    let path = folder.join(format!("{host}.hlog"));
    let header = Header {
        hosts: vec![host.to_owned()],
        start: "2026-03-01T03:00:00Z".parse().expect("a time"),
    };
    let mut log = HdrLog::open(&path, &header, Rotation::default()).expect("a new log");
    let mut interval = Snapshot {
        lost: CountsLost { waits: 1, holds: 0 },
        ..Snapshot::default()
    };
    let key = |measure| SeriesKey {
        measure,
        class: LockClass::MmapLock,
        kind: LockKind::Rwsem,
        mode: LockMode::Read,
        caller: Caller::Function("do_user_addr_fault".to_owned()),
    };
    for _ in 0..waits {
        let waited = interval.series.entry(key(Measure::Wait)).or_default();
        waited.record(Nanos(1_000_000));
    }
    let held = interval.series.entry(key(Measure::Hold)).or_default();
    held.record(Nanos(2_000_000_000));
    log.interval(&interval, header.start, Duration::from_secs(10))
        .expect("room");
    path
}

fn name(path: &Path) -> &str {
    path.to_str().expect("a plain name")
}

#[test]
fn logs_of_a_fleet_become_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, two) = (log(folder.path(), "web1", 3), log(folder.path(), "web2", 4));
    let (one, two) = (name(&one), name(&two));
    let all = folder.path().join("all.hlog");
    let all = name(&all);
    succeeds(&["histogram", "merge", one, two, "-o", all]);
    let shown = |files: &[&str]| -> Value {
        let arguments = [&["histogram", "--format", "json"], files].concat();
        serde_json::from_str(&succeeds(&arguments)).expect("JSON")
    };
    let merged = shown(&[all]);
    assert_eq!(merged, shown(&[one, two]));
    assert_eq!(merged["series"][0]["count"], 7);
    assert_eq!(merged["lost"]["waits"], 2);
    assert_eq!(merged["hosts"], serde_json::json!(["web1", "web2"]));

    let stderr = fails(&["histogram", "merge", one, "-o", all]);
    assert!(stderr.contains("use --force to replace it"), "{stderr}");
    assert_eq!(shown(&[all]), merged, "it was replaced");
    succeeds(&["histogram", "merge", one, "-o", all, "--force"]);
    assert_eq!(shown(&[all])["series"][0]["count"], 3);
}

#[test]
fn no_log_counts_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    let one = log(folder.path(), "web1", 3);
    let again = folder.path().join("again.hlog");
    std::os::unix::fs::symlink(&one, &again).expect("a link");
    for command in [
        &["histogram", name(&one), name(&again)][..],
        &[
            "histogram",
            "merge",
            name(&one),
            name(&one),
            "-o",
            "/dev/null",
            "--force",
        ],
    ] {
        let stderr = fails(command);
        assert!(stderr.contains("it would count twice"), "{stderr}");
    }
}

#[test]
fn a_line_that_is_wrong_is_named_and_one_that_is_cut_off_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = log(folder.path(), "web1", 3);
    let whole = fs::read(&path).expect("the log");
    fs::write(&path, &whole[..whole.len() - 20]).expect("room");
    let output = lockwatch(&["histogram", name(&path)]);
    assert_eq!(output.status.code(), Some(0));
    let stderr = text(&output.stderr);
    assert!(stderr.contains(": line 11 is cut off"), "{stderr}");
    assert!(text(&output.stdout).contains(": line 11 is cut off"));

    fs::write(&path, [&whole[..whole.len() - 20], b"\n"].concat()).expect("room");
    let stderr = fails(&["histogram", name(&path)]);
    assert!(stderr.contains("web1.hlog: line 11: "), "{stderr}");
}

#[test]
fn a_percentile_table_is_of_one_measure() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = log(folder.path(), "web1", 3);
    let table = |measure: &[&str]| {
        let arguments = [&["histogram", name(&path), "--format", "hgrm"], measure].concat();
        lockwatch(&arguments)
    };
    let count = |output: &Output| {
        let shown = text(&output.stdout);
        let last = shown.lines().find(|line| line.contains("Total count"));
        last.and_then(|line| line.split(&['=', ']']).nth(2)?.trim().parse::<u64>().ok())
    };
    assert_eq!(count(&table(&[])), Some(3));
    assert_eq!(count(&table(&["--measure", "hold"])), Some(1));
    let others = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/src/export/hdr_log/tests/others.hlog"
    );
    let of_others = lockwatch(&["histogram", others, "--format", "hgrm", "--unit", "us"]);
    assert_eq!(count(&of_others), Some(4), "{of_others:?}");
    let both = table(&["--measure", "both"]);
    assert_eq!(both.status.code(), Some(2), "{both:?}");
}

fn recording(name: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/recordings");
    format!("{folder}/{name}.lwr")
}

#[test]
fn many_recordings_are_summed_up() {
    let (one, two) = (recording("pipe-held"), recording("inode-write-held"));
    let (one, two) = (one.as_str(), two.as_str());
    let output = lockwatch(&["report", one, two]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let shown = text(&output.stdout);
    assert!(
        shown.starts_with("2 recordings of 1 host: 2 stalls, none stands at the end\n"),
        "{shown}"
    );
    let output = lockwatch(&["report", one, two, "--format", "json"]);
    let found: Value = serde_json::from_str(&text(&output.stdout)).expect("JSON");
    let mut classes: Vec<&Value> = found["recordings"]
        .as_array()
        .expect("recordings")
        .iter()
        .map(|recording| &recording["classes"][0]["class"])
        .collect();
    classes.sort_by_key(ToString::to_string);
    assert_eq!(classes, ["i_rwsem", "pipe"]);

    for wrong in [
        &["report", one, two, "--survey", "1"][..],
        &["report", one, two, "--format", "dot"],
        &["report", one, "/nonexistent/x"],
    ] {
        fails(wrong);
    }
}
