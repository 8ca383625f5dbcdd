//! Ticks that go on while a CPU does not.
//!
//! A thread that sleeps wakes by a timer of the CPU on which it fell asleep, and then runs
//! on a CPU that the kernel chooses: if that one is locked up, the thread that watches for
//! lockups is among its victims. A real-time thread even stays where it last ran. So two
//! threads, each pinned to another CPU, make the ticks; and if the others of this process do
//! not answer, the session's or the surveyor's, they are moved away from the CPU that they
//! are ready to run on and do not get.

use std::{
    fs, io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, Thread},
    time::Duration,
};

use rustix::{
    process::Pid,
    thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity},
};
use tokio::sync::Notify;

use crate::{stream::now_ns, task::Nanos};

/// After so many ticks without an answer, the threads that should answer are moved.
const PATIENCE_TICKS: u64 = 4;
/// … but not before this: a report takes its time, too.
const PATIENCE_MIN: Nanos = Nanos(500_000_000);
/// The two threads tick by turns.
const TICKERS: u64 = 2;

/// The source of ticks. The threads end when it is dropped, within a tick.
#[derive(Debug)]
pub(super) struct Ticks(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    period: Nanos,
    due: Notify,
    /// When the last tick was taken, `CLOCK_MONOTONIC` ns.
    taken_ns: AtomicU64,
    /// When the survey was asked for that has not come yet, `CLOCK_MONOTONIC` ns; 0: none.
    asked_ns: AtomicU64,
    over: AtomicBool,
}

impl Ticks {
    /// Starts the threads. With one CPU there is one.
    pub(super) fn start(period: Duration) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            period: Nanos::from_duration(period),
            due: Notify::new(),
            taken_ns: AtomicU64::new(now_ns()),
            asked_ns: AtomicU64::new(0),
            over: AtomicBool::new(false),
        });
        let all = sched_getaffinity(None).ok();
        for (turn, cpu) in ends(all.as_ref()).into_iter().enumerate() {
            let mover = shared.start_mover(cpu, all)?;
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name("tick".to_owned())
                .spawn(move || {
                    if let Some(cpu) = cpu {
                        pin(cpu);
                    }
                    thread::sleep(period.mul_f64(turn as f64 / TICKERS as f64));
                    shared.tick(period, &mover);
                })?;
        }
        Ok(Self(shared))
    }

    /// Waits for the next tick; those that were missed are one.
    pub(super) async fn next(&self) {
        self.0.due.notified().await;
        self.0.taken_ns.store(now_ns(), Ordering::Relaxed);
    }

    /// Says since when a survey is waited for.
    pub(super) fn awaits_survey(&self, asked_ns: Option<u64>) {
        self.0
            .asked_ns
            .store(asked_ns.unwrap_or(0), Ordering::Relaxed);
    }
}

impl Drop for Ticks {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn tick(&self, period: Duration, mover: &Thread) {
        let patience = Nanos(self.period.0 * PATIENCE_TICKS).max(PATIENCE_MIN);
        while !self.over.load(Ordering::Relaxed) {
            thread::sleep(period);
            let taken_ns = self.taken_ns.load(Ordering::Relaxed);
            let silence = Nanos::between(taken_ns, now_ns());
            // Less: the other thread has just ticked.
            if silence.0 >= self.period.0 / TICKERS {
                self.due.notify_one();
            }
            let is_survey_late = match self.asked_ns.load(Ordering::Relaxed) {
                0 => false,
                asked_ns => Nanos::between(asked_ns, now_ns()) >= patience,
            };
            if silence >= patience || is_survey_late {
                mover.unpark();
            }
        }
        mover.unpark();
    }

