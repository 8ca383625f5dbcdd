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
    insta::assert_snapshot!("help_check", stdout(&lockwatch(&["check", "--help"])));
    insta::assert_snapshot!("help_record", stdout(&lockwatch(&["record", "--help"])));
    insta::assert_snapshot!("help_report", stdout(&lockwatch(&["report", "--help"])));
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
