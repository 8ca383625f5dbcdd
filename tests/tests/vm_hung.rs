//! Tasks that hang for an NFS server which does not answer. In a virtual machine only: the
//! kernel of whoever runs the tests may have no NFS.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod hangs;

use std::{
    collections::BTreeSet,
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use lockwatch_tests::{
    trial::{
        self, Ended, Program, Report,
        lockup::Made,
        report::{Awaits, Finding, Hung},
    },
    truth::{self, Scenario, Tid},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use self::hangs::{PATIENCE, PROMPT, Watch};

/// Half of them ask for attributes, the others for pages.
const TASKS: u32 = 6;

/// From when on a sleep is a hang, here.
const HANG: Duration = Duration::from_millis(1_500);

/// How the lab's mount names its server.
const SERVER: &str = "127.0.0.1";

/// Makes them hang for that long; `None` where the kernel has no NFS.
fn hang(hold: Duration) -> Option<Made<truth::Hung>> {
    Made::hang(Scenario::HungNfs, TASKS, hold).unwrap()
}

fn diagnose(format: &str) -> Ended {
    let deadline = trial::bound(trial::PROMISE);
    let mut command = Command::new(trial::lockwatch().unwrap());
    command.args(trial::diagnose_within(deadline)).args([
        "--format",
        format,
        "--hung-task",
        "1500ms",
    ]);
    Program::run(&mut command, deadline.max(PATIENCE) * 2).unwrap()
}

#[test]
#[ignore = "live: needs a virtual machine of its own; run by cargo xtask vm"]
fn all_who_wait_for_one_server_are_one_finding() {
    let hold = HANG + 3 * trial::bound(trial::PROMISE) + trial::bound(PROMPT);
    let mut watch = Watch::start("1500ms");
    let Some(lab) = hang(hold) else { return };
    let truth = lab.truth.clone();
    thread::sleep(HANG + trial::bound(PROMPT) / 2);
    let ended = diagnose("json");
    let text = diagnose("text");
    let report = Report::read(&ended).unwrap();

    let [hung] = report.hung.as_slice() else {
        panic!("{} groups: {}", report.hung.len(), ended.describe())
    };
    check(hung, &truth, &ended);
    let said: Vec<&Finding> = (report.findings.iter())
        .filter(|finding| finding.detector == "hung-task")
        .collect();
    let [finding] = said.as_slice() else {
        panic!("{} findings: {}", said.len(), ended.describe())
    };
    let first = &truth.tasks[0];
    let parts = [
        format!("{TASKS} tasks have hung"),
        format!("waiting for nfs server {SERVER}"),
        format!("{}[{}] longest", first.comm, first.tid.0),
        "all can be killed".to_owned(),
    ];
    for part in parts {
        assert!(finding.sentence.contains(&part), "{part}: {finding:#?}");
    }
    let heading = format!("nfs server {SERVER}    HUNG");
    assert!(text.stdout.contains(&heading), "{}", text.describe());
    assert_eq!(text.code(), Some(1));

    // And once in what is told over time, which may have come before all of them were there.
    watch.listen("hung-task", trial::bound(PATIENCE), |watch| {
        !watch.findings.is_empty()
    });
    lab.finish().unwrap();
    // Only a survey shows it, and a survey that took a second is not repeated for a minute.
    watch.listen("its end", 2 * trial::bound(PATIENCE), |watch| {
        !watch.ended.is_empty()
    });
    let first = watch.findings[0].clone();
    let hangs: BTreeSet<Tid> = truth.tasks.iter().map(|task| task.tid).collect();
    assert!(
        first.tasks.iter().all(|tid| hangs.contains(tid)),
        "{first:#?}"
    );
    watch.end(first.finding);
}

/// Exactly those who hang, the oldest first, and what they wait for.
fn check(hung: &Hung, truth: &truth::Hung, ended: &Ended) {
    let server = Awaits::Server {
        fstype: "nfs".to_owned(),
        name: Some(SERVER.to_owned()),
    };
    assert_eq!(hung.awaits, server, "{}", ended.describe());
    let tids = |tids: &mut dyn Iterator<Item = Tid>| tids.collect::<Vec<Tid>>();
    let told = tids(&mut hung.tasks.iter().map(|task| task.tid));
    let made = tids(&mut truth.tasks.iter().map(|task| task.tid));
    assert_eq!(told, made, "{}", ended.describe());
    assert!(
        hung.tasks.iter().all(|task| task.killable),
        "{}",
        ended.describe()
    );
}

#[test]
#[ignore = "live: needs a virtual machine of its own; run by cargo xtask vm"]
fn nothing_is_left_of_a_lab_that_is_killed() {
    let Some(lab) = hang(trial::bound(PATIENCE)) else {
        return;
    };
    let is_mounted = || {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts.contains(&lab.truth.mount)
    };
    assert!(is_mounted());
    kill(Pid::from_raw(lab.truth.pid.0), Signal::SIGKILL).unwrap();
    let deadline = Instant::now() + trial::bound(PATIENCE);
    while is_mounted() {
        assert!(Instant::now() < deadline, "{} is left", lab.truth.mount);
        thread::sleep(Duration::from_millis(20));
    }
    for task in &lab.truth.tasks {
        let folder = format!("/proc/{}", task.tid.0);
        while fs::metadata(&folder).is_ok() {
            assert!(Instant::now() < deadline, "{} is left", task.comm);
            thread::sleep(Duration::from_millis(20));
        }
    }
}
