//! Writes an HdrHistogram log of waits and holds that are made up here, and says on standard
//! output, as JSON, what is in it: for tests with the readers of other projects.
//!
//! usage: `interval_log FILE`

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    path::PathBuf,
    time::Duration,
};

use anyhow::Context as _;
use jiff::Timestamp;
use lockwatch::{
    export::hdr_log::{self, HdrLog, Header, Progress, Rotation, RunLog},
    latency::{Caller, CountsLost, Measure, SeriesKey, Snapshot},
    lock::{LockClass, LockKind, LockMode},
    task::Nanos,
};
use serde::Serialize;

const HOUR_NS: u64 = 3_600_000_000_000;
const INTERVAL: Duration = Duration::from_millis(10_250);
/// 2025-11-26T05:30:00.125Z
const BEGAN_MS: i64 = 1_764_135_000_125;

/// What is in the log.
#[derive(Serialize)]
struct Truth {
    host: &'static str,
    intervals: Vec<Interval>,
    lost_waits: u64,
    lost_holds: u64,
}

/// What is in one interval.
#[derive(Serialize)]
struct Interval {
    start_ms: i64,
    end_ms: i64,
    /// All times in ns by tag.
    times_ns: BTreeMap<String, Vec<u64>>,
}

/// Numbers that look random and are the same each time (Knuth's MMIX).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
}

fn series() -> Vec<SeriesKey> {
    let key = |measure, class, kind, mode, caller| SeriesKey {
        measure,
        class,
        kind,
        mode,
        caller,
    };
    let function = |name: &str| Caller::Function(name.to_owned());
    let symbol = |name: &str| LockClass::Symbol(name.to_owned());
    vec![
        key(
            Measure::Wait,
            LockClass::MmapLock,
            LockKind::Rwsem,
            LockMode::Read,
            function("do_user_addr_fault"),
        ),
        key(
            Measure::Wait,
            LockClass::MmapLock,
            LockKind::Rwsem,
            LockMode::Write,
            Caller::Short,
        ),
        key(
            Measure::Wait,
            symbol("slab:<dentry>, odd"),
            LockKind::Mutex,
            LockMode::Write,
            function("do_x.isra.0"),
        ),
        key(
            Measure::Hold,
            LockClass::SuperUmount,
            LockKind::Rwsem,
            LockMode::Read,
            Caller::Unknown,
        ),
        key(
            Measure::Hold,
            LockClass::KernelData,
            LockKind::PercpuRwsem,
            LockMode::Write,
            Caller::Other,
        ),
        key(
            Measure::Hold,
            symbol("cgroup_mutex"),
            LockKind::Mutex,
            LockMode::Write,
            function("unknown"),
        ),
    ]
}

fn main() -> anyhow::Result<()> {
    let path = std::env::args_os().nth(1).map(PathBuf::from);
    let path = path.context("usage: interval_log FILE")?;
    let header = Header {
        hosts: vec!["web1".to_owned()],
        start: Timestamp::from_millisecond(BEGAN_MS)?,
    };
    let mut numbers = Numbers(42);
    let mut truth = Truth {
        host: "web1",
        intervals: Vec::new(),
        lost_waits: 0,
        lost_holds: 0,
    };
    let mut now = Snapshot::default();
    let mut log = RunLog::new(
        HdrLog::open(&path, &header, Rotation::default())?,
        now.clone(),
    );
    let mut at = header.start;
    for number in 0..12_usize {
        let mut times_ns: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (place, key) in series().iter().enumerate() {
            // Not each series is in each interval, and the fifth interval is empty.
            let times = match (number + place) % 3 {
                _ if number == 4 => 0,
                0 => 0,
                1 => 1 + numbers.next() % 3,
                _ => 1_000 + numbers.next() % 1_000,
            };
            for _ in 0..times {
                // As often in each power of two; an hour and more is counted as an hour.
                let bits = numbers.next() % 43;
                let time = (1 << bits | numbers.next() & ((1 << bits) - 1)).min(HOUR_NS);
                now.series
                    .entry(key.clone())
                    .or_default()
                    .record(Nanos(time));
                times_ns.entry(hdr_log::tag(key)).or_default().push(time);
            }
        }
        let lost = CountsLost {
            waits: numbers.next() % 5,
            holds: numbers.next() % 2,
        };
        now.lost.waits += lost.waits;
        now.lost.holds += lost.holds;
        let start_ms = at.as_millisecond();
        at += INTERVAL;
        let progress = log.update(&now, at, INTERVAL);
        anyhow::ensure!(matches!(progress, Progress::Written), "{progress:?}");
        truth.intervals.push(Interval {
            start_ms,
            end_ms: at.as_millisecond(),
            times_ns,
        });
    }
    truth.lost_waits = now.lost.waits;
    truth.lost_holds = now.lost.holds;
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, &truth)?;
    out.write_all(b"\n")?;
    Ok(())
}
