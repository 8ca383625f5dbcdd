//! Who had a lock before it stalled: `diagnose` reads it from whoever tracks holds, and
//! names nobody else.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod diagnosed;

use std::{process::Command, time::Duration};

use lockwatch_tests::{
    trial::{
        self, Ended, Lab, Program, Report,
        report::{Lock, RecentHold},
    },
    truth::{LockClass, Ready, Scenario},
};
use nix::sys::signal::Signal;
use serde_json::Value;

/// How long `watch` may take to be ready.
const PATIENCE: Duration = Duration::from_secs(10);

/// Shorter holds are not kept: whatever else the lab does with the lock is shorter.
fn long() -> Duration {
    trial::bound(Duration::from_millis(50))
}

/// How long the lock is held before.
fn before() -> Duration {
    (14 * long()).min(Duration::from_secs(4))
}

/// A `watch` that tracks holds, and whether it can track more than `mmap_lock` here.
struct Recorder {
    program: Program,
    tracks_all: bool,
}

impl Recorder {
    fn start(options: &[&str]) -> Self {
        let mut command = Command::new(trial::lockwatch().unwrap());
        command.args(["watch", "--track-holds", "--format", "json"]);
        command.args(["--threshold", "60s", "--for", "120s"]);
        command.args(options);
        let mut program = Program::start(&mut command).unwrap();
        let line = program.out_line(trial::bound(PATIENCE)).unwrap();
        let line = line.unwrap_or_else(|| panic!("watch ended: {}", program.stderr_so_far()));
        let watching: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(watching["event"], "watching", "{line}");
        let gaps = watching["gaps"].as_array().unwrap();
        let missing: Vec<&str> = gaps
            .iter()
            .filter(|gap| gap["subject"] == "holds")
            .map(|gap| gap["missing"].as_str().unwrap())
            .collect();
        let tracks_all = match missing.as_slice() {
            [] => true,
            ["exact holders of rwsems other than mmap_lock"] => false,
            _ => panic!("nothing is tracked on this kernel: {line}"),
        };
        Self {
            program,
            tracks_all,
        }
    }

    fn keeping(long: Duration) -> Self {
        Self::start(&["--long-hold", &format!("{}ms", long.as_millis())])
    }

    fn end(self) {
        self.program.signal(Signal::SIGINT);
        let ended = self.program.end(trial::bound(PATIENCE)).unwrap();
        assert!(matches!(ended.code(), Some(0 | 1)), "{}", ended.describe());
    }
}

/// The stalled lock, as `diagnose` beside whoever runs sees it.
fn stalled(truth: &Ready) -> (Lock, Report, Ended) {
    let ended = diagnosed::diagnose().unwrap();
    let report = Report::read(&ended).unwrap();
    let lock = report
        .locks
        .iter()
        .find(|lock| lock.name == truth.lock.name);
    let lock = lock.unwrap_or_else(|| panic!("{}", diagnosed::evidence(truth, &ended)));
    (lock.clone(), report.clone(), ended)
}

