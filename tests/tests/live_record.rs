//! `lockwatch record` and `report`: what is recorded of a stall is the stall.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use lockwatch_tests::{
    clock,
    trial::{self, Ended, Lab, Program, Report, Span, Verdict},
    truth::{Ready, Scenario},
};
use nix::sys::signal::Signal;

/// How long a command may take to be ready, and to end when told to.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is older is in the file; with the time that a survey takes.
const WRITTEN: Duration = Duration::from_millis(2500);

const STALL_FOUND: i32 = 1;

/// A file that is gone with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let name = format!("lockwatch-{name}-{}.lwr", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn lockwatch() -> Command {
    Command::new(trial::lockwatch().unwrap())
}

/// A `record` that has attached what it needs.
fn record(file: &Path, threshold: &str) -> Program {
    let mut command = lockwatch();
    command
        .args(["record", "--threshold", threshold, "-o"])
        .arg(file);
    let mut program = Program::start(&mut command).unwrap();
    let begun = Instant::now();
    loop {
        let line = program.err_line(trial::bound(PATIENCE)).unwrap();
        let line = line.unwrap_or_else(|| panic!("it ended: {}", program.stderr_so_far()));
        if line.starts_with("recording") {
            return program;
        }
        assert!(
            begun.elapsed() < trial::bound(PATIENCE),
            "not ready: {line}"
        );
    }
}

fn report(file: &Path, format: &str) -> Ended {
    let mut command = lockwatch();
    command.args(["report", "--format", format]).arg(file);
    Program::run(&mut command, trial::bound(PATIENCE)).unwrap()
}

#[track_caller]
fn assert_is(file: &Path, truth: &Ready, span: Span) {
    let ended = report(file, "json");
    assert_eq!(ended.code(), Some(STALL_FOUND), "{}", ended.describe());
    let report = Report::read(&ended).unwrap();
    assert_eq!(report.coverage.source, "recording");
    let verdict = Verdict::on(&report, truth, span);
    assert!(
        verdict.names_exactly_the_holders(),
        "{verdict:#?}\n{truth:#?}"
    );
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn one_survey_recorded_is_the_stall() {
    let file = Scratch::new("once");
    let lab = Lab::raise(Scenario::InodeWriteHeld, 3).unwrap();
    let begun_ns = clock::monotonic_ns();
    let mut command = lockwatch();
    command
        .args(["record", "--once", "--threshold", "1ms", "-o"])
        .arg(&file.0);
    let ended = Program::run(&mut command, trial::bound(PATIENCE)).unwrap();
    let ended_ns = clock::monotonic_ns();
    assert_eq!(ended.code(), Some(STALL_FOUND), "{}", ended.describe());
    assert_is(&file.0, &lab.truth, Span { begun_ns, ended_ns });
    lab.finish().unwrap();
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_stall_recorded_until_sigkill_is_in_the_file() {
    let file = Scratch::new("killed");
    let recording = record(&file.0, "300ms");
    let lab = Lab::raise(Scenario::MmapReadHeld, 6).unwrap();
    thread::sleep(trial::bound(WRITTEN));
    recording.signal(Signal::SIGKILL);
    recording.end(trial::bound(PATIENCE)).unwrap();
    let ended_ns = clock::monotonic_ns();
    let truth = lab.truth.clone();
    lab.finish().unwrap();

    let text = report(&file.0, "text");
    assert_eq!(text.code(), Some(STALL_FOUND), "{}", text.describe());
    assert!(
        text.stdout.contains("not known: the recording is cut off"),
        "{}",
        text.stdout
    );
    assert!(
        text.stderr.contains("the recording is cut off"),
        "{}",
        text.stderr
    );
    assert!(text.stdout.contains("stands at the end"), "{}", text.stdout);
    let at_most = Span {
        // The first waits came after the lab had begun them: the verdict dates them itself.
        begun_ns: 0,
        ended_ns,
    };
    assert_is(&file.0, &truth, at_most);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_disk_that_is_full_is_told_and_what_was_recorded_is_read() {
    let folder = std::env::temp_dir().join(format!("lockwatch-full-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    let small = Some("size=12k");
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), &folder, Some("tmpfs"), flags, small).unwrap();
    let file = folder.join("full.lwr");
    let lab = Lab::raise(Scenario::InodeWriteHeld, 3).unwrap();
    // It looks often, and fills its page in a few seconds.
    let recording = record(&file, "40ms");
    thread::sleep(trial::bound(WRITTEN));
    // Something else takes the rest.
    let filled = fs::write(folder.join("other"), vec![0; 64 << 10]);
    assert!(filled.is_err(), "the disk is not small");
    let ended = recording.end(trial::bound(Duration::from_secs(60)));
    let text = report(&file, "text");
    nix::mount::umount(&folder).unwrap();
    fs::remove_dir(&folder).unwrap();
    lab.finish().unwrap();
    let ended = ended.unwrap();
    assert_eq!(ended.code(), Some(2), "{}", ended.describe());
    let told = [
        "cannot write",
        "full.lwr",
        "can be read from it",
        "No space left",
    ];
    for word in told {
        assert!(ended.stderr.contains(word), "{word}: {}", ended.stderr);
    }
    assert_eq!(text.code(), Some(STALL_FOUND), "{}", text.describe());
    assert!(text.stdout.contains("cut off"), "{}", text.stdout);
}
