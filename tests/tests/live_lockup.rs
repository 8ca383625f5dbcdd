//! `lockwatch watch` while a CPU is locked up, or tasks hang without a lock.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::{
    env,
    ffi::CString,
    fs::{self, File},
    io::{self, Read as _, Seek as _},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
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
    errno::Errno,
    libc,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::{
        signal::Signal,
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork},
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

/// Name of the process that runs the kernel's own maker of lockups.
const GENERATOR: &str = "lab-generator";

/// A run of the kernel's own maker of lockups, on the last CPU. Dropped, it is waited for.
struct Generated {
    pid: Pid,
    since: Instant,
}

impl Generated {
    /// Has the module loaded, which does its work then, and refuses to be loaded at its end.
    /// By a process of its own: no other has memory in common with a CPU without interrupts.
    fn start(module: &str, parameters: &str) -> Self {
        let file = File::open(module).unwrap();
        let parameters = CString::new(parameters).unwrap();
        let comm = CString::new(GENERATOR).unwrap();
        let cpus = last_cpu();
        let since = Instant::now();
        // SAFETY: the child makes nothing but system calls, and allocates nothing.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => Self { pid: child, since },
            ForkResult::Child => {
                let is_ready = sched_setaffinity(Pid::from_raw(0), &cpus).is_ok()
                    && nix::sys::prctl::set_name(&comm).is_ok();
                if is_ready {
                    // SAFETY: the text lives until the call returns.
                    unsafe {
                        libc::syscall(
                            libc::SYS_finit_module,
                            file.as_raw_fd(),
                            parameters.as_ptr(),
                            0,
                        )
                    };
                }
                // EAGAIN: it has done it (lib/test_lockup.c, the end of `test_lockup_init`).
                let is_done = is_ready && Errno::last() == Errno::EAGAIN;
                // SAFETY: _exit has no preconditions.
                unsafe { libc::_exit(i32::from(!is_done)) }
            }
        }
    }

    /// Waits for its end, and says how long it took.
    fn outlast(self) -> Duration {
        let status = waitpid(self.pid, None).unwrap();
        let took = self.since.elapsed();
        let pid = self.pid;
        std::mem::forget(self);
        assert_eq!(status, WaitStatus::Exited(pid, 0), "the module did nothing");
        took
    }
}

impl Drop for Generated {
    fn drop(&mut self) {
        // It ends by itself, whatever happens.
        let _ = waitpid(self.pid, None);
    }
}

fn last_cpu() -> CpuSet {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap());
    let mut last = CpuSet::new();
    last.set(cpus.last().unwrap()).unwrap();
    last
}

/// How many seconds the module must be told to spin for it to spin that long: an emulated
/// machine has no idea how fast it is, so that its delays are hundreds of times too short.
fn seconds(module: &str, wanted: Duration) -> u64 {
    // No lockup yet, whatever the machine is.
    const ENOUGH: Duration = Duration::from_millis(500);
    let mut told = 1;
    loop {
        let took = Generated::start(module, &format!("state=R time_secs={told}")).outlast();
        if took >= ENOUGH {
            return (wanted.as_secs_f64() / took.as_secs_f64() * told as f64).ceil() as u64;
        }
        told *= 2;
    }
}

/// What the kernel's own generator makes: parameters, how long, and what is to be found.
fn try_generator(
    parameters: &str,
    long: Duration,
    detector: &str,
    is_right: impl Fn(&Finding, Tid) -> bool,
) {
    let module = match generator() {
        Ok(module) => module,
        Err(why) => {
            eprintln!("skipped: test-lockup: {why}");
            return;
        }
    };
    let told = if parameters.contains("state=R") {
        seconds(&module, long)
    } else {
        long.as_secs()
    };
    let mut log = Log::from_now();
    let _quick = Setting::set("/proc/sys/kernel/watchdog_thresh", WATCHDOG_THRESH);
    // The lab's word keeps the machine from taking this for its end (xtask/src/vm).
    fs::write("/dev/kmsg", "lockup-lab: a CPU is locked up on purpose\n").unwrap();
    let mut watch = Watch::start("2s");
    // Somebody who could run there; dropped, it is killed.
    let mut busy = Command::new("sh");
    busy.args(["-c", "while :; do :; done"]);
    let busy = thread::spawn(move || {
        sched_setaffinity(Pid::from_raw(0), &last_cpu()).unwrap();
        Program::start(busy.stdin(Stdio::null())).unwrap()
    });
    let busy = busy.join().unwrap();
    let generated = Generated::start(&module, &format!("{parameters} time_secs={told}"));
    let tid = Tid(generated.pid.as_raw());
    watch.listen(detector, long, |watch| !watch.findings.is_empty());
    let first = watch.findings[0].clone();
    assert_eq!(first.detector, detector, "{first:#?}");
    assert!(is_right(&first, tid), "{tid:?}: {first:#?}");
    generated.outlast();
    drop(busy);
    watch.listen("its end", trial::bound(PATIENCE), |watch| {
        !watch.ended.is_empty()
    });
    watch.end(first.finding);
    fs::write("/dev/kmsg", "lockup-lab: the lockup is over\n").unwrap();
    for line in log.lines() {
        if let Some((_, comm, of_kernel)) = soft_lockup_of_kernel(&line) {
            assert_eq!((&*comm, of_kernel), (GENERATOR, tid), "{line}");
        }
    }
}

/// The task is the generator, and it is no softirq that spins.
fn is_generator(finding: &Finding, tid: Tid) -> bool {
    let lockup = finding.lockup.as_ref();
    lockup.is_some_and(|lockup| {
        let task = lockup.task.as_ref();
        task.is_some_and(|task| task.tid == tid) && !lockup.interrupted
    })
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn the_kernels_own_soft_lockup() {
    let long = Duration::from_secs(20);
    try_generator(
        "state=R disable_preempt=1",
        long,
        "soft-lockup",
        is_generator,
    );
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn the_kernels_own_hard_lockup() {
    let long = Duration::from_secs(20);
    try_generator("state=R disable_irq=1", long, "hard-lockup", is_generator);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn the_kernels_own_hung_task() {
    let long = Duration::from_secs(20);
    try_generator("state=D", long, "hung-task", |found, tid| {
        found.hung.is_some() && found.tasks == [tid]
    });
}
