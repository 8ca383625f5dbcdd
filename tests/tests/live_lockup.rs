//! `lockwatch watch` while a CPU is locked up, or tasks hang without a lock.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::{
    env,
    fs::{self, File},
    io::{self, Read as _, Seek as _},
    os::unix::fs::OpenOptionsExt as _,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use lockwatch_tests::{
    clock,
    trial::{
        self, Program,
        lockup::{Finding, Line, Made, generator},
    },
    truth::{Hung, LockedUp, LockupScenario, Scenario, Tid},
};
use nix::{
    libc,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::signal::Signal,
    unistd::Pid,
};

/// How long `watch` may take to be ready, and to end when told to.
const PATIENCE: Duration = Duration::from_secs(10);

/// From here on a CPU is locked up, and tasks hang.
const SOFT: Duration = Duration::from_secs(2);
const HARD: Duration = Duration::from_secs(3);

/// A finding comes this long after its threshold at the latest.
const PROMPT: Duration = Duration::from_secs(2);

/// How exact the length of one must be.
const EXACT: Duration = Duration::from_millis(1500);

/// How long a lockup lasts: no longer than a machine that others use can bear.
fn hold(threshold: Duration) -> Duration {
    if is_own_machine() {
        // The kernel's own detector says something, too.
        Duration::from_secs(20)
    } else {
        threshold + PROMPT + Duration::from_secs(1)
    }
}

fn is_own_machine() -> bool {
    env::var("LOCKWATCH_OWN_MACHINE").is_ok_and(|value| value == "1")
}

/// A `watch` that looks for what hangs. Dropped, it is killed.
struct Watch {
    program: Program,
    findings: Vec<Finding>,
    /// Number, detector and length of what has ended.
    ended: Vec<(u64, String, u64)>,
}

impl Watch {
    /// Tasks hang from `hung` on.
    fn start(hung: &str) -> Self {
        let mut command = Command::new(trial::lockwatch().unwrap());
        command.args(["watch", "--format", "json", "--priority", "50"]);
        command.args(["--soft-lockup", "2s", "--hard-lockup", "3s"]);
        command.args(["--hung-task", hung]);
        let mut program = Program::start(&mut command).unwrap();
        let begun = Instant::now();
        loop {
            let line = program.err_line(trial::bound(PATIENCE)).unwrap();
            let line = line.unwrap_or_else(|| panic!("watch ended: {}", program.stderr_so_far()));
            if line.starts_with("watching") {
                break;
            }
            assert!(
                begun.elapsed() < trial::bound(PATIENCE),
                "{}watch is not ready: {line}",
                trial::NO_FAIR_TRIAL
            );
        }
        Self {
            program,
            findings: Vec::new(),
            ended: Vec::new(),
        }
    }

    /// Takes lines until `is_enough`.
    fn listen(&mut self, what: &str, limit: Duration, is_enough: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + limit;
        while !is_enough(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.program.out_line(left) {
                Ok(Some(line)) => self.take(&line),
                Ok(None) => panic!(
                    "watch ended before {what}: {}",
                    self.program.stderr_so_far()
                ),
                Err(error) => panic!(
                    "{}{what} was not seen within {limit:?}: {error:#}\n{:#?}",
                    trial::NO_FAIR_TRIAL,
                    self.findings
                ),
            }
        }
    }

    fn take(&mut self, line: &str) {
        match serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")) {
            Line::Finding(finding) => self.findings.push(*finding),
            Line::FindingEnded {
                finding,
                detector,
                length_ns,
            } => self.ended.push((finding, detector, length_ns)),
            Line::Other => {}
        }
    }

    /// Ends it, and takes what it still says. Nothing but the one finding may be among it.
    fn end(mut self, number: u64) {
        self.program.signal(Signal::SIGINT);
        while let Some(line) = self.program.out_line(trial::bound(PATIENCE)).unwrap() {
            self.take(&line);
        }
        let others: Vec<&Finding> = self
            .findings
            .iter()
            .filter(|finding| finding.finding != number)
            .collect();
        assert!(others.is_empty(), "something else is found: {others:#?}");
        let found = self.findings.iter().filter(|one| one.reason == "found");
        assert_eq!(
            found.count(),
            1,
            "told more than once: {:#?}",
            self.findings
        );
        assert_eq!(self.ended.len(), 1, "ends: {:?}", self.ended);
    }
}

/// The kernel's log from now on.
struct Log(File);

impl Log {
    fn from_now() -> Self {
        let mut options = File::options();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        let mut device = options.open("/dev/kmsg").unwrap();
        device.seek(io::SeekFrom::End(0)).unwrap();
        Self(device)
    }

    /// The texts that came since.
    fn lines(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut buffer = [0; 8192];
        loop {
            match self.0.read(&mut buffer) {
                Ok(length) => {
                    let record = String::from_utf8_lossy(&buffer[..length]);
                    let line = record.lines().next().unwrap_or_default();
                    let text = line.split_once(';').map_or(line, |(_, text)| text);
                    lines.push(text.to_owned());
                }
                // Records that were overwritten before they were read.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return lines,
                Err(error) => panic!("/dev/kmsg: {error}"),
            }
        }
    }
}

