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
