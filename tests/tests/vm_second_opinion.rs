//! What the kernel's own hung-task detector says of a stall, beside what lockwatch says. In a
//! virtual machine only, for the detector has to be told to be quick.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use lockwatch::{
    detect::{Scene, Thresholds, second_opinion},
    graph::chain::chains,
    kernel_log::{Message, Said},
    lock::Lock,
    sleeper::Sleeper,
    survey::{Survey, SurveyOptions, Surveyor},
    task::Nanos,
};
use lockwatch_tests::{
    clock,
    trial::{self, Ended, Lab, Program, Report},
    truth::{Ready, Scenario, Waiter},
};
use nix::libc;

/// The kernel's detector is set to so many seconds.
const TIMEOUT: u64 = 2;

/// It looks each [`TIMEOUT`], and counts from the first time.
const PATIENCE: Duration = Duration::from_secs(3 * TIMEOUT);

/// The stall ends then by itself: an emulated machine is slow.
const HOLD: Duration = Duration::from_secs(60);

/// `diagnose` is killed then.
const LIMIT: Duration = Duration::from_secs(10);

/// How far a message's time may be off, as `detect::second_opinion` grants it.
const CLOCKS_NS: u64 = 1_000_000_000;

/// A setting of the kernel, which is put back.
struct Setting {
    path: PathBuf,
    before: String,
}

impl Setting {
    fn set(name: &str, value: &str) -> Self {
        // xtask/src/vm/init.sh: no machine but these has it.
        assert!(
            Path::new("/plan").is_file(),
            "this is no virtual machine of `cargo xtask vm`: the kernel's settings are not ours"
        );
        let path = Path::new("/proc/sys/kernel").join(name);
        let before = fs::read_to_string(&path).unwrap();
        fs::write(&path, value).unwrap();
        Self { path, before }
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = fs::write(&self.path, &self.before);
    }
}

/// The kernel's log from now on, as a stranger reads it.
struct Log(File);

impl Log {
    fn from_now() -> Self {
        use io::Seek as _;
        let mut options = File::options();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        let mut device = options.open("/dev/kmsg").unwrap();
        device.seek(io::SeekFrom::End(0)).unwrap();
        Self(device)
    }

    /// The lines that came since, without what is before their text.
    fn lines(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut buffer = [0; 8192];
        loop {
            match self.0.read(&mut buffer) {
                Ok(length) => {
                    let record = String::from_utf8_lossy(&buffer[..length]);
                    let line = record.lines().next().unwrap_or_default();
                    let (_, text) = line.split_once(';').unwrap();
                    lines.push(text.to_owned());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return lines,
                Err(error) => panic!("/dev/kmsg: {error}"),
            }
        }
    }
}

/// Those of the waiters that the kernel's detector looks at.
fn unkillable(truth: &Ready) -> Vec<&Waiter> {
    let waiters = truth.waiters.iter();
    waiters.filter(|waiter| !waiter.killable).collect()
}

/// `INFO: task C:P blocked for more than …`, of this waiter.
fn names(line: &str, waiter: &Waiter) -> bool {
    let who = format!("INFO: task {}:{} blocked ", waiter.comm, waiter.tid.0);
    line.starts_with(&who) && line.ends_with(" seconds.")
}

/// Waits until the kernel has named all that it can; gives what it said.
fn wait_for_the_kernel(log: &mut Log, truth: &Ready) -> Vec<String> {
    let began = Instant::now();
    let mut lines = Vec::new();
    let is_named = |lines: &[String], waiter: &Waiter| lines.iter().any(|line| names(line, waiter));
    loop {
        lines.extend(log.lines());
        let all = unkillable(truth);
        if all.iter().all(|waiter| is_named(&lines, waiter)) {
            // The owner is named after the stack.
            thread::sleep(Duration::from_millis(500));
            lines.extend(log.lines());
            return lines;
        }
        assert!(
            began.elapsed() < trial::bound(PATIENCE),
            "the kernel did not name {all:#?}: {lines:#?}"
        );
        thread::sleep(Duration::from_millis(50));
    }
}

fn survey(surveyor: &mut Surveyor) -> Survey {
    let options = SurveyOptions {
        deadline: trial::bound(trial::PROMISE),
        ..SurveyOptions::default()
    };
    surveyor.survey(&options, &[]).unwrap()
}

/// With what the kernel calls hanging here.
fn diagnose() -> Ended {
    let mut command = Command::new(trial::lockwatch().unwrap());
    command.args(trial::diagnose());
    command.args(["--format", "json", "--threshold", "1ms"]);
    command.args(["--hung-task", &format!("{TIMEOUT}s")]);
    Program::run(&mut command, trial::bound(LIMIT)).unwrap()
}

fn the_lock<'s>(survey: &'s Survey, truth: &Ready) -> &'s Lock {
    let mut locks = survey.locks.iter();
    let found = locks.find(|lock| lock.name == truth.lock.name);
    found.unwrap_or_else(|| panic!("{truth:#?} {survey:#?}"))
}

