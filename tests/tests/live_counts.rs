//! Every wait is counted in the kernel, once, as what it was.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::{sync::Arc, time::Duration};

use lockwatch::{
    kernel::{btf::Btf, layout::Layout, locks::RT_RWSEM_DRAINS, symbols::Symbols},
    latency::{Caller, Distribution, Measure, SeriesKey, Snapshot},
    lock::{LockKind, LockMode},
    plan::{Purpose, Wanted, plan},
    probes::{offer, stream::StreamProbes},
    stream::counts::{self, CountOptions, Counts, CountsWanted},
    task::Nanos,
};
use lockwatch_ebpf::stream::StreamConfig;
use lockwatch_tests::{
    storm::{self, Storm},
    tally::Tally,
    trial::{self, Lab},
    truth::{Mode, Scenario},
};

/// The stream with counting, attached.
struct Counting {
    counts: Counts,
    is_rt: bool,
    _probes: StreamProbes,
}

impl Counting {
    /// Counts our own waits, too. `None` where no program sees waits end.
    fn attach(options: &CountOptions) -> Option<Self> {
        let types = Btf::from_sys().unwrap();
        let layout = Layout::from_btf(&types).unwrap();
        let symbols = Arc::new(Symbols::from_proc().unwrap());
        let btf = aya::Btf::from_sys_fs().unwrap();
        let plan = plan(&offer::ask(Some(&types)), Wanted { holds: false });
        let is_end = |purpose: &Purpose| matches!(purpose, Purpose::WaitEnd { .. });
        if !plan.hooks.iter().any(|hook| is_end(&hook.purpose)) {
            panic!("no program sees waits end here: {:?}", plan.gaps);
        }
        let config = StreamConfig {
            ends_from_ns: u64::MAX,
            begins: 0,
            own_tgid: 0,
        };
        let mut globals = counts::globals(options, &layout, Some(&symbols)).unwrap();
        globals.config.own_tgid = 0;
        let is_rt = layout.locks.rt_rwsem.is_some();
        let rt_writers = if is_rt {
            symbols.ranges_of(RT_RWSEM_DRAINS)
        } else {
            Vec::new()
        };
        let mut probes =
            StreamProbes::load(&plan, &layout.task, &config, &globals, &rt_writers, &btf).unwrap();
        let maps = probes.take_counts().into_iter().collect();
        probes.attach().unwrap();
        Some(Self {
            counts: Counts::new(maps, options, &layout, Some(symbols)),
            is_rt,
            _probes: probes,
        })
    }

    fn read(&self) -> Snapshot {
        self.counts.snapshot().unwrap()
    }
}

/// What the storm's own threads wait for, callers told apart always.
fn of_storm() -> CountOptions {
    CountOptions {
        callers_from: Nanos(0),
        wanted: CountsWanted {
            comms: vec![storm::COMM.to_owned()],
            ..CountsWanted::default()
        },
        ..CountOptions::default()
    }
}

/// What leaves itself out where there is nothing to compare with: before the tracepoints, and
/// on `PREEMPT_RT`.
const TALLY: &str = "independent-tally";

/// What to compare with; `None` where the tracepoints do not tell the waits by themselves.
fn tally(counting: &Counting) -> Option<Tally> {
    if counting.is_rt {
        trial::is_skipped(TALLY, "a wait for an rwsem fires for the locks inside, too");
        return None;
    }
    let tally = Tally::attach(storm::COMM);
    if let Err(error) = &tally {
        trial::is_skipped(TALLY, &format!("{error:#}"));
    }
    tally.ok()
}

/// All distributions of a kind and mode together.
fn total(snapshot: &Snapshot, is_it: impl Fn(&SeriesKey) -> bool) -> Distribution {
    let mut total = Distribution::default();
    for (key, distribution) in &snapshot.series {
        if is_it(key) {
            total.merge(distribution);
        }
    }
    total
}

/// Between the two programs at one firing lies some time; a task may even lose its CPU
/// there, which is allowed for by a twentieth.
const BETWEEN: u64 = 20_000;

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_storm_is_counted_to_the_last_wait() {
    for storm in [Storm::MmapLock, Storm::Pipe, Storm::Directory] {
        let Some(counting) = Counting::attach(&of_storm()) else {
            return;
        };
        let Some(mut tally) = tally(&counting) else {
            return;
        };
        storm.run(8, Duration::from_secs(2)).unwrap();
        let expected = tally.waits().unwrap();
        let snapshot = counting.read();
        assert_eq!(snapshot.lost.total(), 0, "{storm:?}");
        assert!(expected.len() > 20, "{storm:?}: {} waits", expected.len());
        for (mutex, mode) in [
            (true, LockMode::Write),
            (false, LockMode::Read),
            (false, LockMode::Write),
        ] {
            let happened: Vec<u64> = expected
                .iter()
                .filter(|wait| wait.mutex == mutex && wait.read == (mode == LockMode::Read))
                .map(|wait| wait.ns)
                .collect();
            let counted = total(&snapshot, |key| {
                (key.kind == LockKind::Mutex) == mutex && key.mode == mode
            });
            let what = format!("{storm:?}, mutex {mutex}, {mode:?}: {snapshot:#?}");
            assert_eq!(counted.count(), happened.len() as u64, "{what}");
            let sum: u64 = happened.iter().sum();
            let off = sum.abs_diff(counted.sum().0);
            assert!(
                off <= happened.len() as u64 * BETWEEN + sum / 20,
                "{sum} ns happened, {} counted: {what}",
                counted.sum().0
            );
            let longest = happened.iter().max().copied().unwrap_or(0);
            assert!(
                longest.abs_diff(counted.max().0) <= longest / 50 + 50 * BETWEEN,
                "{longest}: {what}"
            );
        }
        println!("{storm:?}: {} waits, all counted", expected.len());
        assert_named(storm, &snapshot);
    }
}

