//! Ticks that go on while a CPU does not.
//!
//! A thread that sleeps wakes by a timer of the CPU on which it fell asleep, and then runs
//! on a CPU that the kernel chooses: if that one is locked up, the thread that watches for
//! lockups is among its victims. So two threads, each pinned to another CPU, make the
//! ticks; if the others of this process do not answer, they are moved away from the CPU that
//! they are ready to run on and do not get; and all keep off the CPUs that are suspected. A
//! real-time thread above all: the kernel does not move it away from a CPU whose task is not
//! real-time (kernel/sched/rt.c, `select_task_rq_rt`).

use std::{
    collections::BTreeSet,
    fs, io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use rustix::{
    process::Pid,
    thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity},
};
use tokio::sync::Notify;

use crate::{clock::now_ns, task::Nanos};

/// After so many ticks without an answer, the threads that should answer are moved.
const PATIENCE_TICKS: u64 = 4;
/// … but not before this: a report takes its time, too.
const PATIENCE_MIN: Nanos = Nanos(500_000_000);
/// Orders that a thread may have before it.
const ORDERS_MAX: usize = 4;
/// The two threads tick by turns.
const TICKERS: u64 = 2;

/// The source of ticks. The threads end when it is dropped, within a tick.
#[derive(Debug)]
pub(super) struct Ticks {
    shared: Arc<Shared>,
    /// The CPUs that this process may use; `None` where that could not be read.
    all: Option<CpuSet>,
    /// The CPUs that its threads keep off.
    kept_off: BTreeSet<u32>,
    movers: Vec<SyncSender<Order>>,
}

#[derive(Debug)]
struct Shared {
    period: Nanos,
    due: Notify,
    /// When the last tick was taken, `CLOCK_MONOTONIC` ns.
    taken_ns: AtomicU64,
    over: AtomicBool,
    /// The threads that stay where they are: those that tick, and those that move others.
    pinned: Mutex<Vec<Pid>>,
}

/// What a thread that moves others is asked to do. A thread of its own does it, beside each
/// that ticks: the kernel may make it wait for the CPU that does not go on.
#[derive(Debug)]
enum Order {
    /// Let them use these CPUs.
    Use(CpuSet),
    /// Take those that are ready to run away from the CPUs that they do not get.
    MoveAway,
}

impl Ticks {
    /// Starts the threads. With one CPU there is one.
    pub(super) fn start(period: Duration) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            period: Nanos::from_duration(period),
            due: Notify::new(),
            taken_ns: AtomicU64::new(now_ns()),
            over: AtomicBool::new(false),
            pinned: Mutex::default(),
        });
        let all = sched_getaffinity(None).ok();
        let mut movers = Vec::new();
        for (turn, cpu) in ends(all.as_ref()).into_iter().enumerate() {
            let (mover, orders) = sync_channel(ORDERS_MAX);
            movers.push(mover.clone());
            let moving = Arc::clone(&shared);
            thread::Builder::new()
                .name("move".to_owned())
                .spawn(move || {
                    moving.stay_on(cpu);
                    for order in orders {
                        moving.carry_out(&order, all.as_ref());
                    }
                })?;
            let ticking = Arc::clone(&shared);
            thread::Builder::new()
                .name("tick".to_owned())
                .spawn(move || {
                    ticking.stay_on(cpu);
                    thread::sleep(period.mul_f64(turn as f64 / TICKERS as f64));
                    ticking.tick(period, &mover);
                })?;
        }
        Ok(Self {
            shared,
            all,
            kept_off: BTreeSet::new(),
            movers,
        })
    }

    /// Keeps the threads of this process, those that stay where they are excepted, off these
    /// CPUs, and off no others. Best effort, and soon.
    pub(super) fn keep_off(&mut self, cpus: BTreeSet<u32>) {
        let Some(all) = &self.all else { return };
        if cpus == self.kept_off {
            return;
        }
        let mut others = *all;
        for &cpu in &cpus {
            if (cpu as usize) < CpuSet::MAX_CPU {
                others.unset(cpu as usize);
            }
        }
        let set = if others.count() > 0 { others } else { *all };
        for mover in &self.movers {
            // Full: it waits for a CPU that does not go on.
            let _ = mover.try_send(Order::Use(set));
        }
        self.kept_off = cpus;
    }

    /// Waits for the next tick; those that were missed are one.
    pub(super) async fn next(&self) {
        self.shared.due.notified().await;
        self.shared.taken_ns.store(now_ns(), Ordering::Relaxed);
    }
}

impl Drop for Ticks {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn tick(&self, period: Duration, mover: &SyncSender<Order>) {
        let patience = Nanos(self.period.0 * PATIENCE_TICKS).max(PATIENCE_MIN);
        while !self.over.load(Ordering::Relaxed) {
            thread::sleep(period);
            let taken_ns = self.taken_ns.load(Ordering::Relaxed);
            let silence = Nanos::between(taken_ns, now_ns());
            // Less: the other thread has just ticked.
            if silence.0 >= self.period.0 / TICKERS {
                self.due.notify_one();
            }
            if silence >= patience {
                let _ = mover.try_send(Order::MoveAway);
            }
        }
    }

    /// Lets this thread run on this CPU alone.
    fn stay_on(&self, cpu: Option<usize>) {
        self.pinned().push(rustix::thread::gettid());
        if let Some(cpu) = cpu {
            pin(cpu);
        }
    }

    fn pinned(&self) -> std::sync::MutexGuard<'_, Vec<Pid>> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn carry_out(&self, order: &Order, all: Option<&CpuSet>) {
        match (order, all) {
            (Order::Use(set), _) => {
                for (tid, _) in self.other_threads() {
                    if let Err(error) = sched_setaffinity(Some(tid), set) {
                        tracing::debug!("thread {tid:?} cannot be moved: {error}");
                    }
                }
            }
            (Order::MoveAway, Some(all)) => self.move_away(all),
            (Order::MoveAway, None) => {}
        }
    }

    /// The threads of this process that go where the kernel wants, each with its folder in
    /// /proc.
    fn other_threads(&self) -> Vec<(Pid, PathBuf)> {
        let pinned = self.pinned().clone();
        let threads = fs::read_dir("/proc/self/task").into_iter().flatten();
        let other = |thread: fs::DirEntry| {
            let tid = thread.file_name().to_str()?.parse().ok()?;
            let tid = Pid::from_raw(tid).filter(|tid| !pinned.contains(tid))?;
            Some((tid, thread.path()))
        };
        threads.flatten().filter_map(other).collect()
    }

    /// Moves those threads that are ready to run to other CPUs than the ones they are on.
    /// Best effort: what is on a CPU that does not go on cannot be helped.
    fn move_away(&self, all: &CpuSet) {
        for (tid, folder) in self.other_threads() {
            let stat = fs::read_to_string(folder.join("stat"));
            let Some(cpu) = stat.ok().and_then(|stat| ready_on(&stat)) else {
                continue;
            };
            // Ours goes on, and another may be the one that does not.
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