/// Whoever held the lock before is named, with how long and until when, and nobody else is.
fn told(scenario: Scenario) {
    let recorder = Recorder::keeping(long());
    let lab = Lab::raise_after(scenario, 3, before()).unwrap();
    let truth = lab.truth.clone();
    let (lock, report, ended) = stalled(&truth);
    lab.finish().unwrap();
    let tracks_it = recorder.tracks_all || truth.lock.class == Some(LockClass::MmapLock);
    recorder.end();

    let evidence = diagnosed::evidence(&truth, &ended);
    let before = truth.before.as_ref().unwrap();
    let accused = |hold: &RecentHold| (hold.tid, hold.tgid, hold.comm.clone(), hold.mode);
    let wanted: Vec<_> = tracks_it
        .then(|| (before.tid, before.tgid, before.comm.clone(), before.mode))
        .into_iter()
        .collect();
    let named: Vec<_> = lock.recent_holds.iter().map(accused).collect();
    assert_eq!(named, wanted, "{evidence}");
    for hold in &lock.recent_holds {
        let off = hold.held_ns.abs_diff(before.held_ns);
        assert!(off <= before.held_ns / 5, "{hold:?}: {evidence}");
        // The survey is taken between the begin and the end of diagnose.
        let ago = ended.begun_ns - before.until_ns..=ended.ended_ns - before.until_ns;
        let slack = u64::try_from(trial::bound(Duration::from_millis(50)).as_nanos()).unwrap();
        let is_then =
            ago.contains(&hold.ended_ago_ns) || ago.contains(&(hold.ended_ago_ns + slack));
        assert!(is_then, "{hold:?}, not {ago:?}: {evidence}");
        let function = hold.released_in.as_deref().unwrap();
        let stack = &report.stacks[hold.stack.unwrap()];
        assert!(stack[0].starts_with(function), "{stack:?}");
        assert!(
            !function.contains("up_read") && !function.contains("up_write"),
            "the lock's own function: {function}"
        );
    }
    // It had the lock, and is not said to have it.
    let holders: Vec<_> = lock.holders.iter().map(|holder| holder.tid).collect();
    assert!(!holders.contains(&before.tid), "{evidence}");
    // Nobody is named of locks that were not held for long.
    let others = report.locks.iter().filter(|other| other.id != lock.id);
    assert_eq!(others.flat_map(|lock| &lock.recent_holds).count(), 0);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn who_read_an_address_space_for_long_before_is_told() {
    told(Scenario::MmapReadHeld);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn who_wrote_to_a_directory_for_long_before_is_told() {
    told(Scenario::InodeWriteHeld);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn two_recorders_tell_one_hold_once() {
    let recorders = [Recorder::keeping(long()), Recorder::keeping(long())];
    let lab = Lab::raise_after(Scenario::MmapReadHeld, 3, before()).unwrap();
    let truth = lab.truth.clone();
    let (lock, _, ended) = stalled(&truth);
    lab.finish().unwrap();
    recorders.into_iter().for_each(Recorder::end);
    let evidence = diagnosed::evidence(&truth, &ended);
    assert_eq!(lock.recent_holds.len(), 1, "{evidence}");
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn nothing_is_told_where_nobody_keeps_long_holds() {
    let silent = |what: &str| {
        let lab = Lab::raise_after(Scenario::MmapReadHeld, 3, before()).unwrap();
        let truth = lab.truth.clone();
        let (lock, _, ended) = stalled(&truth);
        lab.finish().unwrap();
        let evidence = diagnosed::evidence(&truth, &ended);
        assert_eq!(lock.recent_holds, [], "{what}: {evidence}");
        assert!(!ended.stderr.contains("WARN"), "{}", ended.describe());
    };
    silent("no recorder");
    let recorder = Recorder::start(&["--long-hold", "0s"]);
    silent("one that keeps none");
    recorder.end();
    let recorder = Recorder::start(&["--long-hold", "30s"]);
    silent("one for which it was not long");
    recorder.end();
}

/// The next address space may lie where the last one lay.
#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn holds_of_an_address_space_that_is_gone_are_not_told_of_the_next() {
    let recorder = Recorder::keeping(long());
    for _ in 0..3 {
        let lab = Lab::raise_after(Scenario::MmapReadHeld, 3, before()).unwrap();
        let before = lab.truth.before.clone().unwrap();
        let (lock, _, ended) = stalled(&lab.truth);
        let truth = lab.truth.clone();
        lab.finish().unwrap();
        // The holder's own long hold, and those before it, belong to other address spaces.
        let named: Vec<_> = lock.recent_holds.iter().map(|hold| hold.tid).collect();
        assert_eq!(
            named,
            [before.tid],
            "{}",
            diagnosed::evidence(&truth, &ended)
        );
    }
    recorder.end();
}
