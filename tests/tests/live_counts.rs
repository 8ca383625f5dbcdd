//! Every wait is counted in the kernel, once, as what it was; and every hold.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod counting;

use std::{
    collections::BTreeSet,
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
    thread,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData, loaded_maps};

use counting::{Counting, total};
use lockwatch::{
    kernel::{bpf_files, btf::Btf, layout::Layout},
    latency::{Caller, Measure, SeriesKey, Snapshot},
    lock::{LockKind, LockMode},
    plan::Purpose,
    stream::counts::{CountOptions, CountsWanted},
    task::Nanos,
};
use lockwatch_ebpf::counts::{Count, CountKey};
use lockwatch_tests::{
    storm::{self, Storm},
    tally::Tally,
    trial::{self, Lab},
    truth::{Mode, Scenario},
};

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
fn tally() -> Option<Tally> {
    let is_rt = Layout::from_btf(&Btf::from_sys().unwrap())
        .unwrap()
        .locks
        .rt_rwsem
        .is_some();
    if is_rt {
        trial::is_skipped(TALLY, "a wait for an rwsem fires for the locks inside, too");
        return None;
    }
    let tally = Tally::attach(storm::COMM);
    if let Err(error) = &tally {
        trial::is_skipped(TALLY, &format!("{error:#}"));
    }
    tally.ok()
}

/// So often a storm is tried, until there were so many waits.
const STORMS: u32 = 5;
const WAITS: usize = 5;

/// Between the two programs at one firing lies some time; a task may even lose its CPU
/// there, which is allowed for by a twentieth.
const BETWEEN: u64 = 20_000;
/// … and for the longest of them by a turn of another task.
const TURN: u64 = 6_000_000;

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_storm_is_counted_to_the_last_wait() {
    for storm in [Storm::MmapLock, Storm::Pipe, Storm::Directory] {
        let Some(mut tally) = tally() else {
            return;
        };
        let counting = Counting::attach(&of_storm(), false);
        // On emulated CPUs that take turns, tasks meet by chance.
        let mut expected = Vec::new();
        for _ in 0..STORMS {
            storm.run(8, trial::bound(Duration::from_secs(1))).unwrap();
            expected = tally.waits().unwrap();
            if expected.len() >= WAITS {
                break;
            }
        }
        let snapshot = counting.read();
        assert_eq!(snapshot.lost.total(), 0, "{storm:?}");
        assert!(
            expected.len() >= WAITS,
            "{storm:?}: {} waits",
            expected.len()
        );
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
                longest.abs_diff(counted.max().0) <= longest / 50 + TURN,
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
        named.count() * 3 >= all.count() * 2,
        "{} of {} waits of {storm:?} are named {class} in {stems:?}: {}",
        named.count(),
        all.count(),
        summary(snapshot)
    );
}

