//! `lockwatch watch` beside a healthy load that contends for locks, CPUs and a disk all the
//! time, with three deadlocks, a soft lockup and a group of hanging tasks in it: these are
//! found, and nothing else is called one.
//!
//! It takes `LOCKWATCH_SOAK_SECONDS`, three minutes if that is unset.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod soak;

use std::{
    env, fs,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use lockwatch_tests::{
    clock,
    trial::{Lab, Program, lockup::Made},
    truth::{LockupScenario, Scenario},
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::mkdtemp,
};

use self::soak::{
    judge,
    listener::Listener,
    truths::{Made as Truth, What},
};

const SECONDS: &str = "LOCKWATCH_SOAK_SECONDS";
const USUAL: Duration = Duration::from_secs(180);

/// What is set off.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    Deadlock(Scenario),
    Lockup(LockupScenario),
    Hang(Scenario),
}

/// In this order, each at a random time in its share of the whole.
const TROUBLES: [Trouble; 5] = [
    Trouble::Deadlock(Scenario::DeadlockFuseDirectory),
    Trouble::Lockup(LockupScenario::SoftLockupTask),
    Trouble::Deadlock(Scenario::DeadlockBehindWriter),
    Trouble::Hang(Scenario::HungFuseKilled),
    Trouble::Deadlock(Scenario::DeadlockFuseTwoMounts),
];

impl Trouble {
    /// How long it stands: `watch` has to see it among everything else.
    fn hold(self) -> Duration {
        match self {
            Self::Deadlock(_) => Duration::from_secs(6),
            // Other machines' users wait for that CPU, too.
            Self::Lockup(_) => Duration::from_millis(4500),
            Self::Hang(_) => soak::HUNG + Duration::from_secs(4),
        }
    }

    /// Makes it, and waits for its end.
    fn set_off(self) -> What {
        match self {
            Self::Deadlock(scenario) => {
                let lab = Lab::raise_for(scenario, 3, self.hold()).unwrap();
                let truth = lab.truth.clone();
                lab.outlast().unwrap();
                What::Deadlock(Box::new(truth))
            }
            Self::Lockup(scenario) => {
                let lab = Made::lock_up(scenario, self.hold()).unwrap().unwrap();
                let truth = lab.truth.clone();
                lab.outlast().unwrap();
                What::Lockup(Box::new(truth))
            }
            Self::Hang(scenario) => {
                let lab = Made::hang(scenario, 3, self.hold()).unwrap().unwrap();
                let truth = lab.truth.clone();
                lab.outlast().unwrap();
                What::Hang(Box::new(truth))
            }
        }
    }
}

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

/// A folder on a disk for the load. Dropped, it is removed.
struct OnDisk(PathBuf);

impl OnDisk {
    fn make() -> Self {
        Self(mkdtemp("/var/tmp/lockwatch-soak-XXXXXX").unwrap())
    }
}

impl Drop for OnDisk {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn stress_ng(at: &PathBuf, length: Duration, what: &[&str]) -> Program {
    let mut command = Command::new("stress-ng");
    command.args(what).arg("--oomable");
    command.args(["--timeout", &format!("{}s", length.as_secs())]);
    command.arg("--temp-path").arg(at);
    Program::start(&mut command).unwrap_or_else(|error| {
        panic!("{error:#}: `cargo xtask test` installs the package stress-ng")
    })
}

/// Address spaces, forks, directories and names, each changed by several at once; more tasks
/// in user mode than there are CPUs; and a disk.
fn load(scratch: &Scratch, disk: &OnDisk, length: Duration) -> [Program; 2] {
    let locks = [
        ["--mmap", "2"],
        ["--mmap-bytes", "64m"],
        ["--fork", "2"],
        ["--dir", "3"],
        ["--filename", "3"],
        ["--cpu", "2"],
    ];
    [
        stress_ng(&scratch.0, length, locks.as_flattened()),
        stress_ng(&disk.0, length, &["--hdd", "1", "--hdd-bytes", "32m"]),
    ]
}

/// Sets each trouble off in its share of the time; returns what was made.
fn set_off(begun: Instant, length: Duration) -> Vec<Truth> {
    let share = length / TROUBLES.len() as u32;
    let mut made = Vec::new();
    for (number, trouble) in (0..).zip(TROUBLES) {
        let spare = share.checked_sub(trouble.hold() + AROUND);
        let spare = spare.unwrap_or_else(|| {
            panic!("{length:?} is too short for {trouble:?}: make {SECONDS} longer")
        });
        let at = share * number + clock::at_random(spare);
        thread::sleep(at.saturating_sub(begun.elapsed()));
        let since_ns = clock::monotonic_ns();
        let what = trouble.set_off();
        eprintln!("{trouble:?} until {:?}", begun.elapsed());
        let until_ns = clock::monotonic_ns();
        made.push(Truth {
            what,
            since_ns,
            until_ns,
        });
    }
    made
}

#[test]
#[ignore = "live: needs root, BPF and stress-ng on the running kernel; run by cargo xtask test"]
fn only_what_hangs_is_called_so_in_a_busy_host() {
    let length = length();
    let (scratch, disk) = (Scratch::mount(), OnDisk::make());
    let watch = Listener::start(length + 4 * PATIENCE, PATIENCE);
    let begun = Instant::now();
    let load = load(&scratch, &disk, length);
    let made = set_off(begun, length);

    for program in load {
        let loaded = program.end(length + PATIENCE).unwrap();
        assert_eq!(loaded.code(), Some(0), "{}", loaded.describe());
    }
    let (heard, watched) = watch.end();
    judge::deadlocks(&watched, &made);
    judge::hangs(&heard, &made);
    assert_eq!(watched.code(), Some(1), "{}", watched.stderr);
}