    /// Starts the thread that moves others away each time it is unparked. It is not the one
    /// that ticks: where the CPU that does not go on is *in* a thread to be moved, the kernel
    /// does not answer, and the ticks must go on.
    fn start_mover(
        self: &Arc<Self>,
        cpu: Option<usize>,
        all: Option<CpuSet>,
    ) -> io::Result<Thread> {
        let shared = Arc::clone(self);
        let mover = thread::Builder::new()
            .name("move".to_owned())
            .spawn(move || {
                if let Some(cpu) = cpu {
                    pin(cpu);
                }
                loop {
                    thread::park();
                    if shared.over.load(Ordering::Relaxed) {
                        return;
                    }
                    if let Some(all) = &all {
                        move_away(all);
                    }
                }
            })?;
        Ok(mover.thread().clone())
    }
}

/// Moves those threads of this process that are ready to run to other CPUs than the ones
/// they are on. Best effort: what is on a CPU that does not go on cannot be helped.
fn move_away(all: &CpuSet) {
    let Ok(threads) = fs::read_dir("/proc/self/task") else {
        return;
    };
    for thread in threads.flatten() {
        let tid: Option<i32> = thread.file_name().to_str().and_then(|tid| tid.parse().ok());
        let Some(tid) = tid.and_then(Pid::from_raw) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(thread.path().join("stat")) else {
            continue;
        };
        let Some(cpu) = ready_on(&stat) else { continue };
        // Our CPU goes on, and another may be the one that does not.
        if cpu == sched_getcpu() {
            continue;
        }
        let mut others = *all;
        others.unset(cpu);
        if others.count() > 0 {
            match sched_setaffinity(Some(tid), &others) {
                Ok(()) => tracing::debug!("thread {tid:?} does not get CPU {cpu}: moved away"),
                Err(error) => tracing::debug!("thread {tid:?} cannot be moved: {error}"),
            }
        }
    }
}

/// The CPU that a thread is ready to run on, by its /proc/PID/stat; none if it sleeps.
fn ready_on(stat: &str) -> Option<usize> {
    /// Fields from the one behind the state, which is the first behind the name, to this one
    /// (proc_pid_stat(5): 3 and 39).
    const TO_PROCESSOR: usize = 39 - 3 - 1;
    let (_, behind_name) = stat.rsplit_once(") ")?;
    let mut fields = behind_name.split_ascii_whitespace();
    if fields.next()? != "R" {
        return None;
    }
    fields.nth(TO_PROCESSOR)?.parse().ok()
}

/// The first and the last CPU of a set: they share the least. One alone, if there is no
/// more, or none is known.
fn ends(all: Option<&CpuSet>) -> Vec<Option<usize>> {
    let Some(all) = all else { return vec![None] };
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| all.is_set(cpu));
    let first = cpus.next();
    match cpus.next_back() {
        Some(last) => vec![first, Some(last)],
        None => vec![first],
    }
}

fn pin(cpu: usize) {
    let mut only = CpuSet::new();
    only.set(cpu);
    if let Err(error) = sched_setaffinity(None, &only) {
        tracing::info!("cannot stay on CPU {cpu}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_tells_the_cpu_of_whoever_is_ready() {
        let stat = |state: &str| {
            format!(
                "7 (a) b (c) {state} 1 7 7 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 3 0 77 1 1 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 5 0 0 0 0 0\n"
            )
        };
        assert_eq!(ready_on(&stat("R")), Some(5));
        assert_eq!(ready_on(&stat("S")), None);
        assert_eq!(ready_on("7 (a) R"), None);
    }

    #[test]
    fn the_ticks_come_from_both_ends() {
        let mut cpus = CpuSet::new();
        assert_eq!(ends(Some(&cpus)), [None]);
        cpus.set(2);
        assert_eq!(ends(Some(&cpus)), [Some(2)]);
        cpus.set(3);
        cpus.set(9);
        assert_eq!(ends(Some(&cpus)), [Some(2), Some(9)]);
        assert_eq!(ends(None), [None]);
    }

    #[test]
    fn ticks_come_and_are_not_piled_up() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let ticks = Ticks::start(Duration::from_millis(5)).unwrap();
            for _ in 0..5 {
                ticks.next().await;
            }
            thread::sleep(Duration::from_millis(50));
            ticks.next().await;
            let before = std::time::Instant::now();
            ticks.next().await;
            assert!(before.elapsed() >= Duration::from_millis(1));
        });
    }
}