/// What is said of these waiters.
fn opinion(survey: &Survey, truth: &Ready, waiters: &[&Waiter]) -> String {
    let chains = chains(&survey.locks, &survey.daemons);
    let scene = Scene::new(survey, &chains, Thresholds::of_waits(Nanos(1)));
    let is_of_them = |sleeper: &&Sleeper| {
        let tid = sleeper.task.key.tid.0 as i32;
        waiters.iter().any(|waiter| waiter.tid.0 == tid)
    };
    let sleepers: Vec<&Sleeper> = survey.sleepers.iter().filter(is_of_them).collect();
    assert_eq!(sleepers.len(), waiters.len(), "{waiters:#?} {survey:#?}");
    let lock = the_lock(survey, truth);
    second_opinion::of_hung_tasks(&scene, &sleepers, Some(lock)).unwrap()
}

#[test]
#[ignore = "live: needs root and BPF on a kernel whose settings may be changed; run by cargo xtask vm"]
fn the_kernel_names_the_same_tasks() {
    let _timeout = Setting::set("hung_task_timeout_secs", &TIMEOUT.to_string());
    let _warnings = Setting::set("hung_task_warnings", "100");
    let mut log = Log::from_now();
    let began_ns = clock::monotonic_ns();
    let lab = Lab::raise_at_most(Scenario::InodeWriteHeld, 4, HOLD).unwrap();
    let truth = lab.truth.clone();
    let lines = wait_for_the_kernel(&mut log, &truth);
    let survey = survey(&mut Surveyor::open().unwrap());
    let ended = diagnose();
    lab.finish().unwrap();
    for line in lines.iter().filter(|line| line.contains("INFO: task ")) {
        eprintln!("the kernel: {line}");
    }

    // Every message is there, with the time when it was printed.
    let kernel_log = &survey.kernel_log;
    assert_eq!(kernel_log.unread, None);
    let hung_task = kernel_log.detectors.unwrap().hung_task;
    assert_eq!(hung_task, Some(Nanos(TIMEOUT * 1_000_000_000)));
    let unkillable = unkillable(&truth);
    assert!(unkillable.len() >= 2, "{truth:#?}");
    for waiter in &unkillable {
        let is_of = |message: &&Message| match &message.said {
            Said::HungTask { task, .. } => {
                task.tid.0 as i32 == waiter.tid.0 && task.comm == waiter.comm
            }
            _ => false,
        };
        let message = kernel_log.messages.iter().find(is_of);
        let message = message.unwrap_or_else(|| panic!("{waiter:#?} {kernel_log:#?}"));
        let (earliest, latest) = (began_ns - CLOCKS_NS, survey.taken_at_ns + CLOCKS_NS);
        assert!(
            (earliest..latest).contains(&message.at_ns),
            "{message:#?} is not within {earliest}..{latest}"
        );
    }

    let said = opinion(&survey, &truth, &unkillable);
    eprintln!("of {} tasks: {said}", unkillable.len());
    assert!(
        said.starts_with("the kernel's hung-task detector named all of them, first "),
        "{said}"
    );
    // And so says the finding, which is about the lock, and about nobody else.
    let report = Report::read(&ended).unwrap();
    let id = report
        .locks
        .iter()
        .find(|lock| lock.name == truth.lock.name);
    let id = &id.unwrap_or_else(|| panic!("{report:#?}")).id;
    let mut findings = report.findings.iter();
    let finding = findings.find(|one| one.detector == "hung-task" && one.locks.contains(id));
    let finding = finding.unwrap_or_else(|| panic!("{report:#?}"));
    let ours: BTreeSet<i32> = finding.tasks.iter().map(|tid| tid.0).collect();
    let waiting: BTreeSet<i32> = truth.waiters.iter().map(|waiter| waiter.tid.0).collect();
    assert_eq!(ours, waiting, "{finding:#?}");
    let told = finding.second_opinion.as_deref().unwrap_or_default();
    eprintln!("of the finding: {told}");
    let part = format!("named {} of the {}, first ", unkillable.len(), ours.len());
    assert!(told.contains(&part), "{told}");
    assert!(told.contains("it leaves killable sleepers out"), "{told}");

    // Where the kernel names an owner, it is the writer that we name.
    let holder = &truth.holders[0];
    let owner = format!(
        "likely owned by task {}:{} <writer>",
        holder.comm, holder.tid.0
    );
    let names_owner = lines.iter().any(|line| line.ends_with(&owner));
    assert_eq!(
        names_owner,
        said.contains("and so does lockwatch"),
        "{said} {lines:#?}"
    );
    assert!(!said.contains("not hold it"), "{said}");

    // The killable ones it leaves out, and of those the opinion says so.
    let killable: Vec<&Waiter> = truth.waiters.iter().filter(|one| one.killable).collect();
    assert!(!killable.is_empty(), "{truth:#?}");
    let said = opinion(&survey, &truth, &killable);
    assert!(said.contains("leaves killable sleepers out"), "{said}");
}

