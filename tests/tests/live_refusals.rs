//! Where `lockwatch diagnose` cannot work, has nothing to say, or nobody
//! listens.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use lockwatch_tests::{
    trial::{self, Ended, Lab, Program, Report},
    truth::Scenario,
};

const LIMIT: Duration = Duration::from_secs(20);

fn run(command: &mut Command) -> Ended {
    Program::run(command, trial::bound(LIMIT)).unwrap()
}

fn diagnose(arguments: &[&str]) -> Ended {
    let mut command = Command::new(trial::lockwatch().unwrap());
    run(command.args(trial::diagnose()).args(arguments))
}

fn watch_of_a_second(shell: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", shell])
        .arg(trial::lockwatch().unwrap())
        .args(["watch", "--for", "1s"]);
    command
}

/// One line of error that has one of the words of each group in it, nothing
/// else, and exit code 2.
#[track_caller]
fn assert_refused(ended: &Ended, what: &[&[&str]]) {
    let context = ended.describe();
    assert_eq!(ended.code(), Some(2), "{context}");
    assert_eq!(ended.stdout, "", "{context}");
    let lines: Vec<&str> = ended.stderr.lines().collect();
    let [line] = lines[..] else {
        panic!("{} lines of error: {context}", lines.len());
    };
    assert!(line.starts_with("lockwatch: error: "), "{context}");
    assert!(!line.ends_with('.'), "{context}");
    for words in what {
        assert!(
            words.iter().any(|word| line.contains(word)),
            "none of {words:?} in: {line}"
        );
    }
}

/// A copy that everybody may run, removed when dropped.
struct PublicCopy(PathBuf);

impl PublicCopy {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("lockwatch-public-{}", std::process::id()));
        let copy = Self(folder);
        fs::create_dir_all(&copy.0).unwrap();
        fs::copy(trial::lockwatch().unwrap(), copy.binary()).unwrap();
        for path in [&copy.0, &copy.binary()] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        copy
    }

    fn binary(&self) -> PathBuf {
        self.0.join("lockwatch")
    }
}

