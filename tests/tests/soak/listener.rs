//! `watch` beside everything else, each line with the time at which it came.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use lockwatch_tests::{
    clock,
    trial::{self, Ended, Program},
};
use nix::{
    libc,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::signal::Signal,
    unistd::Pid,
};

use super::{HARD, HUNG, SOFT};

/// A line of `watch`.
pub(crate) struct Heard {
    /// `CLOCK_MONOTONIC`.
    pub(crate) at_ns: u64,
    pub(crate) line: String,
}

/// A `watch` that is listened to. Dropped, it runs on for the time it was started for.
pub(crate) struct Listener {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<(Vec<Heard>, Ended)>,
}

impl Listener {
    /// For that long at most; `patience`: for it to begin, and to end when told to.
    pub(crate) fn start(length: Duration, patience: Duration) -> Self {
        let mut command = Command::new(trial::lockwatch().unwrap());
        command.args(["watch", "--threshold", "100ms", "--format", "json"]);
        command.args(["--priority", "50"]);
        for (option, time) in [
            ("--soft-lockup", SOFT),
            ("--hard-lockup", HARD),
            ("--hung-task", HUNG),
            ("--for", length),
        ] {
            command.args([option, &format!("{}ms", time.as_millis())]);
        }
        let mut program = Program::start(&mut command).unwrap();
        loop {
            match program.err_line(patience).unwrap() {
                Some(line) if line.starts_with("watching") => break,
                Some(_) => {}
                None => panic!("watch ended: {}", program.stderr_so_far()),
            }
        }
        let is_over = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&is_over);
        let thread = thread::spawn(move || {
            come_first();
            listen(program, &flag, patience)
        });
        Self { is_over, thread }
    }

    /// Ends it; all that it has said.
    pub(crate) fn end(self) -> (Vec<Heard>, Ended) {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn listen(mut program: Program, is_over: &AtomicBool, patience: Duration) -> (Vec<Heard>, Ended) {
    const STEP: Duration = Duration::from_millis(200);
    let mut heard = Vec::new();
    let mut deadline = None;
    loop {
        match program.out_line(STEP) {
            Ok(Some(line)) => heard.push(Heard {
                at_ns: clock::monotonic_ns(),
                line,
            }),
            Ok(None) => break,
            // No line came.
            Err(_) => {}
        }
        if is_over.load(Ordering::Relaxed) && deadline.is_none() {
            program.signal(Signal::SIGINT);
            deadline = Some(Instant::now() + patience);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            break;
        }
    }
    (heard, program.end(patience).unwrap())
}

/// The times of lines are worth nothing if this thread has to wait for a CPU: it gets the one
/// that is never locked up, before everybody else of the load.
fn come_first() {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let mut cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap());
    let mut first = CpuSet::new();
    first.set(cpus.next().unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &first).unwrap();
    // SAFETY: no pointers; it is about the calling thread alone.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
}