#[test]
#[ignore = "live: needs root and BPF on a kernel whose settings may be changed; run by cargo xtask vm"]
fn a_kernel_that_is_silent_has_its_reasons() {
    let lab = Lab::raise_at_most(Scenario::InodeWriteHeld, 3, HOLD).unwrap();
    let truth = lab.truth.clone();
    let unkillable = unkillable(&truth);
    let mut surveyor = Surveyor::open().unwrap();
    let off = {
        let _timeout = Setting::set("hung_task_timeout_secs", "0");
        opinion(&survey(&mut surveyor), &truth, &unkillable)
    };
    let early = {
        let _timeout = Setting::set("hung_task_timeout_secs", "3600");
        opinion(&survey(&mut surveyor), &truth, &unkillable)
    };
    // Seen twice as long asleep as the kernel waits, with nothing left to print.
    let used_up = {
        let _warnings = Setting::set("hung_task_warnings", "0");
        let _timeout = Setting::set("hung_task_timeout_secs", "1");
        let mut waits = Nanos(0);
        let began = Instant::now();
        while waits < Nanos(2_500_000_000) {
            assert!(began.elapsed() < trial::bound(PATIENCE), "{waits:?}");
            thread::sleep(Duration::from_millis(200));
            let standing = truth.waiters.iter().map(|waiter| waiter.queued_ns).max();
            waits = Nanos(clock::monotonic_ns() - standing.unwrap());
        }
        opinion(&survey(&mut surveyor), &truth, &unkillable)
    };
    lab.finish().unwrap();
    assert!(off.contains("is off"), "{off}");
    assert!(early.contains("its time is 1h00m"), "{early}");
    assert!(used_up.contains("its warnings are used up"), "{used_up}");
}
