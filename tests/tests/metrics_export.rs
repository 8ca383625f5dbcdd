//! `lockwatch export` under a storm: what happened is what each reader is told.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod pushed;
mod scraped;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::BufReader,
    net::SocketAddr,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use lockwatch::export::hdr_log::{Log, Sum, Within};
use lockwatch_tests::{
    storm::{self, Storm},
    tally::Tally,
    trial::{self, Program},
};
use nix::sys::signal::Signal;
use pushed::Collector;
use scraped::{http, prometheus::Prometheus};

/// How long a command may take to be ready, and to end when told to.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the run counts into, per interval of its log.
const INTERVAL: Duration = Duration::from_secs(1);

/// An `export` of what the storm's threads wait for, with everything attached, and where it
/// is scraped.
fn export(log: &Path) -> (Program, SocketAddr) {
    let mut command = export_command();
    command.args(["--listen", "127.0.0.1:0", "--hdr-log"]);
    let (program, said) = start(command.arg(log));
    let address = said.strip_prefix("http://").unwrap();
    let (address, _) = address.split_once('/').unwrap();
    (program, address.parse().unwrap())
}

fn export_command() -> Command {
    let mut command = Command::new(trial::lockwatch().unwrap());
    command.args(["export", "--interval", "1s", "--comm", storm::COMM]);
    command
}

/// Starts it and waits until everything is attached; where it says that it exports to.
fn start(command: &mut Command) -> (Program, String) {
    let mut program = Program::start(command).unwrap();
    let begun = Instant::now();
    loop {
        let line = program.err_line(trial::bound(PATIENCE)).unwrap();
        let line = line.unwrap_or_else(|| panic!("it ended: {}", program.stderr_so_far()));
        if let Some(said) = line.strip_prefix("exporting: ") {
            return (program, said.to_owned());
        }
        assert!(begun.elapsed() < trial::bound(PATIENCE), "not ready");
    }
}

/// The sum of all samples with this name.
fn sum(metrics: &str, name: &str) -> f64 {
    let of_name = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with([' ', '{']).then_some(rest)
    });
    of_name
        .map(|rest| rest.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

/// The waits in a log, and whether its end is whole.
fn waits_in(path: &Path) -> u64 {
    let mut log = Log::default();
    let file = BufReader::new(File::open(path).unwrap());
    log.read(file, Within::default()).unwrap();
    let lost = log.lost;
    assert_eq!(lost.total(), 0, "{lost:?}");
    log.series.values().map(Sum::total).sum()
}

#[test]
#[ignore = "metrics: needs root, BPF and a Prometheus; run by cargo xtask test"]
fn the_hardest_storm_is_told_to_the_last_wait() {
    for storm in [Storm::Pipe, Storm::MmapLock] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("storm.hlog");
        let (program, address) = export(&path);
        let mut tally = Tally::attach_with_room(storm::COMM, 512 << 20).unwrap();
        let begun = Instant::now();
        thread::scope(|scope| {
            let storm = scope.spawn(|| storm.run(8, Duration::from_secs(5)));
            while !storm.is_finished() {
                tally.take().unwrap();
                thread::sleep(Duration::from_millis(2));
            }
            storm.join().unwrap().unwrap();
        });
        let took = begun.elapsed();
        let happened = tally.waits().unwrap().len() as u64;
        assert!(happened >= 5, "{storm:?}: {happened} waits");

        // Series that are new begin at 0: what they counted is there at the second scrape.
        http::get(address, "/metrics", "").unwrap();
        let metrics = http::get(address, "/metrics", "").unwrap();
        let counted = sum(&metrics, "lockwatch_lock_wait_seconds_count");
        assert_eq!(counted, happened as f64, "{storm:?}: {metrics}");
        for lost in ["lockwatch_uncounted_total", "lockwatch_lost_total"] {
            assert_eq!(sum(&metrics, lost), 0.0, "{storm:?}: {metrics}");
        }
        program.signal(Signal::SIGINT);
        let ended = program.end(trial::bound(PATIENCE)).unwrap();
        assert_eq!(ended.code(), Some(0), "{}", ended.describe());
        assert_eq!(waits_in(&path), happened, "{storm:?}");
        println!(
            "{storm:?}: {happened} waits in {took:?}, all told; export took {:.2} s of CPU and \
             {:.0} MiB, its maps {:.1} MiB",
            sum(&metrics, "lockwatch_cpu_seconds_total"),
            sum(&metrics, "lockwatch_resident_memory_bytes") / 1048576.0,
            sum(&metrics, "lockwatch_map_memory_bytes") / 1048576.0,
        );
    }
}

