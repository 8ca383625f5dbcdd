//! `lockwatch watch` beside a healthy load that contends for locks all the time, with three
//! deadlocks in it: these are found, and nothing else is called one.
//!
//! It takes `LOCKWATCH_SOAK_SECONDS`, three minutes if that is unset.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::{
    env, fs,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use lockwatch_tests::{
    clock,
    trial::{
        self, Ended, Lab, Program,
        event::{Event, Stall},
        report::Finding,
        verdict,
    },
    truth::{Ready, Scenario},
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::Signal,
    unistd::mkdtemp,
};

const SECONDS: &str = "LOCKWATCH_SOAK_SECONDS";
const USUAL: Duration = Duration::from_secs(180);

/// The deadlocks, in turn.
const DEADLOCKS: [Scenario; 3] = [
    Scenario::DeadlockFuseDirectory,
    Scenario::DeadlockBehindWriter,
    Scenario::DeadlockFuseTwoMounts,
];

/// How long each stands: `watch` has to see it among everything else.
const HOLD: Duration = Duration::from_secs(6);

/// How long a loaded machine may take to make one and to clear it.
const AROUND: Duration = Duration::from_secs(12);

/// How long a program may take to begin and to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A file system in memory for the load. Dropped, it is unmounted.
struct Scratch(PathBuf);

impl Scratch {
    fn mount() -> Self {
        let at = mkdtemp("/tmp/lockwatch-soak-XXXXXX").unwrap();
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("soak"), &at, Some("tmpfs"), flags, Some("size=512m")).unwrap();
        Self(at)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.0);
    }
}

fn length() -> Duration {
    env::var(SECONDS).map_or(USUAL, |text| Duration::from_secs(text.parse().unwrap()))
}

/// Address spaces, forks, directories and names, each changed by several at once.
fn load(scratch: &Scratch, length: Duration) -> Program {
    let mut command = Command::new("stress-ng");
    command.args(["--mmap", "2", "--mmap-bytes", "64m", "--fork", "2"]);
    command.args(["--dir", "3", "--filename", "3", "--oomable"]);
    command.args(["--timeout", &format!("{}s", length.as_secs())]);
    command.arg("--temp-path").arg(&scratch.0);
    Program::start(&mut command).unwrap_or_else(|error| {
        panic!("{error:#}: `cargo xtask test` installs the package stress-ng")
    })
}

fn watch(length: Duration) -> Program {
    let mut command = Command::new(trial::lockwatch().unwrap());
    command.args(["watch", "--threshold", "100ms", "--format", "json"]);
    command.args(["--for", &format!("{}s", (length + 4 * PATIENCE).as_secs())]);
    let mut program = Program::start(&mut command).unwrap();
    loop {
        match program.err_line(PATIENCE).unwrap() {
            Some(line) if line.starts_with("watching") => return program,
            Some(_) => {}
            None => panic!("watch ended: {}", program.stderr_so_far()),
        }
    }
}

/// A share of the whole that nobody could have known.
fn at_random(whole: Duration) -> Duration {
    // splitmix64, of the clock.
    let mut mixed = clock::monotonic_ns().wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    whole.mul_f64((mixed >> 32) as f64 / f64::from(u32::MAX))
}

/// Sets one deadlock off in each third of the time; returns their truths.
fn set_off(begun: Instant, length: Duration) -> Vec<Ready> {
    let third = length / DEADLOCKS.len() as u32;
    let spare = third.checked_sub(HOLD + AROUND).unwrap_or_else(|| {
        panic!("{length:?} is too short for three deadlocks: make {SECONDS} longer")
    });
    let mut truths = Vec::new();
    for (number, scenario) in (0..).zip(DEADLOCKS) {
        let at = third * number + at_random(spare);
        thread::sleep(at.saturating_sub(begun.elapsed()));
        let lab = Lab::raise_for(scenario, 3, HOLD).unwrap();
        eprintln!("{} after {:?}", scenario.name(), begun.elapsed());
        truths.push(lab.truth.clone());
        lab.outlast().unwrap();
    }
    truths
}

fn deadlocks(stall: &Stall) -> impl Iterator<Item = &Finding> {
    stall
        .findings
        .iter()
        .filter(|finding| finding.detector == "deadlock")
}

/// Every deadlock that is reported is one of these, and each of these is reported.
fn judge(watched: &Ended, truths: &[Ready]) {
    let events: Vec<Event> = watched
        .stdout
        .lines()
        .map(|line| Event::read(line).unwrap())
        .collect();
    let stalls: Vec<&Stall> = events
        .iter()
        .filter_map(|event| match event {
            Event::Stall(stall) => Some(&**stall),
            _ => None,
        })
        .collect();
    for truth in truths {
        let is_this = |stall: &&&Stall| {
            let lock = stall.lock.as_ref();
            lock.is_some_and(|lock| lock.name == truth.lock.name)
        };
        let reports = stalls.iter().filter(is_this).count();
        assert!(reports > 0, "no stall of {} was reported", truth.lock.name);
    }
    let mut seen = vec![0; truths.len()];
    let mut wrong = Vec::new();
    for (stall, finding) in stalls
        .iter()
        .flat_map(|stall| deadlocks(stall).map(|finding| (*stall, finding)))
    {
        let is_this = |truth: &Ready| {
            let cycle = truth.cycle.as_ref();
            cycle.is_some_and(|cycle| verdict::is_ring(finding, cycle))
        };
        match truths.iter().position(is_this) {
            Some(number) => seen[number] += 1,
            None => wrong.push(format!("{finding:?} in {stall:#?}")),
        }
    }
    let is_ended = matches!(events.last(), Some(Event::Summary { .. }));
    assert!(is_ended, "watch ended early: {}", watched.stderr);
    eprintln!(
        "soak: {} reports of stalls, those of the deadlocks {seen:?}, peak {} MiB",
        stalls.len(),
        watched.peak_rss_kib >> 10
    );
    assert!(
        wrong.is_empty(),
        "called deadlocks and are none:\n{}\ntruths: {truths:#?}",
        wrong.join("\n")
    );
    assert!(
        seen.iter().all(|count| *count > 0),
        "not all deadlocks were found: {seen:?}\ntruths: {truths:#?}\nlast words: {}",
        watched.stderr
    );
}

#[test]
#[ignore = "live: needs root, BPF and stress-ng on the running kernel; run by cargo xtask test"]
fn only_deadlocks_are_called_so_in_a_busy_host() {
    let length = length();
    let scratch = Scratch::mount();
    let watch = watch(length);
    let begun = Instant::now();
    let load = load(&scratch, length);
    let truths = set_off(begun, length);

    let loaded = load.end(length + PATIENCE).unwrap();
    assert_eq!(loaded.code(), Some(0), "{}", loaded.describe());
    watch.signal(Signal::SIGINT);
    let watched = watch.end(PATIENCE).unwrap();
    judge(&watched, &truths);
    assert_eq!(watched.code(), Some(1), "{}", watched.stderr);
}
