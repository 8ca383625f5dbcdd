//! `lockwatch watch --track-holds`: holders known from their acquiring agree with those
//! that surveys find, and nothing of it stays behind.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod attached;

use std::{
    collections::BTreeSet,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use lockwatch_tests::{
    trial::{
        self, Lab, Program,
        event::{Event, Stall},
        report::Holder,
    },
    truth::{LockClass, Ready, Scenario, Tid},
};
use nix::sys::signal::Signal;
use serde_json::Value;

use self::attached::Attached;

/// How long `watch` may take to be ready, and what it leaves to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// A stall must be reported this long after it has begun.
const PROMPT: Duration = Duration::from_secs(3);

/// How exact times must be.
const EXACT: Duration = Duration::from_millis(100);

/// What `watch` says that it can track on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tracked {
    AllRwsems,
    MmapLock,
}

struct Tracking {
    program: Program,
    tracked: Tracked,
}

impl Tracking {
    fn start() -> Self {
        let mut command = Command::new(trial::lockwatch().unwrap());
        command.args(["watch", "--track-holds", "--format", "json"]);
        command.args(["--threshold", "200ms", "--for", "120s"]);
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
        let tracked = match missing.as_slice() {
            [] => Tracked::AllRwsems,
            ["exact holders of rwsems other than mmap_lock"] => Tracked::MmapLock,
            _ => panic!("nothing is tracked on this kernel: {line}"),
        };
        Self { program, tracked }
    }

    fn event(&mut self, limit: Duration) -> Event {
        let line = self.program.out_line(limit).unwrap();
        let line = line.unwrap_or_else(|| panic!("watch ended: {}", self.program.stderr_so_far()));
        Event::read(&line).unwrap()
    }

    /// The first report of this stall.
    fn stall(&mut self, truth: &Ready) -> Stall {
        let deadline = Instant::now() + trial::bound(PROMPT);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Event::Stall(stall) = self.event(left)
                && stall
                    .lock
                    .as_ref()
                    .is_some_and(|lock| lock.name == truth.lock.name)
            {
                return *stall;
            }
        }
    }
}

/// The holders in the truth are those that `watch` names, and where this kernel lets the
/// lock be tracked, each was seen taking it.
fn track(scenario: Scenario) {
    let mut tracking = Tracking::start();
    let Some(lab) = Lab::raise_or_skip(scenario, 3).unwrap() else {
        return;
    };
    let truth = lab.truth.clone();
    let is_mmap_lock = truth.lock.class == Some(LockClass::MmapLock);
    let is_tracked = is_mmap_lock || tracking.tracked == Tracked::AllRwsems;
    let stall = tracking.stall(&truth);
    lab.finish().unwrap();

    let lock = stall.lock.as_ref().unwrap();
    let holders: BTreeSet<Tid> = truth.holders.iter().map(|holder| holder.tid).collect();
    let named = |with: &dyn Fn(&str) -> bool| -> BTreeSet<Tid> {
        lock.holders
            .iter()
            .filter(|holder| holder.is_accused())
            .filter(|holder| holder.evidence.iter().any(|evidence| with(&evidence.kind)))
            .map(|holder| holder.tid)
            .collect()
    };
    let is_traced = |kind: &str| ["traced-acquire", "traced-in-part"].contains(&kind);
    let traced = named(&is_traced);
    let surveyed = named(&|kind| !is_traced(kind));
    let wanted = if is_tracked {
        holders.clone()
    } else {
        BTreeSet::new()
    };
    assert_eq!(traced, wanted, "by tracking: {stall:#?}");
    assert_eq!(surveyed, holders, "by survey: {stall:#?}");
    let decoys: BTreeSet<Tid> = truth.decoys.iter().map(|decoy| decoy.tid).collect();
    assert!(
        lock.holders
            .iter()
            .all(|holder| !decoys.contains(&holder.tid)),
        "a decoy is named: {stall:#?}"
    );
    // Where the kernel skipped runs of the programs, times are the survey's.
    let is_sure = |holder: &&Holder| {
        let mut kinds = holder.evidence.iter().map(|evidence| &*evidence.kind);
        kinds.any(|kind| kind == "traced-acquire")
    };
    for holder in lock.holders.iter().filter(is_sure) {
        assert_eq!(
            holder.held_is_lower_bound,
            Some(false),
            "its acquiring was seen: {holder:#?}"
        );
        // It has held it for longer than anybody has waited.
        let waited = lock.waiters.iter().map(|waiter| waiter.wait_ns).max();
        let held = holder.held_ns.map(Duration::from_nanos).unwrap();
        let waited = waited.map(Duration::from_nanos).unwrap();
        assert!(held + trial::bound(EXACT) >= waited, "{stall:#?}");
    }
    tracking.program.signal(Signal::SIGINT);
    let done = tracking.program.end(trial::bound(PATIENCE)).unwrap();
    assert_eq!(done.code(), Some(1), "{}", done.describe());
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_reader_of_an_address_space_was_seen_taking_it() {
    track(Scenario::MmapReadHeld);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_writer_of_a_directory_was_seen_taking_it() {
    track(Scenario::InodeWriteHeld);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn readers_of_a_directory_were_seen_taking_it() {
    track(Scenario::InodeReadHeld);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_reader_of_a_super_block_was_seen_taking_it() {
    track(Scenario::SuperReadHeld);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_writer_of_an_address_space_was_seen_taking_it() {
    track(Scenario::MmapWriteHeld);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_writer_that_waits_for_an_area_was_seen_taking_the_address_space() {
    track(Scenario::VmaReadHeld);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn readers_of_a_directory_below_an_overlay_were_seen_taking_it() {
    track(Scenario::InodeReadHeldOverlay);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_reader_of_a_super_block_beside_a_sync_was_seen_taking_it() {
    track(Scenario::SuperReadHeldSync);
}

/// Tasks sleep inside functions at whose return a program is attached.
#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn nothing_of_it_stays_after_sigkill_while_tasks_are_inside() {
    let mut tracking = Tracking::start();
    let lab = Lab::raise(Scenario::InodeWriteHeld, 4).unwrap();
    let truth = lab.truth.clone();
    tracking.stall(&truth);
    let attached = Attached::by(tracking.program.pid().as_raw());
    assert_eq!(attached.left(), attached, "its objects are not listed");
    tracking.program.signal(Signal::SIGKILL);
    let ended = tracking.program.wait(trial::bound(PATIENCE)).unwrap();
    assert!(ended.is_some(), "it was not killed");
    let begun = Instant::now();
    let mut left = attached.left();
    while left != Attached::default() && begun.elapsed() < trial::bound(PATIENCE) {
        thread::sleep(Duration::from_millis(50));
        left = attached.left();
    }
    let took = begun.elapsed();
    // The stall stood all the time: what was freed did not wait for it.
    lab.finish().unwrap();
    assert_eq!(left, Attached::default(), "{took:?} after SIGKILL");
    eprintln!(
        "SIGKILL: {} programs, {} links, {} maps gone after {} ms",
        attached.programs.len(),
        attached.links.len(),
        attached.maps.len(),
        took.as_millis()
    );
}