/// A setting of the kernel of our own machine, which is put back.
struct Setting {
    path: &'static str,
    before: String,
}

impl Setting {
    /// `None` where the kernel has no such setting.
    fn set(path: &'static str, value: &str) -> Option<Self> {
        assert!(is_own_machine(), "the kernel's settings are not ours");
        let before = fs::read_to_string(path).ok()?;
        fs::write(path, value).unwrap();
        Some(Self { path, before })
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = fs::write(self.path, self.before.trim());
    }
}

/// Half the time after which the kernel takes a CPU for locked up, s.
const WATCHDOG_THRESH: &str = "4";

/// CPU, comm and thread of `watchdog: BUG: soft lockup - CPU#1 stuck for 9s! [comm:12]`.
fn soft_lockup_of_kernel(line: &str) -> Option<(u32, String, Tid)> {
    let (_, rest) = line.split_once("BUG: soft lockup - CPU#")?;
    let (cpu, rest) = rest.split_once(' ')?;
    let (_, task) = rest.split_once('[')?;
    let (comm, tid) = task.trim_end().trim_end_matches(']').rsplit_once(':')?;
    Some((cpu.parse().ok()?, comm.to_owned(), Tid(tid.parse().ok()?)))
}

fn try_lockup(scenario: LockupScenario) {
    let (detector, threshold) = if scenario.is_hard() {
        ("hard-lockup", HARD)
    } else {
        ("soft-lockup", SOFT)
    };
    let hold = hold(threshold);
    let mut log = is_own_machine().then(Log::from_now);
    let _quick = is_own_machine()
        .then(|| Setting::set("/proc/sys/kernel/watchdog_thresh", WATCHDOG_THRESH))
        .flatten();
    // The waiters for its lock are not what this is about.
    let mut watch = Watch::start("600s");
    let Some(lab) = Made::lock_up(scenario, hold).unwrap() else {
        return;
    };
    let limit = threshold + trial::bound(PROMPT);
    watch.listen(detector, limit, |watch| !watch.findings.is_empty());
    let told_ns = clock::monotonic_ns();
    assert!(
        told_ns < lab.truth.ends_at_ns,
        "{}it was told only when it was over",
        trial::NO_FAIR_TRIAL
    );
    let first = watch.findings[0].clone();
    assert_eq!(first.detector, detector, "{first:#?}");
    assert_eq!(first.reason, "found", "{first:#?}");
    let lockup = first.lockup.as_ref().unwrap();
    let wrong = lockup.complaints(&lab.truth, &first.stacks);
    assert!(
        wrong.is_empty(),
        "should be:\n  {}\nbut: {first:#?}\ntruth: {:#?}",
        wrong.join("\n  "),
        lab.truth
    );
    let truth = lab.truth.clone();
    let held = lab.outlast().unwrap().held_ns;
    watch.listen("its end", trial::bound(PATIENCE), |watch| {
        !watch.ended.is_empty()
    });
    let (number, _, length) = watch.ended[0].clone();
    assert_eq!(number, first.finding);
    let exact = trial::bound(EXACT).as_nanos() as u64;
    assert!(
        length.abs_diff(held) <= exact,
        "it lasted {held} ns, not {length}"
    );
    watch.end(number);
    if let Some(log) = &mut log {
        of_kernel(log, &truth);
    }
}

