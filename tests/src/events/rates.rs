//! How many events a second one core takes in, and what is asked of the allocator for it.

use std::{
    fs::{self, File},
    hint::black_box,
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use lockwatch::{
    detect::{Detectors, Thresholds},
    graph::{Change, Input, WaitGraph},
    recording::{Chosen, Header, Reader, Record, Replayed, Writer},
    report::{Host, Report},
    stream::{Event, Scan},
    survey::Survey,
    task::Nanos,
};
use rustix::time::{ClockId, clock_gettime};
use zerocopy::FromBytes as _;

use crate::{
    allocations,
    figures::{Figure, Unit},
    scene::{RECORD, Scene},
};

/// Events between two readings of the open waits: a tenth of a second of the scene.
const TICK: usize = 100_000;
/// Ticks between two surveys.
const SURVEY_AFTER: usize = 10;
/// Ticks between two ends of the waits that are long.
const RELEASE_AFTER: usize = 5;
/// Ticks before anything is measured: tables grow to their size.
const WARM_UP: usize = 20;
/// Ticks of one measurement: three million events.
const TICKS: usize = 30;
/// Of so many measurements the median is told.
const RUNS: usize = 7;
/// Events of the recording that is written and read back.
const RECORDED: usize = 1_000_000;
/// Waits of the scene that are this long are stalls.
const THRESHOLD: Nanos = Nanos(100_000_000);

/// What is put through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Records of the ring buffer to events.
    Decode,
    /// Events through the graph, with readings and clock.
    Graph,
    /// Records of the ring buffer through the graph, and surveys to the detectors.
    Whole,
}

/// What one run came to.
#[derive(Default)]
struct Cost {
    events: usize,
    readings: usize,
    /// Processor time, in ns.
    ns: u64,
    /// For events alone.
    event_allocations: u64,
    /// For readings of the open waits, and the clock behind them.
    reading_allocations: u64,
    ended: usize,
    began: usize,
    findings: usize,
}

/// Measures all of it, or only what repeats. `recorded`: a recording of a real stall, whose
/// survey goes to the detectors.
pub(crate) fn measure(recorded: &Path, only_steady: bool) -> Result<Vec<Figure>> {
    let incident = Incident::read(recorded)?;
    let mut figures = Vec::new();
    if !only_steady {
        figures.extend(rates(&incident));
    }
    figures.extend(allocated(&incident)?);
    figures.push(incident.report_cost());
    figures.extend(recording(&incident, only_steady)?);
    Ok(figures)
}

