//! `lockwatch watch` with low thresholds on a host where nothing hangs, whatever it does: it
//! finds no lockup and no hanging task.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod hangs;
mod healthy;

use std::time::{Duration, Instant};

use lockwatch_tests::{
    trial::{self, lockup::Made},
    truth::Scenario,
};
use nix::{errno::Errno, libc};

use self::{
    hangs::{Watch, in_words, is_own_machine},
    healthy::{
        CpuTime, Load, compute, cpus, list_processes, read_zeroes, start_a_process, touch_pages,
        vfork_for,
    },
};

/// From here on a CPU is locked up, and tasks hang, on a real machine.
const SOFT: Duration = Duration::from_secs(1);
const HARD: Duration = Duration::from_secs(2);
const HUNG: Duration = Duration::from_secs(2);

/// Long enough for everything that lasts to pass its threshold, and to be looked into.
fn long() -> Duration {
    trial::bound(HARD.max(HUNG)) * 3 / 2 + Duration::from_secs(1)
}

fn watch() -> Watch {
    let hung = in_words(trial::bound(HUNG));
    Watch::start_with(trial::bound(SOFT), trial::bound(HARD), &hung, &[])
}

/// Nothing is found while that runs; what its threads have used.
fn nothing_is_found(load: impl FnOnce() -> Option<Load>) -> Vec<CpuTime> {
    let mut watch = watch();
    let load = load();
    watch.listen_for(long());
    let used = load.map(Load::end).unwrap_or_default();
    watch.end_without_findings();
    used
}

/// The busiest is this one.
fn last_cpu() -> usize {
    *cpus().last().unwrap()
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn an_idle_host() {
    nothing_is_found(|| None);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_busy_task_that_is_alone_on_its_cpu() {
    let used = nothing_is_found(|| Some(Load::on(last_cpu(), compute)));
    assert!(used[0].user > long() / 4, "it was not busy: {used:?}");
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_real_time_task_that_keeps_its_cpu_from_all_others() {
    let cpu = last_cpu();
    let mut watch = watch();
    // Somebody who could run there.
    let other = Load::on(cpu, compute);
    let time = (trial::bound(SOFT) * 2 + Duration::from_secs(1)).min(Duration::from_secs(11));
    let end = Instant::now() + time;
    let real_time = Load::on(cpu, move || {
        let priority = libc::sched_param { sched_priority: 1 };
        // SAFETY: the structure lives until the call returns.
        let set = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
        assert_eq!(set, 0, "{}", Errno::last());
        while Instant::now() < end {
            compute();
        }
        // Whatever happens to who is to end it, it keeps nobody from the CPU any more.
        let priority = libc::sched_param { sched_priority: 0 };
        // SAFETY: as above.
        unsafe { libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const priority) };
        std::thread::sleep(Duration::from_millis(10));
    });
    watch.listen_for(time);
    let used = real_time.end();
    drop(other);
    watch.end_without_findings();
    assert!(used[0].user > time / 2, "it was not busy: {used:?}");
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn tasks_that_are_in_the_kernel_nearly_all_the_time() {
    let cpu = last_cpu();
    let used = nothing_is_found(|| {
        let mut load = Load::on(cpu, read_zeroes());
        load.and_on(cpu, list_processes);
        Some(load)
    });
    for time in used {
        // Emulation makes user mode dearer than it is.
        let user = time.user / if is_own_machine() { 4 } else { 1 };
        assert!(time.kernel > user, "it was in user mode: {time:?}");
        assert!(time.kernel > long() / 8, "it was not busy: {time:?}");
        assert!(time.preempted > 0, "nobody else could run: {time:?}");
    }
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn storms_of_processes_and_page_faults() {
    let used = nothing_is_found(|| {
        let mut cpus = cpus().into_iter().cycle();
        let mut next = || cpus.next().unwrap();
        let mut load = Load::on(next(), start_a_process);
        for _ in 0..3 {
            load.and_on(next(), start_a_process);
            load.and_on(next(), touch_pages);
        }
        Some(load)
    });
    assert_eq!(used.len(), 7);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn sleeps_in_d_that_are_shorter_than_the_threshold() {
    let threshold = trial::bound(HUNG) + Duration::from_secs(2);
    // Longer than what is never asked about.
    let hold = Duration::from_millis(1500);
    let mut watch = Watch::start_with(
        trial::bound(SOFT),
        trial::bound(HARD),
        &in_words(threshold),
        &[],
    );
    for _ in 0..2 {
        let Some(lab) = Made::hang(Scenario::HungFuseKilled, 3, hold).unwrap() else {
            return;
        };
        let held_ns = lab.outlast().unwrap().held_ns;
        assert!(u128::from(held_ns) >= hold.as_nanos() * 9 / 10, "{held_ns}");
        watch.listen_for(Duration::from_millis(200));
    }
    watch.end_without_findings();
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn parents_that_wait_for_the_children_of_their_vfork() {
    let lives = long();
    nothing_is_found(|| {
        let mut load = Load::on(last_cpu(), move || vfork_for(lives));
        load.and_on(last_cpu(), || vfork_for(Duration::from_millis(300)));
        Some(load)
    });
}
