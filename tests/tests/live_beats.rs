//! The sampler of CPUs on this machine: every CPU beats, and a machine that does nothing
//! wrong has no suspects.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use lockwatch::{
    detect::Thresholds,
    kernel::{btf::Btf, layout::Layout},
    lockup::{Mode, Monitor},
    probes::beats::BeatProbes,
    task::Nanos,
};
use lockwatch_tests::trial;
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

const SECOND: u64 = 1_000_000_000;

/// How often a test reads.
const EVERY: Duration = Duration::from_millis(100);

fn thresholds(soft_s: u64, hard_s: u64) -> Thresholds {
    Thresholds {
        soft_lockup: Some(Nanos(soft_s * SECOND)),
        hard_lockup: Some(Nanos(hard_s * SECOND)),
        ..Thresholds::of_waits(Nanos(SECOND))
    }
}

/// Keeps every CPU busy until it is dropped.
struct Busy(Arc<AtomicBool>);

impl Busy {
    fn every_cpu() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
        for cpu in (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap()) {
            let over = Arc::clone(&over);
            thread::spawn(move || {
                let mut only = CpuSet::new();
                only.set(cpu).unwrap();
                sched_setaffinity(Pid::from_raw(0), &only).unwrap();
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Self(over)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn open(thresholds: Thresholds) -> BeatProbes {
    let layout = Layout::from_btf(&Btf::from_sys().unwrap()).unwrap();
    BeatProbes::open(&layout, thresholds).unwrap()
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn every_cpu_beats_at_its_rate_and_none_is_suspected() {
    let thresholds = thresholds(4, 4);
    let mut probes = open(thresholds);
    let mut monitor = Monitor::new(thresholds);
    let deadline = Instant::now() + trial::bound(Duration::from_secs(10));
    // An idle moment is all it takes.
    while !probes.knows_pending() {
        assert!(
            Instant::now() < deadline,
            "the bit of a pending reschedule is not learned"
        );
        thread::sleep(EVERY);
    }
    let mut seen: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    let time = Duration::from_secs(3);
    // An idle CPU of some virtual machines sleeps through its timers.
    let _busy = Busy::every_cpu();
    let end = Instant::now() + time;
    let mut steps = 0;
    while Instant::now() < end {
        let readings = probes.read().unwrap();
        let suspects = monitor.suspects(&readings);
        assert!(suspects.is_empty(), "{suspects:#?}\n{readings:#?}");
        for (&cpu, beat) in &readings.beats {
            assert!(readings.online.contains(&cpu));
            // The idle task and no other has no name.
            assert_eq!(beat.mode == Mode::Idle, beat.task.is_none(), "{beat:#?}");
            seen.entry(cpu).or_default().push(beat.last_ns);
        }
        steps += 1;
        thread::sleep(Duration::from_nanos(probes.pace().period().0 / 2));
    }
    let online = probes.read().unwrap().online;
    assert_eq!(
        seen.keys().copied().collect::<Vec<_>>(),
        online.into_iter().collect::<Vec<_>>()
    );
    for (cpu, mut beats) in seen {
        beats.dedup();
        let longest = beats
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .max()
            .unwrap();
        eprintln!(
            "cpu {cpu}: {} beats in {time:?}, longest gap {longest} ns, {steps} reads",
            beats.len()
        );
        assert!(beats.len() > 10, "CPU {cpu} beats: {beats:?}");
    }
}
