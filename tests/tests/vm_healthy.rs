//! CPUs that go and come again, a machine that stands still, and one real lockup among heavy
//! load: in a virtual machine of our own only.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod hangs;
mod healthy;

use std::{
    env, fs,
    io::Write as _,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use lockwatch_tests::{
    clock,
    trial::{
        self, Program,
        lockup::{Made, Prepared},
    },
    truth::LockupScenario,
};

use nix::{
    errno::Errno,
    libc,
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use self::{
    hangs::{HARD, PATIENCE, PROMPT, SOFT, Watch, hold},
    healthy::{Load, bind, compute, cpus},
};

/// A CPU that is offline, and comes back online when this is dropped.
struct Offline(String);

impl Offline {
    fn take(cpu: usize) -> Self {
        let switch = format!("/sys/devices/system/cpu/cpu{cpu}/online");
        fs::write(&switch, "0").unwrap();
        Self(switch)
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        let _ = fs::write(&self.0, "1");
    }
}

#[test]
#[ignore = "live: needs root and BPF on a kernel that may lose a CPU; run by cargo xtask vm"]
fn a_cpu_that_goes_offline_and_comes_back() {
    let cpu = *cpus().last().unwrap();
    let mut watch = Watch::start("600s");
    for time in [HARD * 2, Duration::ZERO, Duration::ZERO] {
        let offline = Offline::take(cpu);
        assert!(!cpus_online().contains(&cpu), "it is still there");
        watch.listen_for(time);
        drop(offline);
        assert!(cpus_online().contains(&cpu), "it does not come back");
        watch.listen_for(HARD);
    }
    watch.listen_for(HARD);
    assert!(watch.findings.is_empty(), "{:#?}", watch.findings);

    // Its beats are back: it is locked up, and that is seen.
    let scenario = LockupScenario::SoftLockupTask;
    let lab = Made::lock_up(scenario, hold()).unwrap().unwrap();
    assert_eq!(lab.truth.cpu as usize, cpu);
    let limit = SOFT + trial::bound(PROMPT);
    watch.listen("the lockup", limit, |watch| !watch.findings.is_empty());
    assert!(clock::monotonic_ns() < lab.truth.ends_at_ns, "it is over");
    let first = watch.findings[0].clone();
    assert_eq!(first.detector, "soft-lockup", "{first:#?}");
    assert_eq!(first.lockup.as_ref().unwrap().cpu, lab.truth.cpu);
    lab.outlast().unwrap();
    watch.listen("its end", trial::bound(PATIENCE), |watch| {
        !watch.ended.is_empty()
    });
    watch.end(first.finding);
}

/// Numbers of CPUs that have a line in /proc/stat.
fn cpus_online() -> Vec<usize> {
    let text = fs::read_to_string("/proc/stat").unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix("cpu"));
    lines
        .filter_map(|line| line.split(' ').next()?.parse().ok())
        .collect()
}

/// Has the host let this machine stand still for so long; by how much the clock jumped then.
/// `None`: the host does not listen, or the guest's clock goes on without a jump.
fn stand_still(time: Duration) -> Option<Duration> {
    const PAUSE: Duration = Duration::from_millis(50);
    let host = env::var("LOCKWATCH_HOST").ok()?;
    let mut host = fs::File::options().write(true).open(host).unwrap();
    let line = format!("\n@@vm stand-still {}\n", time.as_millis());
    host.write_all(line.as_bytes()).unwrap();
    let deadline = Instant::now() + trial::bound(PATIENCE) + time;
    let mut before = Instant::now();
    loop {
        thread::sleep(PAUSE);
        let jumped = before.elapsed();
        if jumped >= time * 3 / 4 {
            return Some(jumped);
        }
        if Instant::now() >= deadline {
            return None;
        }
        before = Instant::now();
    }
}

/// Time that a hypervisor gives to another machine cannot be made here, for an emulated
/// processor counts none: a whole machine that stands still can.
#[test]
#[ignore = "live: needs a host that can stop this machine; run by cargo xtask vm"]
fn a_machine_that_stands_still() {
    const STILL: Duration = Duration::from_secs(8);
    for busy in [false, true] {
        let mut watch = Watch::start_with(SOFT, HARD, "3s", &[]);
        // Each CPU has one task and no idle moment: no look can take it for an idle one.
        let mut load = Load::default();
        for cpu in cpus().into_iter().filter(|_| busy) {
            load.and_on(cpu, compute);
        }
        watch.listen_for(Duration::from_secs(2));
        let Some(jumped) = stand_still(STILL) else {
            let name = "a_machine_that_stands_still";
            assert!(
                env::var("LOCKWATCH_HOST").is_err() || trial::lab::is_expected(name),
                "the machine did not stand still"
            );
            eprintln!("skipped: {name}: it does not stand still when the host is asked for it");
            return;
        };
        eprintln!("the clock jumped by {jumped:?}, busy: {busy}");
        watch.listen_for(HARD * 2);
        drop(load);
        watch.end_without_findings();
    }
}

/// The lockup is set off at a random time within so long.
const AT_RANDOM: Duration = Duration::from_secs(15);

/// So long no interrupt is taken: an emulated machine that has much else to do needs seconds
/// to look at all tasks twice. The kernel's RCU gives a warning after 21 s.
const NO_INTERRUPTS: Duration = Duration::from_secs(18);

/// What keeps a CPU busy in every way: a storm of forks, files, names of processes, and
/// user mode. Processes of their own, for none may have memory in common with
/// a CPU that answers no request to forget pages.
fn storm(cpu: usize) -> Vec<Program> {
    let file = format!("/tmp/storm-{cpu}");
    let scripts = [
        "while :; do /bin/true; done".to_owned(),
        format!("while :; do dd if=/dev/zero of={file} bs=64k count=64 2>/dev/null; done"),
        "while :; do ls -l /proc >/dev/null 2>&1; done".to_owned(),
        "while :; do :; done".to_owned(),
    ];
    // A child keeps the CPUs of the thread that has started it.
    let start = move || {
        bind(cpu);
        let start = |script: &String| {
            let mut command = Command::new("sh");
            Program::start(command.args(["-c", script]).stdin(Stdio::null())).unwrap()
        };
        scripts.iter().map(start).collect()
    };
    thread::spawn(start).join().unwrap()
}

/// Keeps all threads of this process, which judge what is said and when, off the CPU that is
/// locked up, and gives them and the lab what they need of the other one. What this starts
/// later stays there, too.
fn come_first_on(cpu: usize, lab: Pid) {
    let mut only = CpuSet::new();
    only.set(cpu).unwrap();
    for thread in fs::read_dir("/proc/self/task").unwrap() {
        let tid = thread.unwrap().file_name().into_string().unwrap();
        let tid = Pid::from_raw(tid.parse().unwrap());
        sched_setaffinity(tid, &only).unwrap();
        come_first(tid);
    }
    come_first(lab);
}

fn come_first(tid: Pid) {
    // SAFETY: no pointers; it is about one thread of ours.
    let outcome = unsafe { libc::setpriority(libc::PRIO_PROCESS, tid.as_raw() as libc::id_t, -20) };
    assert_eq!(outcome, 0, "{}", Errno::last());
}

/// As real-time task, as is advised where CPUs have much to do: emulated, a survey takes
/// seconds of its CPU, of which the storm leaves a tenth.
#[test]
#[ignore = "live: needs root and BPF on a kernel that may lose a CPU; run by cargo xtask vm"]
fn one_hard_lockup_in_a_busy_machine() {
    let mut watch = Watch::start_with(SOFT, HARD, "600s", &["--priority", "10"]);
    let Some(lockup) = Prepared::lockup(LockupScenario::HardLockup, NO_INTERRUPTS).unwrap() else {
        return;
    };
    let storm: Vec<Program> = cpus().into_iter().flat_map(storm).collect();
    come_first_on(cpus()[0], lockup.pid());
    let at = clock::at_random(AT_RANDOM);
    watch.listen_for(at);
    assert!(watch.findings.is_empty(), "{:#?}", watch.findings);
    let lab = lockup.set_off().unwrap();
    let left_ns =
        |until_ns: u64| Duration::from_nanos(until_ns.saturating_sub(clock::monotonic_ns()));
    let limit = left_ns(lab.truth.ends_at_ns);
    watch.listen("the lockup", limit, |watch| !watch.findings.is_empty());
    let late = limit - left_ns(lab.truth.ends_at_ns);
    eprintln!("locked up after {at:?} of load, told {late:?} later");
    let first = watch.findings[0].clone();
    assert_eq!(first.detector, "hard-lockup", "{first:#?}");
    let lockup = first.lockup.as_ref().unwrap();
    let wrong = lockup.complaints(&lab.truth, &first.stacks);
    assert!(wrong.is_empty(), "{wrong:#?}: {first:#?}");
    lab.outlast().unwrap();
    watch.listen("its end", trial::bound(PATIENCE), |watch| {
        !watch.ended.is_empty()
    });
    // The load goes on, and nothing is wrong with it.
    watch.listen_for(HARD * 2);
    drop(storm);
    watch.end(first.finding);
}
