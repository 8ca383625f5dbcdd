//! `lockwatch diagnose` on tasks that hang in uninterruptible sleep.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use lockwatch_tests::{
    clock,
    trial::{
        self, Ended, Lab, Program, Report,
        report::{Awaits, Finding, Hung},
    },
    truth::{Ready, Scenario, Tid},
};

/// From when on a sleep is a hang, here.
const HANG: Duration = Duration::from_millis(1_500);

/// After this long whoever sleeps hangs.
const SETTLED: Duration = Duration::from_secs(3);

/// It is killed then, if its deadline is no longer than half of it.
const LIMIT: Duration = Duration::from_secs(20);

/// As many as in the incident; fewer on an emulated machine.
const CROWD: u32 = 1_469;
const SMALL_CROWD: u32 = 100;

fn diagnose(options: &[&str]) -> Ended {
    let deadline = trial::bound(trial::PROMISE);
    let mut command = Command::new(trial::lockwatch().unwrap());
    command.args(trial::diagnose_within(deadline)).args(options);
    Program::run(&mut command, deadline.max(LIMIT / 2) * 2).unwrap()
}

/// What is said of sleeps of a second and a half or longer.
fn hangs() -> (Report, Ended) {
    let ended = diagnose(&["--format", "json", "--hung-task", "1500ms"]);
    let report = Report::read(&ended).unwrap();
    (report, ended)
}

fn tids(hung: &Hung) -> BTreeSet<Tid> {
    hung.tasks.iter().map(|task| task.tid).collect()
}

fn findings(report: &Report) -> Vec<&Finding> {
    let findings = report.findings.iter();
    findings.filter(|it| it.detector == "hung-task").collect()
}

/// Each group has one finding of its own with the same tasks, and nobody has slept for
/// longer than the stall can have stood.
fn check(report: &Report, ended: &Ended, begun_ns: u64) {
    let said = findings(report);
    assert_eq!(said.len(), report.hung.len(), "{}", ended.describe());
    for hung in &report.hung {
        let tasks: Vec<Tid> = hung.tasks.iter().map(|task| task.tid).collect();
        let its = said.iter().filter(|finding| finding.tasks == tasks);
        assert_eq!(its.count(), 1, "{}", ended.describe());
        for task in &hung.tasks {
            let longest = ended.ended_ns - begun_ns;
            let least = HANG.as_nanos() as u64;
            assert!(
                (least..=longest).contains(&task.asleep_ns),
                "{task:?}, of {longest} ns\n{}",
                ended.describe()
            );
        }
    }
}

/// The only group for which this is so.
fn only<'a>(report: &'a Report, ended: &Ended, is_it: impl Fn(&Hung) -> bool) -> &'a Hung {
    let found: Vec<&Hung> = report.hung.iter().filter(|hung| is_it(hung)).collect();
    let [hung] = found.as_slice() else {
        panic!("{} groups: {}", found.len(), ended.describe())
    };
    hung
}