impl Drop for PublicCopy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// As nobody, without any capability.
fn as_nobody(binary: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args(["--inh-caps=-all", "--bounding-set=-all"])
        .arg(binary);
    command
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_container_is_told_to_use_the_host() {
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--mount-proc"])
        .arg(trial::lockwatch().unwrap())
        .args(trial::diagnose());
    assert_refused(
        &run(&mut command),
        &[&["PID namespace"], &["nsenter", "on the host"]],
    );
}

/// Its events would carry the host's thread IDs, and its surveys the container's.
#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_container_cannot_watch() {
    for namespaces in [&["--pid", "--fork", "--mount-proc"][..], &["--user", "-r"]] {
        let mut command = Command::new("unshare");
        command
            .args(namespaces)
            .arg(trial::lockwatch().unwrap())
            .args(["watch", "--for", "1s"]);
        assert_refused(&run(&mut command), &[&["namespace"], &["on the host"]]);
    }
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn nobody_is_told_which_capabilities_are_missing() {
    let copy = PublicCopy::new();
    let ended = run(as_nobody(&copy.binary()).args(trial::diagnose()));
    let remedy: &[&str] = &["run as root", "setcap"];
    assert_refused(
        &ended,
        &[&["CAP_BPF"], &["CAP_PERFMON"], &["CAP_SYSLOG"], remedy],
    );
}

/// A survey needs it, and nothing but a survey confirms that a CPU is locked up.
#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_watch_without_surveys_does_not_claim_to_see_lockups() {
    let mut command = Command::new("setpriv");
    command
        .args(["--inh-caps=-syslog", "--bounding-set=-syslog"])
        .arg(trial::lockwatch().unwrap())
        .args(["watch", "--for", "1s", "--soft-lockup", "2s"]);
    let ended = run(&mut command);
    let context = ended.describe();
    assert_eq!(ended.code(), Some(0), "{context}");
    let missing = |what: &str| {
        let mut lines = ended.stderr.lines();
        lines.any(|line| line.starts_with("not here: ") && line.contains(what))
    };
    assert!(missing("CAP_SYSLOG"), "{context}");
    assert!(missing("soft and hard lockups"), "{context}");
    assert!(!ended.stderr.contains("lockups from"), "{context}");
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_kernel_without_btf_is_named() {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c"])
        .arg("mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\"")
        .arg(trial::lockwatch().unwrap())
        .args(trial::diagnose());
    assert_refused(
        &run(&mut command),
        &[&["/sys/kernel/btf/vmlinux"], &["CONFIG_DEBUG_INFO_BTF"]],
    );
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn bad_arguments_are_errors() {
    for arguments in [
        &["--bogus"][..],
        &["--format", "xml"],
        &["--threshold", "soon"],
        &["--threshold=-1s"],
        &["--deadline"],
        &["unexpected"],
    ] {
        let ended = diagnose(arguments);
        let context = ended.describe();
        assert_eq!(ended.code(), Some(2), "{context}");
        assert_eq!(ended.stdout, "", "{context}");
        assert!(!ended.stderr.is_empty(), "{context}");
    }
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_host_without_a_stall_is_said_to_have_none() {
    let ended = diagnose(&["--threshold", "10s"]);
    let context = ended.describe();
    assert_eq!(ended.code(), Some(0), "{context}");
    assert_eq!(ended.stderr, "", "{context}");
    assert!(ended.stdout.starts_with("no task has waited"), "{context}");

    let ended = diagnose(&["--threshold", "10s", "--format", "json"]);
    let context = ended.describe();
    assert_eq!(ended.code(), Some(0), "{context}");
    assert_eq!(ended.stderr, "", "{context}");
    let report = Report::read(&ended).unwrap();
    let waits = report.locks.iter().flat_map(|lock| &lock.waiters);
    let longest = waits.map(|waiter| waiter.wait_ns).max().unwrap_or(0);
    assert!(longest < 10_000_000_000, "{context}");
    assert!(report.findings.is_empty(), "{context}");
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_short_wait_is_no_stall() {
    let lab = Lab::raise(Scenario::InodeWriteHeld, 3).unwrap();
    let ended = diagnose(&["--threshold", "1h", "--format", "json"]);
    let name = lab.truth.lock.name.clone();
    lab.finish().unwrap();
    assert_eq!(ended.code(), Some(0), "{}", ended.describe());
    let report = Report::read(&ended).unwrap();
    assert!(report.findings.is_empty(), "{}", ended.describe());
    assert!(
        report.locks.iter().any(|lock| lock.name == name),
        "short waits are left out: {}",
        ended.describe()
    );
}

/// Who cannot survey either is told about the file: it was tried first.
#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn an_unwritable_file_is_an_error_before_any_work() {
    let place: &[&[&str]] = &[&["/nonexistent/report"], &["No such file or directory"]];
    assert_refused(&diagnose(&["-o", "/nonexistent/report"]), place);
    let copy = PublicCopy::new();
    let mut command = as_nobody(&copy.binary());
    let ended = run(command
        .args(trial::diagnose())
        .args(["-o", "/nonexistent/report"]));
    assert_refused(&ended, place);
    assert!(!ended.stderr.contains("CAP_"), "{}", ended.describe());
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_full_disk_is_an_error() {
    let mut command = Command::new("sh");
    command
        .args(["-c", "exec \"$0\" \"$@\" > /dev/full"])
        .arg(trial::lockwatch().unwrap())
        .args(trial::diagnose());
    assert_refused(
        &run(&mut command),
        &[&["standard output"], &["No space left"]],
    );
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn nobody_listening_is_no_error() {
    let lab = Lab::raise(Scenario::InodeWriteHeld, 3).unwrap();
    let mut outcomes = Vec::new();
    for format in ["text", "json"] {
        // The pipe's reader is gone before anything is written.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut child = Command::new(trial::lockwatch().unwrap())
            .args(trial::diagnose())
            .args(["--threshold", "1ms", "--format", format])
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = String::new();
        let pipe = child.stderr.as_mut().unwrap();
        std::io::Read::read_to_string(pipe, &mut stderr).unwrap();
        outcomes.push((format, child.wait().unwrap().code(), stderr));
    }
    let mut command = Command::new("sh");
    command
        .args(["-c", "exec \"$0\" \"$@\" --threshold 1ms >&-"])
        .arg(trial::lockwatch().unwrap())
        .args(trial::diagnose());
    let closed = run(&mut command);
    lab.finish().unwrap();
    for (format, code, stderr) in outcomes {
        assert_eq!((code, &*stderr), (Some(1), ""), "{format}");
    }
    assert_eq!(closed.code(), Some(1), "{}", closed.describe());
}

/// With few files it has something to warn of.
#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn warnings_that_nobody_can_read_end_nothing() {
    for stderr in ["2>/dev/full", "2>&-"] {
        let shell = format!("ulimit -n 20; exec \"$0\" \"$@\" {stderr}");
        let ended = run(&mut watch_of_a_second(&shell));
        let code = ended.code().unwrap();
        assert!(code <= 2, "{stderr}: {}", ended.describe());
    }
    // The pipe's reader is gone before anything is written.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = watch_of_a_second("ulimit -n 20; exec \"$0\" \"$@\"")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(writer)
        .status()
        .unwrap();
    let code = status.code();
    assert!(code.is_some_and(|code| code <= 2), "{status}");
}

/// Of a low limit that a shell or a service sets, the hard one counts.
#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_low_limit_of_open_files_is_raised() {
    let ended = run(&mut watch_of_a_second(
        "ulimit -S -n 20; exec \"$0\" \"$@\"",
    ));
    assert!(!ended.stderr.contains("open files"), "{}", ended.describe());
}
