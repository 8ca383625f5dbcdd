//! The command line as its user meets it: help, usage errors, exit codes.

use std::process::{Command, Output};

fn lockwatch(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lockwatch"))
        .args(arguments)
        .env_remove("COLUMNS")
        .env_remove("CLICOLOR_FORCE")
        .output()
        .expect("the binary under test runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("help is UTF-8")
}

#[test]
fn help() {
    let output = lockwatch(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    insta::assert_snapshot!("help", stdout(&output));
    insta::assert_snapshot!("help_diagnose", stdout(&lockwatch(&["diagnose", "--help"])));
    insta::assert_snapshot!("help_watch", stdout(&lockwatch(&["watch", "--help"])));
    insta::assert_snapshot!("help_export", stdout(&lockwatch(&["export", "--help"])));
    insta::assert_snapshot!("help_check", stdout(&lockwatch(&["check", "--help"])));
    insta::assert_snapshot!("help_record", stdout(&lockwatch(&["record", "--help"])));
    insta::assert_snapshot!("help_report", stdout(&lockwatch(&["report", "--help"])));
    insta::assert_snapshot!(
        "help_histogram",
        stdout(&lockwatch(&["histogram", "--help"]))
    );
    insta::assert_snapshot!(
        "help_histogram_merge",
        stdout(&lockwatch(&["histogram", "merge", "--help"]))
    );
}

#[test]
fn a_wrong_command_line_is_an_error() {
    for arguments in [
        &["--no-such-flag"][..],
        &[],
        &["diagnose", "--no-such-flag"],
        &["diagnose", "--threshold", "soon"],
        &["diagnose", "--threshold", "-1s"],
        &["diagnose", "--format", "xml"],
        &["diagnose", "-q", "-v"],
        &["watch", "--pid", "init"],
        &["watch", "--comm", ""],
        &["check", "--format", "yaml"],
        &["record"],
        &["record", "-o", "/nonexistent/x", "--once", "--for", "1s"],
        &["report"],
        &["export"],
        &["export", "--listen", "here"],
        &["export", "--hdr-log", "/dev/null", "--interval", "1ms"],
        &["export", "--otlp", "--top-callers", "1001"],
        &["export", "--otlp-header", "a=b"],
        &["export", "--otlp", "--otlp-header", "content-length=1"],
        &["export", "--otlp", "--cgroup", "/proc"],
        &["histogram", "x", "--for", "1s"],
        &["histogram", "x", "--comm", "postgres"],
        &["histogram", "--from", "2026-03-01T03:12:09Z"],
        &["histogram", "merge", "x"],
        &["histogram", "merge", "-o", "x"],
        &["report", "x", "--survey", "0"],
        &[
            "report",
            "x",
            "--survey",
            "1",
            "--at",
            "2026-03-01T03:12:09Z",
        ],
    ] {
        let output = lockwatch(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn an_output_file_that_cannot_be_created_is_told_in_one_line_first() {
    let output = lockwatch(&["diagnose", "-o", "/nonexistent/report"]);
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.starts_with("lockwatch: error: create /nonexistent/report: "),
        "{stderr}"
    );
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[test]
fn a_file_that_is_no_recording_is_told_in_one_line() {
    let told = |path: &str| {
        let output = lockwatch(&["report", path]);
        assert_eq!(output.status.code(), Some(2));
        assert!(output.stdout.is_empty());
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        stderr
    };
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let stderr = told(here);
    assert_eq!(
        stderr,
        format!("lockwatch: error: {here}: not a lockwatch recording: no gzip file\n")
    );
    let stderr = told("/nonexistent/file");
    assert!(
        stderr.contains("/nonexistent/file: cannot read it"),
        "{stderr}"
    );
}

#[test]
fn a_recording_does_not_replace_a_file() {
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let output = lockwatch(&["record", "--once", "-o", here]);
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("--force replaces a file"), "{stderr}");
}

/// A part of a recording of the stall lab may have no stall in it, and yet the stall may be
/// in what is missing.
#[test]
fn nothing_found_in_a_recording_that_is_cut_off_is_no_all_clear() {
    use std::{fs, io::Read as _, io::Write as _};

    let whole = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/recordings/mmap-read-held.lwr"
    );
    assert_eq!(lockwatch(&["report", whole]).status.code(), Some(1));
    let mut text = String::new();
    let file = fs::File::open(whole).expect("the recording is in the tree");
    flate2::read::GzDecoder::new(file)
        .read_to_string(&mut text)
        .expect("it is gzip");
    let header = text.lines().next().expect("it has a header").to_owned() + "\n";
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("part.lwr");
    let reported = |text: &str, format: &str| {
        let file = fs::File::create(&path).expect("a file");
        let mut packed = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        packed.write_all(text.as_bytes()).expect("room");
        packed.finish().expect("room");
        let path = path.to_str().expect("a plain name");
        let output = lockwatch(&["report", path, "--format", format]);
        (output.status.code(), output.stdout)
    };
    let (code, out) = reported(&header, "text");
    let out = String::from_utf8(out).expect("UTF-8");
    assert_eq!(code, Some(2), "{out}");
    assert!(out.contains("at least 0 stalls of "), "{out}");
    assert!(out.contains(" in what could be read"), "{out}");
    assert_eq!(reported(&header, "perfetto").0, Some(2));
    let with_end = header + "{\"end\":{\"at_ns\":0,\"records\":0}}\n";
    let (code, out) = reported(&with_end, "text");
    let out = String::from_utf8(out).expect("UTF-8");
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains("\n0 stalls of "), "{out}");
}

#[test]
fn a_detector_that_is_not_asked_finds_nothing_in_a_recording() {
    const HUNG: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/recordings/every-stall/hung-folio.lwr"
    );
    for format in ["text", "json"] {
        let report = ["report", HUNG, "--format", format];
        let asked = lockwatch(&report);
        assert_eq!(asked.status.code(), Some(1));
        assert!(stdout(&asked).contains("hung-task"), "{}", stdout(&asked));
        for survey in [&[][..], &["--survey", "1"]] {
            let unasked = [&report[..], survey, &["--no-detect", "hung-task"]].concat();
            let unasked = lockwatch(&unasked);
            assert_eq!(unasked.status.code(), Some(0), "{}", stdout(&unasked));
            assert!(
                !stdout(&unasked).contains("hung-task"),
                "{}",
                stdout(&unasked)
            );
        }
    }
}

#[test]
fn a_recording_needs_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = Command::new(env!("CARGO_BIN_EXE_lockwatch"))
        .args(["record", "--once", "-o", "-"])
        .current_dir(folder.path())
        .output()
        .expect("the binary under test runs");
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("a recording needs a file"), "{stderr}");
    assert!(!folder.path().join("-").exists());
}