/// The group that waits for the lock that the lab holds.
fn on_the_lock<'a>(report: &'a Report, ended: &Ended, truth: &Ready) -> &'a Hung {
    let lock = report
        .locks
        .iter()
        .find(|lock| lock.name.starts_with(&truth.lock.name));
    let id = &lock.unwrap_or_else(|| panic!("{}", ended.describe())).id;
    let hung = only(report, ended, |hung| {
        hung.awaits == Awaits::Lock(id.clone())
    });
    let said = findings(report);
    let its: Vec<_> = said.iter().filter(|it| it.locks.contains(id)).collect();
    assert_eq!(its.len(), 1, "one finding for a lock: {}", ended.describe());
    hung
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn behind_a_block_device_and_behind_who_waits_for_it() {
    let begun_ns = clock::monotonic_ns();
    let Some(lab) = Lab::raise_or_skip(Scenario::BlockIoHeld, 4).unwrap() else {
        return;
    };
    let truth = lab.truth.clone();
    thread::sleep(SETTLED);
    let (report, ended) = hangs();
    let text = diagnose(&["--hung-task", "1500ms"]);
    let later = diagnose(&["--format", "json", "--hung-task", "1h"]);
    let never = diagnose(&["--format", "json", "--hung-task", "0s"]);
    lab.finish().unwrap();

    check(&report, &ended, begun_ns);
    let waiters: BTreeSet<Tid> = truth.waiters.iter().map(|waiter| waiter.tid).collect();
    assert_eq!(tids(on_the_lock(&report, &ended, &truth)), waiters);
    let device = truth.device.unwrap();
    let hung = only(&report, &ended, |hung| {
        hung.awaits == Awaits::Device(device.clone())
    });
    // Threads of the file system may wait for the same device, and none of the lab's.
    let holder = truth.holders[0].tid;
    let holders = hung.tasks.iter().filter(|task| task.tid == holder);
    let told: Vec<_> = holders.map(|task| (task.io_wait, task.killable)).collect();
    assert_eq!(told, [(true, false)], "{}", ended.describe());
    for decoy in &truth.decoys {
        let mut groups = report.hung.iter();
        let is_told = groups.any(|hung| tids(hung).contains(&decoy.tid));
        assert!(!is_told, "{decoy:?}: {}", ended.describe());
    }
    assert!(
        text.stdout
            .contains("4 tasks in state D for 1.5s or longer"),
        "{}",
        text.describe()
    );
    for ended in [later, never] {
        let report = Report::read(&ended).unwrap();
        assert!(report.hung.is_empty() && findings(&report).is_empty());
        assert!(!report.locks.is_empty(), "the stall itself is there");
    }
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_killed_client_of_a_fuse_daemon() {
    let begun_ns = clock::monotonic_ns();
    let Some(lab) = Lab::raise_bare_or_skip(Scenario::InodeWriteHeld, 2).unwrap() else {
        return;
    };
    let sibling = Path::new(&lab.truth.mount).join("sibling");
    let mut killed = (0..ATTEMPTS).filter_map(|_| killed_client(&sibling));
    let mut client = killed.next().expect("a client that cannot die");
    let tid = Tid(client.id() as i32);
    thread::sleep(SETTLED);
    let (report, ended) = hangs();
    let text = diagnose(&["--hung-task", "1500ms"]);
    lab.finish().unwrap();
    client.wait().unwrap();

    check(&report, &ended, begun_ns);
    let hung = only(&report, &ended, |hung| {
        matches!(
            hung.awaits,
            Awaits::Fuse {
                connection: Some(_)
            }
        )
    });
    assert_eq!(tids(hung), BTreeSet::from([tid]), "{}", ended.describe());
    assert!(!hung.tasks[0].killable, "it has been killed");
    assert_eq!(ended.code(), Some(1));
    let heading = format!("{}    HUNG", hung.name);
    assert!(text.stdout.contains(&heading), "{}", text.describe());
    assert!(
        text.stdout.contains("can be aborted"),
        "{}",
        text.describe()
    );
}

/// Who is killed before the daemon has read its request dies at once, and is no client.
const ATTEMPTS: u32 = 5;

/// Time for the daemon to read a request.
const READ: Duration = Duration::from_millis(200);

/// A process that lists a directory, whose answer is late, and that is killed meanwhile: what
/// the daemon has read must be answered. `None` if it died all the same.
fn killed_client(directory: &Path) -> Option<Child> {
    let mut client = Command::new("ls")
        .arg(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for(&client, "S");
    thread::sleep(trial::bound(READ));
    client.kill().unwrap();
    if wait_for(&client, "DZ") == 'D' {
        return Some(client);
    }
    client.wait().unwrap();
    None
}

/// Waits until the process lists a directory, or is dead, in one of these states; which one.
fn wait_for(client: &Child, states: &str) -> char {
    let deadline = Instant::now() + trial::bound(Duration::from_secs(10));
    loop {
        let read = |file| fs::read_to_string(format!("/proc/{}/{file}", client.id()));
        let (stat, stack) = (read("stat").unwrap(), read("stack").unwrap());
        let state = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.chars().next());
        let state = state.filter(|&state| states.contains(state));
        if let Some(state) = state
            && (state == 'Z' || stack.contains("iterate_dir"))
        {
            return state;
        }
        assert!(Instant::now() < deadline, "not in {states}: {stat}{stack}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn all_tasks_on_one_lock_are_one_finding() {
    let is_emulated = trial::bound(HANG) > HANG;
    let crowd = if is_emulated { SMALL_CROWD } else { CROWD };
    let begun_ns = clock::monotonic_ns();
    let lab = Lab::raise(Scenario::Incident, crowd).unwrap();
    let truth = lab.truth.clone();
    thread::sleep(SETTLED);
    let (report, ended) = hangs();
    lab.finish().unwrap();

    check(&report, &ended, begun_ns);
    let hung = on_the_lock(&report, &ended, &truth);
    assert_eq!(hung.tasks.len(), crowd as usize);
    let said = findings(&report);
    let sentence = &said
        .iter()
        .find(|it| !it.locks.is_empty())
        .unwrap()
        .sentence;
    assert!(sentence.contains(&hung.name), "{sentence}");
    eprintln!("{sentence}; told in {:?}", ended.took);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn nothing_hangs_on_a_quiet_host() {
    let ended = diagnose(&["--format", "json", "--hung-task", "1500ms"]);
    let report = Report::read(&ended).unwrap();
    assert!(report.hung.is_empty(), "{}", ended.describe());
    assert!(findings(&report).is_empty(), "{}", ended.describe());
}