#[test]
#[ignore = "metrics: needs root, BPF and a Prometheus; run by cargo xtask test"]
fn a_kill_loses_no_more_than_an_interval() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("killed.hlog");
    let (program, _) = export(&path);
    let mut tally = Tally::attach(storm::COMM).unwrap();
    Storm::MmapLock.run(8, Duration::from_secs(2)).unwrap();
    let happened = tally.waits().unwrap().len() as u64;
    assert!(happened >= 5, "{happened} waits");
    // All of that is in an interval that is over, and written.
    thread::sleep(2 * INTERVAL);
    program.signal(Signal::SIGKILL);
    program.end(trial::bound(PATIENCE)).unwrap();
    assert_eq!(waits_in(&path), happened);
}

#[test]
#[ignore = "metrics: needs root, BPF and a Prometheus; run by cargo xtask test"]
fn prometheus_scrapes_what_a_running_kernel_does() {
    let folder = tempfile::tempdir().unwrap();
    let (program, address) = export(&folder.path().join("scraped.hlog"));
    let prometheus = Prometheus::start(address, &[]).unwrap();
    prometheus
        .wait_for_value("up{job=\"lockwatch\"}", 1.0)
        .unwrap();
    let mut tally = Tally::attach(storm::COMM).unwrap();
    Storm::MmapLock.run(8, Duration::from_secs(2)).unwrap();
    let waits = tally.waits().unwrap();
    let of = |of: &str, read: bool| {
        let mode = if read { "read" } else { "write" };
        format!("sum({of}{{class=\"mmap_lock\",mode=\"{mode}\"}})")
    };
    for read in [true, false] {
        let happened = waits.iter().filter(|wait| wait.read == read && !wait.mutex);
        let happened: Vec<u64> = happened.map(|wait| wait.ns).collect();
        assert!(!happened.is_empty(), "no waits, read: {read}");
        let count = of("lockwatch_lock_wait_seconds_count", read);
        prometheus
            .wait_for_value(&count, happened.len() as f64)
            .unwrap();
        let sum = of("lockwatch_lock_wait_seconds_sum", read);
        let sum = prometheus.value(&sum).unwrap().unwrap();
        let expected = happened.iter().sum::<u64>() as f64 / 1e9;
        assert!(
            (sum - expected).abs() < expected / 10.0,
            "{sum} for {expected}"
        );
    }
    program.signal(Signal::SIGTERM);
    let ended = program.end(trial::bound(PATIENCE)).unwrap();
    assert_eq!(ended.code(), Some(0), "{}", ended.describe());
}

#[test]
#[ignore = "metrics: needs root and BPF; run by cargo xtask test"]
fn the_last_push_has_all_and_no_series_goes_back() {
    const WAIT: &str = "lockwatch.lock.wait";
    let collector = Collector::start().unwrap();
    let mut command = export_command();
    let endpoint = format!("http://{}", collector.address);
    let (program, _) = start(command.args(["--otlp", &endpoint]));
    let mut tally = Tally::attach(storm::COMM).unwrap();
    // Nothing has waited by the first push: all that begins after it is told as 0 once, unless
    // the end comes first.
    thread::sleep(INTERVAL + INTERVAL / 2);
    Storm::MmapLock.run(8, 3 * INTERVAL).unwrap();
    let happened = tally.waits().unwrap().len() as u64;
    program.signal(Signal::SIGINT);
    let ended = program.end(trial::bound(PATIENCE)).unwrap();
    assert_eq!(ended.code(), Some(0), "{}", ended.describe());

    let requests = collector.finish().unwrap();
    assert!(requests.len() >= 3, "{} pushes", requests.len());
    let mut before = BTreeMap::new();
    for request in &requests {
        let series = pushed::histogram(request, WAIT);
        let counts: BTreeMap<String, u64> = series
            .iter()
            .map(|series| (pushed::attributes(series), series.count))
            .collect();
        assert_eq!(counts.len(), series.len(), "a series twice: {series:?}");
        for (attributes, count) in &before {
            assert!(counts.get(attributes) >= Some(count), "{attributes}");
        }
        before = counts;
    }
    assert_eq!(before.values().sum::<u64>(), happened, "{before:?}");
    let callers: BTreeSet<&str> = before
        .keys()
        .filter_map(|attributes| attributes.split_once("caller=").map(|(_, caller)| caller))
        .filter(|caller| {
            !["short", "unknown", "other"]
                .iter()
                .any(|it| caller.contains(it))
        })
        .collect();
    assert!(!callers.is_empty(), "no caller is told: {before:?}");
}
