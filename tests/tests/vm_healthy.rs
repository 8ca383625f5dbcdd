//! CPUs that go and come again, and a machine that stands still: in a virtual machine of our own
//! only.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod hangs;
mod healthy;

use std::{
    env, fs,
    io::Write as _,
    thread,
    time::{Duration, Instant},
};

use lockwatch_tests::{
    clock,
    trial::{self, lockup::Made},
    truth::LockupScenario,
};

use self::{
    hangs::{HARD, PATIENCE, PROMPT, SOFT, Watch, hold},
    healthy::{Load, compute, cpus},
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
