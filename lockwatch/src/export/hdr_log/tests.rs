use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use jiff::Timestamp;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{
    latency::{Caller, CountsLost, Distribution, Measure, SeriesKey, Snapshot},
    lock::{LockClass, LockKind, LockMode},
    task::Nanos,
};

const BEGAN: i64 = 1_764_135_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(BEGAN + second).unwrap()
}

fn series(caller: &str) -> SeriesKey {
    SeriesKey {
        measure: Measure::Wait,
        class: LockClass::MmapLock,
        kind: LockKind::Rwsem,
        mode: LockMode::Read,
        caller: Caller::Function(caller.to_owned()),
    }
}

fn counted(times: &[(&str, u64)]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for &(caller, time) in times {
        let distribution = snapshot.series.entry(series(caller)).or_default();
        distribution.record(Nanos(time));
    }
    snapshot
}

fn header() -> Header {
    Header {
        hosts: vec!["web1".to_owned()],
        start: at(0),
    }
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("waits.hlog")
    }

    fn open(&self, rotation: Rotation) -> HdrLog {
        HdrLog::open(&self.path(), &header(), rotation).unwrap()
    }
}

const SECOND: Duration = Duration::from_secs(1);

fn read(path: &Path) -> Log {
    let mut log = Log::default();
    log.read(fs::read(path).unwrap().as_slice(), Within::default())
        .unwrap();
    log
}

fn error_of(text: &str) -> String {
    let read = Log::default().read(text.as_bytes(), Within::default());
    read.unwrap_err().to_string()
}

/// What a log holds, as it was counted.
fn snapshot(log: &Log) -> Snapshot {
    let series = log.series.iter().map(|(tag, sum)| {
        let key = key(tag.as_deref().unwrap()).unwrap();
        (key, sum.distribution(1))
    });
    Snapshot {
        series: series.collect(),
        lost: log.lost,
    }
}

/// Without sums, which a log does not have.
fn counts(snapshot: &Snapshot) -> Vec<(SeriesKey, Vec<(Nanos, u64)>)> {
    let buckets = |counted: &Distribution| -> Vec<(Nanos, u64)> {
        counted
            .buckets()
            .map(|(from, _, it)| (from, it.count))
            .collect()
    };
    let series = snapshot.series.iter();
    series
        .map(|(key, counted)| (key.clone(), buckets(counted)))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn what_is_written_is_read(
        parts in prop::collection::vec(
            prop::collection::vec(("[a-c]{1}[.:<,> ]{0,2}", 0..crate::latency::HIGHEST_NS), 0..20),
            0..5,
        ),
        lost in 0..1_000_u64,
    ) {
        let folder = Folder::new();
        let mut log = folder.open(Rotation::default());
        let mut all = Snapshot::default();
        for (number, part) in (0..).zip(&parts) {
            let part: Vec<(&str, u64)> = part.iter().map(|(name, time)| (name.as_str(), *time)).collect();
            let mut interval = counted(&part);
            interval.lost = CountsLost { waits: lost, holds: 1 };
            log.interval(&interval, at(number), SECOND).unwrap();
            all.merge(&interval);
        }
        let log = read(&folder.path());
        prop_assert_eq!(counts(&snapshot(&log)), counts(&all));
        prop_assert_eq!(log.lost, all.lost);
        prop_assert_eq!(log.intervals(), parts.len());
        prop_assert_eq!(log.cut_off, Vec::<String>::new());
    }
}

#[test]
fn a_log_by_example() {
    let folder = Folder::new();
    let mut log = folder.open(Rotation::default());
    let mut interval = counted(&[("do_user_addr_fault", 1_500_000), ("__vm_munmap", 90)]);
    interval.lost.waits = 3;
    log.interval(&interval, at(10), Duration::from_millis(10_002))
        .unwrap();
    log.interval(&Snapshot::default(), at(20), 10 * SECOND)
        .unwrap();
    let text = fs::read_to_string(folder.path()).unwrap();
    let text = text.replace(env!("CARGO_PKG_VERSION"), "VERSION");
    insta::assert_snapshot!(text);
    let log = read(&folder.path());
    assert_eq!(log.hosts, ["web1".to_owned()].into());
    assert_eq!(log.span, Some((at(10), at(30))));
    assert_eq!(log.lost.waits, 3);
}

#[test]
fn a_log_is_continued_after_a_kill_and_loses_the_line_that_was_cut_off() {
    let folder = Folder::new();
    let (first, second) = (counted(&[("a", 5), ("b", 7)]), counted(&[("a", 9)]));
    folder
        .open(Rotation::default())
        .interval(&first, at(0), SECOND)
        .unwrap();
    let whole = fs::read(folder.path()).unwrap();
    // At any place behind the first line of the interval.
    for cut in [1, 20, 60, 100] {
        fs::write(folder.path(), &whole[..whole.len() - cut]).unwrap();
        let log = read(&folder.path());
        assert_eq!(
            log.cut_off.len(),
            2 - usize::from(cut == 1) * 2,
            "{:?}",
            log.cut_off
        );

        let mut log = folder.open(Rotation::default());
        log.interval(&second, at(9), SECOND).unwrap();
        let log = read(&folder.path());
        // b is gone, which is told, and nothing else.
        let mut expected = counted(&[("a", 5)]);
        expected.merge(&second);
        assert_eq!(counts(&snapshot(&log)), counts(&expected));
        assert_eq!(log.cut_off.len(), 1, "{:?}", log.cut_off);
        assert!(
            log.cut_off[0].ends_with("1 of 2 series"),
            "{:?}",
            log.cut_off
        );
    }
}