/// Most of the waits are for the storm's own lock, and by whom it was asked for is known.
fn assert_named(storm: Storm, snapshot: &Snapshot) {
    let (class, stems): (&str, &[&str]) = match storm {
        Storm::MmapLock => (
            "mmap_lock",
            &["vm_mmap", "vm_munmap", "__vm_munmap", "mm_populate"],
        ),
        Storm::Pipe => ("pipe", &["pipe_write", "pipe_read"]),
        Storm::Directory => ("i_rwsem", &["unlink", "open", "iterate_dir"]),
    };
    let all = total(snapshot, |_| true);
    let named = total(snapshot, |key| {
        let is_named = match &key.caller {
            Caller::Function(name) => stems.iter().any(|stem| name.contains(stem)),
            _ => false,
        };
        key.class.to_string() == class && is_named
    });
    assert!(
        named.count() * 10 >= all.count() * 9,
        "{} of {} waits of {storm:?} are named {class} in {stems:?}: {:#?}",
        named.count(),
        all.count(),
        snapshot
            .series
            .iter()
            .map(|(key, of)| (key, of.count()))
            .collect::<Vec<_>>()
    );
}

/// How long the lab's waiters wait at least.
const FORCED: Duration = Duration::from_millis(500);

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn waits_that_the_lab_forces_are_counted_once_each() {
    for (scenario, class, kind) in [
        (Scenario::MmapReadHeld, "mmap_lock", LockKind::Rwsem),
        (Scenario::InodeWriteHeld, "i_rwsem", LockKind::Rwsem),
        (Scenario::SuperReadHeld, "s_umount", LockKind::Rwsem),
        (Scenario::FilePosHeld, "f_pos_lock", LockKind::Mutex),
        (Scenario::PipeHeld, "pipe", LockKind::Mutex),
        (Scenario::SuperFrozen, "s_writers", LockKind::PercpuRwsem),
    ] {
        let Some(counting) = Counting::attach(&CountOptions::default()) else {
            return;
        };
        let Some(lab) = Lab::raise_or_skip(scenario, 7).unwrap() else {
            continue;
        };
        let truth = lab.truth.clone();
        std::thread::sleep(FORCED);
        lab.finish().unwrap();
        let snapshot = counting.read();
        assert_eq!(snapshot.lost.total(), 0);
        for mode in [LockMode::Read, LockMode::Write] {
            let waiters = truth.waiters.iter();
            let forced =
                waiters.filter(|waiter| (waiter.mode == Mode::Read) == (mode == LockMode::Read));
            let key = |key: &SeriesKey| {
                key.measure == Measure::Wait
                    && key.class.to_string() == class
                    && key.kind == kind
                    && key.mode == mode
            };
            let counted = total(&snapshot, key);
            let long: u64 = counted
                .buckets()
                .filter(|(from, _, _)| from.0 >= FORCED.as_nanos() as u64)
                .map(|(_, _, count)| count.count)
                .sum();
            assert_eq!(
                long,
                forced.count() as u64,
                "{scenario:?}: waits for {class} ({mode:?}) of {FORCED:?} and longer: {:#?}",
                snapshot
                    .series
                    .iter()
                    .map(|(key, of)| (key, of.count(), of.max()))
                    .collect::<Vec<_>>()
            );
        }
    }
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn what_finds_no_room_is_counted_as_lost() {
    let mut options = of_storm();
    options.entries = 64;
    let Some(counting) = Counting::attach(&options) else {
        return;
    };
    let Some(mut tally) = tally(&counting) else {
        return;
    };
    Storm::MmapLock.run(8, Duration::from_secs(2)).unwrap();
    let expected = tally.waits().unwrap().len() as u64;
    let snapshot = counting.read();
    let counted = total(&snapshot, |_| true).count();
    assert!(snapshot.lost.waits > 0, "{expected} waits all found room");
    assert_eq!(counted + snapshot.lost.waits, expected);
}
