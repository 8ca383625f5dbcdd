//! CPUs without interrupts, and what the kernel's own `test_lockup` makes: in a virtual machine
//! of our own only.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod hangs;

use std::{
    ffi::CString,
    fs::{self, File},
    os::fd::AsRawFd as _,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use lockwatch_tests::{
    trial::{
        self, Program,
        lockup::{Finding, generator},
    },
    truth::{LockupScenario, Tid},
};
use nix::{
    errno::Errno,
    libc,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, Pid, fork},
};

use self::hangs::{
    Log, PATIENCE, Setting, WATCHDOG_THRESH, Watch, lockup::try_lockup, soft_lockup_of_kernel,
};

#[test]
#[ignore = "live: needs root and BPF on a kernel that may lose a CPU; run by cargo xtask vm"]
fn a_cpu_without_interrupts() {
    try_lockup(LockupScenario::HardLockup, &[]);
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
    let mut cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap());
    let mut last = CpuSet::new();
    last.set(cpus.next_back().unwrap()).unwrap();
    last
}

/// How many seconds the module must be told to spin for it to spin that long: an emulated
/// machine has no idea how fast it is, so that its delays are hundreds of times too short.
fn seconds(module: &str, wanted: Duration) -> u64 {
    // No lockup yet, whatever the machine is.
    const ENOUGH: Duration = Duration::from_millis(500);
    let mut told = 1_u32;
    loop {
        let took = Generated::start(module, &format!("state=R time_secs={told}")).outlast();
        if took >= ENOUGH {
            return (wanted.as_secs_f64() / took.as_secs_f64() * f64::from(told)).ceil() as u64;
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
    // Of a CPU that is locked up there are victims: not what this is about.
    let hung = if detector == "hung-task" {
        "2s"
    } else {
        "600s"
    };
    let mut watch = Watch::start(hung);
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
#[ignore = "live: needs root and BPF on a kernel that may lose a CPU; run by cargo xtask vm"]
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
#[ignore = "live: needs root and BPF on a kernel that may lose a CPU; run by cargo xtask vm"]
fn the_kernels_own_hard_lockup() {
    let long = Duration::from_secs(20);
    try_generator("state=R disable_irq=1", long, "hard-lockup", is_generator);
}

#[test]
#[ignore = "live: needs root and BPF on a kernel that may lose a CPU; run by cargo xtask vm"]
fn the_kernels_own_hung_task() {
    let long = Duration::from_secs(20);
    try_generator("state=D", long, "hung-task", |found, tid| {
        found.hung.is_some() && found.tasks == [tid]
    });
}