/// What the kernel says of a lockup is about the same CPU and task.
fn of_kernel(log: &mut Log, truth: &LockedUp) {
    let lines = log.lines();
    let told: Vec<_> = lines
        .iter()
        .filter_map(|line| soft_lockup_of_kernel(line))
        .collect();
    if truth.scenario.is_hard() {
        assert_eq!(told, [], "{lines:#?}");
        return;
    }
    assert!(!told.is_empty(), "the kernel says nothing: {lines:#?}");
    for (cpu, comm, tid) in told {
        assert_eq!(cpu, truth.cpu);
        if !matches!(truth.scenario, LockupScenario::SoftLockupTimers) {
            assert_eq!((comm, tid), (truth.task.comm.clone(), truth.task.tid));
        }
    }
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_task_that_spins_under_its_mmap_lock() {
    try_lockup(LockupScenario::SoftLockupTask);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_softirq_that_receives_a_packet_for_ever() {
    try_lockup(LockupScenario::SoftLockupSoftirq);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn timers_that_have_piled_up() {
    try_lockup(LockupScenario::SoftLockupTimers);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_cpu_without_interrupts() {
    // In a machine of our own only: the lab refuses elsewhere.
    if !is_own_machine() {
        eprintln!("skipped: hard-lockup: only virtual machines of our own may lose a CPU");
        return;
    }
    try_lockup(LockupScenario::HardLockup);
}

fn try_hung(scenario: Scenario) {
    const TASKS: u32 = 5;
    let threshold = Duration::from_secs(2);
    let hold = threshold + trial::bound(PROMPT) + Duration::from_secs(1);
    let mut watch = Watch::start("2s");
    let Some(lab) = Made::hang(scenario, TASKS, hold).unwrap() else {
        return;
    };
    let limit = threshold + trial::bound(PROMPT);
    watch.listen("hung-task", limit, |watch| !watch.findings.is_empty());
    let first = watch.findings[0].clone();
    assert_hung(&first, &lab.truth);
    lab.outlast().unwrap();
    watch.listen("its end", trial::bound(PATIENCE), |watch| {
        !watch.ended.is_empty()
    });
    watch.end(first.finding);
}

/// All of the tasks and no other are in one finding.
fn assert_hung(finding: &Finding, truth: &Hung) {
    assert_eq!(finding.detector, "hung-task", "{finding:#?}");
    assert!(finding.lockup.is_none(), "{finding:#?}");
    let hung = finding.hung.as_ref().unwrap().to_string();
    let mut found = finding.tasks.clone();
    found.sort();
    let mut tasks: Vec<Tid> = truth.tasks.iter().map(|task| task.tid).collect();
    tasks.sort();
    assert_eq!(found, tasks, "{finding:#?}\n{hung}");
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn clients_of_fuse_that_hang_after_a_fatal_signal() {
    try_hung(Scenario::HungFuseKilled);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn tasks_that_hang_for_one_page() {
    try_hung(Scenario::HungFolio);
}

/// A run of the kernel's own maker of lockups, with a task that could run on the same CPU.
/// The module does its work while it is loaded, and is not loaded then: insmod fails at its
/// end.
fn generate(module: &str, parameters: &[&str]) -> thread::JoinHandle<()> {
    let mut insmod = Command::new("insmod");
    insmod.arg(module).args(parameters);
    let mut busy = Command::new("sh");
    busy.args(["-c", "while :; do :; done"]);
    thread::spawn(move || {
        bind_to_last_cpu();
        // Dropped, it is killed.
        let _busy = Program::start(busy.stdin(Stdio::null())).unwrap();
        let ended = Program::run(&mut insmod, Duration::from_secs(90)).unwrap();
        // EAGAIN: it has done it (lib/test_lockup.c, the end of `test_lockup_init`).
        assert!(
            ended.stderr.contains("temporarily unavailable"),
            "{}",
            ended.describe()
        );
    })
}

/// The calling thread, and the processes that it starts.
fn bind_to_last_cpu() {
    let here = Pid::from_raw(0);
    let allowed = sched_getaffinity(here).unwrap();
    let cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap());
    let mut last = CpuSet::new();
    last.set(cpus.last().unwrap()).unwrap();
    sched_setaffinity(here, &last).unwrap();
}

/// What the kernel's own generator makes: parameters, detector and context.
fn try_generator(parameters: &[&str], detector: &str, is_right: impl Fn(&Finding) -> bool) {
    let module = match generator() {
        Ok(module) => module,
        Err(why) => {
            eprintln!("skipped: test-lockup: {why}");
            return;
        }
    };
    // The lab's word keeps the machine from taking this for its end (xtask/src/vm).
    fs::write("/dev/kmsg", "lockup-lab: a CPU is locked up on purpose\n").unwrap();
    let mut watch = Watch::start("2s");
    let generated = generate(&module, parameters);
    watch.listen(detector, trial::bound(PATIENCE), |watch| {
        !watch.findings.is_empty()
    });
    let first = watch.findings[0].clone();
    assert_eq!(first.detector, detector, "{first:#?}");
    assert!(is_right(&first), "{first:#?}");
    generated.join().unwrap();
    watch.listen("its end", trial::bound(PATIENCE), |watch| {
        !watch.ended.is_empty()
    });
    watch.end(first.finding);
    fs::write("/dev/kmsg", "lockup-lab: the lockup is over\n").unwrap();
}

/// The task on the CPU is insmod, and the module's function is where it spins.
fn is_insmod(finding: &Finding, is_interrupted: bool) -> bool {
    let Some(lockup) = &finding.lockup else {
        return false;
    };
    let task = lockup.task.as_ref();
    task.is_some_and(|task| task.comm == "insmod") && lockup.interrupted == is_interrupted
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn the_kernels_own_soft_lockup() {
    let parameters = ["time_secs=12", "state=R", "disable_preempt=1"];
    try_generator(&parameters, "soft-lockup", |found| is_insmod(found, false));
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn the_kernels_own_hard_lockup() {
    let parameters = ["time_secs=14", "state=R", "disable_irq=1"];
    try_generator(&parameters, "hard-lockup", |found| is_insmod(found, false));
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn the_kernels_own_hung_task() {
    let parameters = ["time_secs=12", "state=D"];
    try_generator(&parameters, "hung-task", |found| {
        found.hung.is_some() && found.tasks.len() == 1
    });
}