/// Each way in turns, so that all meet the same of what else this machine does.
fn rates(incident: &Incident) -> Vec<Figure> {
    let ways = [
        (Way::Decode, "decoding"),
        (Way::Graph, "graph"),
        (Way::Whole, "source to detectors"),
    ];
    let mut rates = ways.map(|_| Vec::new());
    for _ in 0..RUNS {
        for ((way, _), rates) in ways.iter().zip(&mut rates) {
            let cost = run(*way, incident, true);
            rates.push(cost.events as f64 / (cost.ns as f64 / 1e9));
        }
    }
    let figure = |((_, name), rates): (&(Way, &str), Vec<f64>)| {
        Figure::new(*name, median(rates), Unit::PerSecond)
    };
    ways.iter().zip(rates).map(figure).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What is asked of the allocator: for events and readings while nobody waits for long, and
/// for the stalls where somebody does.
fn allocated(incident: &Incident) -> Result<[Figure; 3]> {
    let calm = run(Way::Whole, incident, false);
    ensure!(calm.ended + calm.began == 0, "a stall where there is none");
    let stalls = run(Way::Whole, incident, true);
    // What goes through must come to something, or nothing was measured.
    ensure!(
        stalls.ended > 0 && stalls.began > 0,
        "no stall in the scene"
    );
    ensure!(stalls.findings > 0, "no finding in the scene");
    let per = |count: u64, of: usize| count as f64 / of as f64;
    let of_stalls = stalls.event_allocations + stalls.reading_allocations;
    let figures = [
        ("of an event", per(calm.event_allocations, calm.events)),
        (
            "of a reading of the open waits",
            per(calm.reading_allocations, calm.readings),
        ),
        ("of a stall", per(of_stalls, stalls.ended)),
    ];
    // Of none, a tenth is none, too.
    Ok(figures.map(|(name, value)| Figure::new(name, value, Unit::Allocations).steady(0.1)))
}

fn run(way: Way, incident: &Incident, has_long: bool) -> Cost {
    let mut scene = Scene::new(incident.survey.locks[0].address, has_long);
    let mut graph = WaitGraph::new(THRESHOLD);
    let mut cost = Cost::default();
    let mut records = Vec::with_capacity((TICK + TICK / 10) * RECORD);
    let mut events = Vec::with_capacity(TICK + TICK / 10);
    for tick in 0..WARM_UP + TICKS {
        if tick == WARM_UP {
            cost = Cost::default();
        }
        records.clear();
        if tick % RELEASE_AFTER == 0 {
            scene.release(&mut records);
        }
        scene.go_on(TICK, &mut records);
        let scan = scene.scan();
        events.clear();
        if way == Way::Graph {
            events.extend(records.chunks_exact(RECORD).filter_map(decoded));
        }
        let begun_ns = cpu_ns();
        let ((), allocated) = allocations::during(|| match way {
            Way::Decode => {
                for record in records.chunks_exact(RECORD) {
                    black_box(decoded(record));
                }
            }
            Way::Graph => {
                for event in events.drain(..) {
                    graph.take(Input::Event(event));
                }
            }
            Way::Whole => {
                for event in records.chunks_exact(RECORD).filter_map(decoded) {
                    graph.take(Input::Event(event));
                }
            }
        });
        cost.events += records.len() / RECORD;
        cost.event_allocations += allocated;
        if way != Way::Decode {
            let (changes, allocated) = allocations::during(|| reading(&mut graph, scan));
            cost.readings += 1;
            cost.reading_allocations += allocated;
            for change in changes {
                match change {
                    Change::Began(_) => cost.began += 1,
                    Change::Ended(_) => cost.ended += 1,
                }
            }
        }
        if way == Way::Whole && tick % SURVEY_AFTER == 0 {
            graph.take(Input::Survey(Arc::clone(&incident.survey)));
            cost.findings += incident.report().findings.len();
        }
        cost.ns += cpu_ns() - begun_ns;
    }
    cost
}

fn decoded(record: &[u8]) -> Option<Event> {
    let event = lockwatch_ebpf::stream::Event::read_from_bytes(record).ok()?;
    Event::decode(&event)
}

fn reading(graph: &mut WaitGraph, scan: Scan) -> Vec<Change> {
    let at_ns = scan.at_ns;
    graph.take(Input::Scan(scan));
    graph.take(Input::Clock(at_ns))
}

/// A real stall, from a recording.
struct Incident {
    host: Host,
    survey: Arc<Survey>,
}

impl Incident {
    fn read(path: &Path) -> Result<Self> {
        let reader =
            Reader::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let played = Replayed::from_reader(reader, Chosen::Worst, &Detectors::default());
        let (_, survey) = played.chosen.context("the recording has no survey")?;
        ensure!(!survey.locks.is_empty(), "no lock in the worst survey");
        let host = played.header.host;
        Ok(Self { host, survey })
    }

    fn report(&self) -> Report {
        let thresholds = Thresholds::of_waits(THRESHOLD);
        let detectors = Detectors::default();
        Report::from_survey(&self.survey, &self.host, thresholds, &detectors)
    }

    fn report_cost(&self) -> Figure {
        let waiters: usize = self.survey.locks.iter().map(|it| it.waiters.len()).sum();
        let (report, allocated) = allocations::during(|| self.report());
        drop(report);
        let name = format!("of a survey of {waiters} waiters, to its report");
        Figure::new(name, allocated as f64, Unit::Allocations).steady(0.1)
    }
}

/// Writes a recording of the scene, and reads it back: the text of a record has to be
/// unpacked and understood, besides all that an event from the kernel needs.
fn recording(incident: &Incident, only_steady: bool) -> Result<Vec<Figure>> {
    let file = tempfile::NamedTempFile::new().context("a file for a recording")?;
    let thresholds = Thresholds::of_waits(THRESHOLD);
    let mut header = Header::now(thresholds, Vec::new(), Vec::new());
    let mut scene = Scene::new(incident.survey.locks[0].address, true);
    header.began_ns = scene.now_ns();
    let mut writer = Writer::new(File::create(file.path())?, &header)?;
    let mut records = Vec::new();
    for tick in 0..RECORDED / TICK {
        let from = records.len();
        if tick % RELEASE_AFTER == 0 {
            scene.release(&mut records);
        }
        scene.go_on(TICK, &mut records);
        for event in records[from..].chunks_exact(RECORD).filter_map(decoded) {
            writer.write(&Record::Input(Input::Event(event)))?;
        }
        writer.write(&Record::Input(Input::Scan(scene.scan())))?;
        writer.write(&Record::Input(Input::Clock(scene.now_ns())))?;
    }
    writer.finish(scene.now_ns(), None)?;
    let written = records.len() / RECORD;
    let bytes = fs::metadata(file.path())?.len();

    let (mut reads, mut plays) = (Vec::new(), Vec::new());
    let mut allocated = 0;
    for _ in 0..if only_steady { 1 } else { RUNS } {
        let (result, counted) = allocations::during(|| read(file.path()));
        let (records, rate) = result?;
        ensure!(records > written, "less was read than written");
        reads.push(rate);
        allocated = counted;
        plays.push(play(file.path(), written)?);
    }
    let per_event = |all: u64| all as f64 / written as f64;
    let mut figures = vec![
        Figure::new(
            "of an event in a recording",
            per_event(allocated),
            Unit::Allocations,
        )
        .steady(0.1),
        Figure::new("an event in a recording", per_event(bytes), Unit::Bytes).steady(0.02),
    ];
    if !only_steady {
        for (name, rates) in [
            ("reading a recording", reads),
            ("recording to its stalls", plays),
        ] {
            let rate = written as f64 * median(rates);
            figures.push(Figure::new(name, rate, Unit::PerSecond));
        }
    }
    Ok(figures)
}

/// Reads a recording; how many records, and how often a second that could be done.
fn read(path: &Path) -> Result<(usize, f64)> {
    let begun_ns = cpu_ns();
    let mut reader = Reader::open(path)?;
    let records = reader.by_ref().count();
    ensure!(reader.damage().is_none(), "{:?}", reader.damage());
    Ok((records, 1e9 / (cpu_ns() - begun_ns) as f64))
}

/// Plays a recording of so many events back; how often a second that could be done.
fn play(path: &Path, events: usize) -> Result<f64> {
    let begun_ns = cpu_ns();
    let played = Replayed::from_reader(Reader::open(path)?, Chosen::Worst, &Detectors::default());
    let rate = 1e9 / (cpu_ns() - begun_ns) as f64;
    ensure!(played.damage.is_none(), "{:?}", played.damage);
    ensure!(played.events == events as u64, "events are missing");
    ensure!(played.ended_count > 0, "no stall in the recording");
    Ok(rate)
}

/// Processor time of this thread: others that run meanwhile do not count.
fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}