#[test]
fn only_a_log_is_continued_and_only_by_one() {
    let folder = Folder::new();
    let path = folder.path();
    let open = || HdrLog::open(&path, &header(), Rotation::default());
    fs::write(&path, "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    let error = open().unwrap_err().to_string();
    assert!(error.contains("is no HdrHistogram log"), "{error}");
    assert_eq!(fs::read(&path).unwrap().len(), 30, "it was changed");

    fs::write(&path, "").unwrap();
    let first = open().unwrap();
    let error = open().unwrap_err().to_string();
    assert!(error.contains("by another process"), "{error}");
    drop(first);
    open().unwrap();

    let special = HdrLog::open(Path::new("/dev/null"), &header(), Rotation::default());
    let error = special.unwrap_err().to_string();
    assert!(error.contains("is no regular file"), "{error}");
}

#[test]
fn each_file_of_a_rotated_log_is_whole() {
    let folder = Folder::new();
    let rotation = Rotation {
        max_bytes: 1_500,
        keep: 3,
    };
    let mut log = folder.open(rotation);
    for number in 0..40 {
        let interval = counted(&[("a", 5), ("b", number)]);
        log.interval(&interval, at(number as i64), SECOND).unwrap();
    }
    let path = folder.path();
    assert_eq!(fs::read_dir(folder.0.path()).unwrap().count(), 4);
    let mut all = Log::default();
    let mut before = at(40);
    for file in [
        path.clone(),
        file::numbered(&path, 1),
        file::numbered(&path, 2),
        file::numbered(&path, 3),
    ] {
        assert!(fs::metadata(&file).unwrap().len() <= 1_500);
        let log = read(&file);
        assert_eq!(log.hosts, ["web1".to_owned()].into(), "its own header");
        assert_eq!(log.cut_off, Vec::<String>::new());
        let (from, to) = log.span.unwrap();
        assert_eq!(to, before, "nothing is missing between {}", file.display());
        before = from;
        all.read(fs::read(&file).unwrap().as_slice(), Within::default())
            .unwrap();
    }
    assert_eq!(
        all.intervals() as i64,
        40 - before.duration_since(at(0)).as_secs()
    );
}

#[test]
fn who_takes_the_file_away_gets_a_new_one() {
    let folder = Folder::new();
    let mut log = folder.open(Rotation::default());
    log.interval(&counted(&[("a", 5)]), at(0), SECOND).unwrap();
    let moved = folder.0.path().join("moved");
    fs::rename(folder.path(), &moved).unwrap();
    log.interval(&counted(&[("b", 5)]), at(1), SECOND).unwrap();
    assert_eq!(
        counts(&snapshot(&read(&moved))),
        counts(&counted(&[("a", 5)]))
    );
    let log = read(&folder.path());
    assert_eq!(counts(&snapshot(&log)), counts(&counted(&[("b", 5)])));
    assert_eq!(log.hosts.len(), 1);
}

/// In a process of its own, whose files may not grow past a limit: the kernel writes a part and
/// then fails, as on a full disk.
#[test]
fn what_a_full_disk_did_not_take_comes_with_the_next_interval() {
    const CHILD: &str = "LOCKWATCH_TEST_FULL_DISK";
    if std::env::var_os(CHILD).is_none() {
        let name =
            "export::hdr_log::tests::what_a_full_disk_did_not_take_comes_with_the_next_interval";
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(
            child.status.success() && said.contains("1 passed"),
            "{child:?}"
        );
        return;
    }
    let may_grow_to = |bytes: Option<u64>| {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let maximum = getrlimit(Resource::Fsize).maximum;
        setrlimit(
            Resource::Fsize,
            Rlimit {
                current: bytes,
                maximum,
            },
        )
        .unwrap();
    };
    // SAFETY: to ignore a signal is no handler that could do harm; this is the only test in
    // the process.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };

    let folder = Folder::new();
    let mut run = RunLog::new(folder.open(Rotation::default()), counted(&[("a", 1)]));
    let step = |run: &mut RunLog, now: &Snapshot, second| run.update(now, at(second), SECOND);
    let mut now = counted(&[("a", 1), ("a", 5), ("b", 7)]);
    assert!(matches!(step(&mut run, &now, 1), Progress::Written));
    let whole = fs::read(folder.path()).unwrap();

    may_grow_to(Some(whole.len() as u64 + 100));
    now.merge(&counted(&[("b", 8)]));
    let failed = step(&mut run, &now, 2);
    assert!(
        matches!(&failed, Progress::Failed(error) if error.raw_os_error() == Some(libc::EFBIG)),
        "{failed:?}"
    );
    now.merge(&counted(&[("c", 9)]));
    assert!(matches!(step(&mut run, &now, 3), Progress::StillFailing));
    assert_eq!(
        fs::read(folder.path()).unwrap(),
        whole,
        "no part of it stays"
    );

    may_grow_to(None);
    now.merge(&counted(&[("c", 10)]));
    let recovered = step(&mut run, &now, 4);
    assert!(
        matches!(recovered, Progress::Recovered(time) if time == 2 * SECOND),
        "{recovered:?}"
    );
    let log = read(&folder.path());
    assert_eq!(
        counts(&snapshot(&log)),
        counts(&now.since(&counted(&[("a", 1)])))
    );
    assert_eq!(log.span, Some((at(0), at(4))));
    assert_eq!(log.intervals(), 2);
}

/// Lines that the Python and the JavaScript package wrote (hdrhistogram 0.10.8: 1,000 and
/// 2,000 in 3 digits; hdr-histogram-js 3.0.1: 123,456 and 7 in 4).
const OTHERS: &str = include_str!("tests/others.hlog");

#[test]
fn logs_of_other_tools_are_read() {
    let mut log = Log::default();
    log.read(OTHERS.as_bytes(), Within::default()).unwrap();
    let tags: Vec<Option<&str>> = log.series.keys().map(Option::as_deref).collect();
    assert_eq!(tags, [None, Some("js:tag")]);
    let untagged = log.series[&None].histogram();
    assert_eq!((untagged.len(), untagged.sigfig()), (2, 3));
    assert_eq!(untagged.max(), untagged.highest_equivalent(2_000));
    let tagged = log.series[&Some("js:tag".to_owned())].histogram();
    assert_eq!((tagged.len(), tagged.max(), tagged.min()), (2, 123_459, 7));
    // Its times count from its StartTime.
    assert_eq!(log.span, Some((at(5), at(8))));
    // Values are ns or whatever the reader is told.
    let micros = log.series[&None].distribution(1_000);
    assert!(
        micros.max().0.abs_diff(2_000_000) < 20_000,
        "{:?}",
        micros.max()
    );
}

#[test]
fn intervals_are_chosen_by_their_start() {
    let folder = Folder::new();
    let mut log = folder.open(Rotation::default());
    for number in 0..5 {
        let mut interval = counted(&[("a", number)]);
        interval.lost.waits = 1 << number;
        log.interval(&interval, at(number as i64), SECOND).unwrap();
    }
    let within = Within {
        from: Some(at(1)),
        to: Some(at(3)),
    };
    let mut log = Log::default();
    log.read(fs::read(folder.path()).unwrap().as_slice(), within)
        .unwrap();
    assert_eq!(
        counts(&snapshot(&log)),
        counts(&counted(&[("a", 1), ("a", 2)]))
    );
    assert_eq!(log.lost.waits, 0b110);
    assert_eq!(log.span, Some((at(1), at(3))));
}

#[test]
fn what_is_wrong_is_told_with_its_line() {
    let good = "#comment\n\n\"StartTimestamp\",x\n";
    for (line, what) in [
        (
            "rubbish",
            "line 4: expected [Tag=TAG,]start,length,max,histogram",
        ),
        ("1.0,1.0,1.0,!!!", "line 4: the histogram is no base64"),
        (
            "1.0,1.0,1.0,SElTVA==",
            "line 4: the histogram is of no version that lockwatch reads",
        ),
        ("1.0,1.0", "line 4: expected"),
        ("-1.0,1.0,1.0,SElTVA==", "line 4: expected"),
        // 99999999999999999 s
        (
            "99999999999999999.0,1.0,1.0,SElTVA==",
            "line 4: no such time",
        ),
    ] {
        let error = error_of(&format!("{good}{line}\n"));
        assert!(error.starts_with(what), "{error}");
        // The same as a last line that was cut off.
        let mut log = Log::default();
        log.read(format!("{good}{line}").as_bytes(), Within::default())
            .unwrap();
        assert_eq!(log.cut_off, ["line 4 is cut off"], "{line}");
    }
}

#[test]
fn a_small_line_makes_no_large_room() {
    use base64::Engine as _;
    use flate2::{Compression, write::ZlibEncoder};
    // Says that 4 GB follow.
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::fast());
    packed
        .write_all(&[0x1c, 0x84, 0x93, 0x13, 0xff, 0xff, 0xff, 0xff])
        .unwrap();
    packed.write_all(&[0; 32]).unwrap();
    let packed = packed.finish().unwrap();
    let mut bytes = vec![0x1c, 0x84, 0x93, 0x14, 0, 0, 0, packed.len() as u8];
    bytes.extend(packed);
    let text = base64::engine::general_purpose::STANDARD.encode(bytes);
    let error = error_of(&format!("1.0,1.0,1.0,{text}\n"));
    assert_eq!(
        error,
        "line 1: the histogram cannot be unpacked: unexpected end of file"
    );
}