/// How long the lab's waiters wait at least.
const FORCED: Duration = Duration::from_millis(500);

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn waits_that_the_lab_forces_are_counted_once_each() {
    let counting = Counting::attach(&CountOptions::default(), false);
    for (scenario, class, kind) in [
        (Scenario::MmapReadHeld, "mmap_lock", LockKind::Rwsem),
        (Scenario::InodeWriteHeld, "i_rwsem", LockKind::Rwsem),
        (Scenario::SuperReadHeld, "s_umount", LockKind::Rwsem),
        (Scenario::FilePosHeld, "f_pos_lock", LockKind::Mutex),
        (Scenario::PipeHeld, "pipe", LockKind::Mutex),
        (Scenario::SuperFrozen, "s_writers", LockKind::PercpuRwsem),
    ] {
        let kind = match kind {
            // On PREEMPT_RT a mutex is an rtmutex.
            LockKind::Mutex if counting.is_rt() => LockKind::RtMutex,
            kind => kind,
        };
        let before = counting.read();
        let Some(lab) = Lab::raise_or_skip(scenario, 7).unwrap() else {
            continue;
        };
        let truth = lab.truth.clone();
        thread::sleep(FORCED);
        lab.finish().unwrap();
        let snapshot = counting.read().since(&before);
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
            assert_eq!(
                long(&snapshot, key),
                forced.count() as u64,
                "{scenario:?}: waits for {class} ({mode:?}) of {FORCED:?} and longer: {}",
                summary(&snapshot)
            );
        }
    }
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn what_finds_no_room_is_counted_as_lost() {
    let mut options = of_storm();
    options.entries = 64;
    let Some(mut tally) = tally() else {
        return;
    };
    let counting = Counting::attach(&options, false);
    Storm::MmapLock.run(8, Duration::from_secs(2)).unwrap();
    let expected = tally.waits().unwrap().len() as u64;
    let snapshot = counting.read();
    let counted = total(&snapshot, |_| true).count();
    assert!(snapshot.lost.waits > 0, "{expected} waits all found room");
    assert_eq!(counted + snapshot.lost.waits, expected);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn holds_that_the_lab_forces_are_counted_once_each() {
    let counting = Counting::attach(&CountOptions::default(), true);
    let at = |is_it: fn(&Purpose) -> bool| {
        let mut hooks = counting.plan().hooks.iter();
        hooks.any(|hook| is_it(&hook.purpose))
    };
    let everywhere = at(|purpose| matches!(purpose, Purpose::Release { .. }));
    let of_mmap = at(|purpose| matches!(purpose, Purpose::MmapReleased { .. }));
    for (scenario, class) in [
        (Scenario::MmapReadHeld, "mmap_lock"),
        (Scenario::InodeWriteHeld, "i_rwsem"),
        (Scenario::InodeReadHeld, "i_rwsem"),
    ] {
        let before = counting.read();
        let is_tracked = everywhere || of_mmap && class == "mmap_lock";
        if !is_tracked {
            println!("{scenario:?}: holds of {class} cannot be tracked here");
            assert!(
                of_mmap,
                "no holds can be tracked: {:?}",
                counting.plan().gaps
            );
            continue;
        }
        let lab = Lab::raise_bare(scenario, 3).unwrap();
        let truth = lab.truth.clone();
        thread::sleep(FORCED);
        lab.finish().unwrap();
        let snapshot = counting.read().since(&before);
        assert_eq!(snapshot.lost.total(), 0);
        for mode in [LockMode::Read, LockMode::Write] {
            let forced = truth
                .holders
                .iter()
                .filter(|holder| (holder.mode == Mode::Read) == (mode == LockMode::Read));
            let long = long(&snapshot, |key| {
                key.measure == Measure::Hold && key.class.to_string() == class && key.mode == mode
            });
            assert_eq!(
                long,
                forced.count() as u64,
                "{scenario:?}: holds of {class} ({mode:?}) of {FORCED:?} and longer: {}",
                summary(&snapshot)
            );
        }
    }
}

/// How many were [`FORCED`] or longer.
fn long(snapshot: &Snapshot, is_it: impl Fn(&SeriesKey) -> bool) -> u64 {
    total(snapshot, is_it)
        .buckets()
        .filter(|(from, _, _)| from.0 >= FORCED.as_nanos() as u64)
        .map(|(_, _, count)| count.count)
        .sum()
}

/// A line for each series.
fn summary(snapshot: &Snapshot) -> String {
    let line = |(key, of): (&SeriesKey, &lockwatch::latency::Distribution)| {
        format!("\n{key:?}: {} up to {:?}", of.count(), of.max())
    };
    snapshot.series.iter().map(line).collect()
}

/// Series and buckets in use of each that there is room for by default.
const SERIES: u32 = 1_000;
const IN_USE: u32 = 64;

/// What the map of counts may take, on any number of CPUs.
const MEMORY: u64 = 8 << 20;

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_thousand_series_find_room_and_are_read_in_a_moment() {
    let before: BTreeSet<u32> = maps_of_counts().collect();
    let counting = Counting::attach(&of_storm(), false);
    let id = maps_of_counts().find(|id| !before.contains(id)).unwrap();
    let map = MapData::from_id(id).unwrap();
    let fd = map.fd().as_fd().as_raw_fd();
    let of_map = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
    let memory = bpf_files::number(&of_map, bpf_files::MEMORY).unwrap();
    let mut map: HashMap<MapData, Key, Value> = HashMap::try_from(Map::HashMap(map)).unwrap();
    for series in 0..SERIES {
        for bucket in 0..IN_USE {
            let key = CountKey {
                class: 0,
                caller: 0,
                how: series << 8,
                bucket: bucket * 40,
            };
            let count = Count {
                count: 1,
                sum_ns: 1,
            };
            map.insert(Key(key), Value(count), 0).unwrap();
        }
    }
    let begun = Instant::now();
    let snapshot = counting.read();
    let took = begun.elapsed();
    let counted = total(&snapshot, |_| true).count();
    assert_eq!(counted, u64::from(SERIES * IN_USE));
    println!("{counted} buckets in use: {memory} bytes, read in {took:?}");
    assert!(memory <= MEMORY, "{memory} bytes");
    assert!(took < trial::bound(Duration::from_secs(2)), "{took:?}");
}

/// The maps of counts that are in the kernel, by id.
fn maps_of_counts() -> impl Iterator<Item = u32> {
    let maps = loaded_maps().flatten();
    maps.filter(|map| map.name_as_str() == Some("COUNTS"))
        .map(|map| map.id())
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Key(CountKey);

// SAFETY: `repr(C)`, only integers.
unsafe impl aya::Pod for Key {}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Value(Count);

// SAFETY: `repr(C)`, only integers.
unsafe impl aya::Pod for Value {}
