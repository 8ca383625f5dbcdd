//! Waits at a rate that no locks of this machine reach, through the very programs that
//! lockwatch loads: another process runs them with made-up locks, while this one reads what
//! they say as `watch` and `export` do.

use std::{
    env, fs,
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lockwatch::{
    graph::{Input, WaitGraph},
    kernel::{btf::Btf, layout::Layout, symbols::Symbols},
    lock::LockKind,
    plan::{Mechanism, Wanted, plan},
    probes::{offer, stream::StreamProbes},
    stream::{
        Event, Scan, Wait,
        counts::{self, CountOptions, Counts},
    },
    task::Nanos,
};
use lockwatch_ebpf::stream::{StreamConfig, counter, kind};
use lockwatch_tests::test_run::{Program, attached};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::figures::{Figure, Unit};

/// How long it goes on.
const TIME: Duration = Duration::from_secs(2);
/// Time between two readings of the open waits, as in `watch` with its shortest threshold.
const TICK: Duration = Duration::from_millis(100);
/// Nothing takes longer; then the other process is killed.
const LIMIT: Duration = Duration::from_secs(20);
/// Locks that are made up, one after the other behind a symbol of the kernel: the
/// programs may look at what lies there.
const LOCKS: u64 = 64;
const SYMBOL: &str = "_stext";

/// What the programs send.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// As for `export`: each wait is counted in the kernel, and none of these is long enough
    /// to be sent.
    Counted,
    /// Every begin and every end is sent.
    Sent,
}

/// Both modes. Needs root, and the contention tracepoints.
pub(crate) fn measure() -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (mode, name) in [
        (Mode::Counted, "replayed, counted"),
        (Mode::Sent, "replayed, each begin and end sent"),
    ] {
        for drivers in [1, 2] {
            let seen = run(mode, drivers)?;
            let name = format!("{name}, by {drivers}");
            figures.push(Figure::new(
                format!("{name}: waits"),
                seen.sent as f64 / seen.took.as_secs_f64(),
                Unit::PerSecond,
            ));
            let lost = Figure::new(format!("{name}: lost"), seen.lost as f64, Unit::Count);
            figures.push(lost);
        }
    }
    Ok(figures)
}

/// What became of the waits.
struct Seen {
    sent: u64,
    took: Duration,
    /// Sent and not counted; for [`Mode::Sent`] events that did not come.
    lost: u64,
}

fn run(mode: Mode, drivers: u32) -> Result<Seen> {
    let types = Btf::from_sys()?;
    let layout = Layout::from_btf(&types)?;
    let btf = aya::Btf::from_sys_fs()?;
    let mut offer = offer::ask(Some(&types));
    // Programs at typed tracepoints cannot be run on request; their raw twins are the same
    // code.
    let why = "they cannot be run on request".to_owned();
    offer.refused.insert(Mechanism::TpBtf, why);
    let plan = plan(&offer, Wanted::WITHOUT_HOLDS);
    let symbols = Arc::new(Symbols::from_proc()?);
    let options = CountOptions::default();
    let globals = counts::globals(&options, &layout, Some(&symbols))?;
    let config = StreamConfig {
        ends_from_ns: if mode == Mode::Sent { 0 } else { 1_000_000_000 },
        begins: (mode == Mode::Sent).into(),
        own_tgid: std::process::id(),
    };
    let mut probes = StreamProbes::load(&plan, &layout.task, &config, &globals, &[], &btf)?;
    let maps = probes.take_counts().into_iter().collect();
    let counts = Counts::new(maps, &options, &layout, Some(symbols));
    probes.attach()?;

    let mut child = Command::new(env::current_exe()?)
        .arg("drive")
        .args(["--drivers", &drivers.to_string()])
        .args(ids()?)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start what drives the programs")?;
    let deadline = Instant::now() + LIMIT;
    let mut taken = Taken::default();
    let ended = loop {
        taken.read(&mut probes)?;
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            bail!("what drives the programs did not end");
        }
    };
    ensure!(ended.success(), "what drives the programs failed: {ended}");
    let mut told = String::new();
    let mut out = child.stdout.take().context("no output")?;
    std::io::Read::read_to_string(&mut out, &mut told)?;
    let (sent, took_ns) = told.trim().split_once(' ').context("no counts")?;
    let (sent, took_ns): (u64, u64) = (sent.parse()?, took_ns.parse()?);
    taken.read(&mut probes)?;

    let counters = probes.counters();
    let dropped = [counter::LOST_BEGIN, counter::LOST_END, counter::LOST_WAIT];
    let dropped: u64 = dropped.iter().map(|&which| counters[which as usize]).sum();
    let snapshot = counts.snapshot()?;
    let series = snapshot.series.iter();
    // Nothing else here waits for semaphores.
    let counted: u64 = series
        .filter(|(key, _)| key.kind == LockKind::Semaphore)
        .map(|(_, distribution)| distribution.count())
        .sum();
    eprintln!(
        "{sent} waits were sent, {counted} counted; events: {} begins, {} ends; \
         {dropped} found no room in the ring buffer or among the waits, {} none among the counts",
        taken.begins, taken.ends, snapshot.lost.waits
    );
    let mut lost = sent.abs_diff(counted);
    if mode == Mode::Sent {
        lost += 2 * sent - taken.begins.min(sent) - taken.ends.min(sent);
        ensure!(
            taken.begins <= sent && taken.ends <= sent,
            "too many events"
        );
        ensure!(
            lost == 0 || dropped > 0,
            "{lost} events are lost, and nobody says so"
        );
    } else {
        ensure!(
            taken.begins + taken.ends == 0,
            "events that were not asked for"
        );
    }
    Ok(Seen {
        sent,
        took: Duration::from_nanos(took_ns),
        lost,
    })
}

/// What has come of the made-up waits.
struct Taken {
    graph: WaitGraph,
    begins: u64,
    ends: u64,
}

impl Default for Taken {
    fn default() -> Self {
        Self {
            graph: WaitGraph::new(Nanos(1_000_000_000)),
            begins: 0,
            ends: 0,
        }
    }
}

impl Taken {
    /// Waits until the kernel wants to be read, or a tick has passed, and reads.
    fn read(&mut self, probes: &mut StreamProbes) -> Result<()> {
        let mut wanted = [PollFd::new(probes.events_fd(), PollFlags::POLLIN)];
        poll(&mut wanted, PollTimeout::try_from(TICK)?)?;
        let at_ns = lockwatch::clock::now_ns();
        let mut waits = Vec::new();
        let complete = probes.read_waits(|key, open| waits.push(Wait::decode(key, &open)));
        let (graph, begins, ends) = (&mut self.graph, &mut self.begins, &mut self.ends);
        let malformed = probes.drain(|event| {
            // By no flags: a semaphore, see above.
            if event.wait.flags == 0 {
                *begins += u64::from(event.kind == kind::WAIT_BEGIN);
                *ends += u64::from(event.kind == kind::WAIT_END);
            }
            if let Some(event) = Event::decode(&event) {
                graph.take(Input::Event(event));
            }
        });
        ensure!(malformed == 0, "{malformed} events of another size");
        graph.take(Input::Scan(Scan {
            at_ns,
            waits,
            complete,
        }));
        graph.take(Input::Clock(at_ns));
        Ok(())
    }
}

/// The programs at the contention tracepoints, as arguments.
fn ids() -> Result<Vec<String>> {
    let attached = attached()?;
    let mut arguments = Vec::new();
    for (tracepoint, option) in [("contention_begin", "--begin"), ("contention_end", "--end")] {
        let id = attached.iter().find(|(name, _)| name == tracepoint);
        let (_, id) = id.with_context(|| format!("nothing is attached to {tracepoint}"))?;
        arguments.extend([option.to_owned(), id.to_string()]);
    }
    Ok(arguments)
}

/// The other process: runs the programs in turns with so many threads, and prints how often
/// and in what time, in ns.
pub(crate) fn drive(begin: u32, end: u32, drivers: u32) -> Result<()> {
    let base = address_of(SYMBOL)?;
    let programs = (Program::by_id(begin)?, Program::by_id(end)?);
    let begun = Instant::now();
    let sent = thread::scope(|scope| -> Result<u64> {
        let work = |driver: u32| {
            let (begin, end) = &programs;
            let mut sent = 0_u64;
            let first = u64::from(driver) * LOCKS / 2;
            while !sent.is_multiple_of(1024) || begun.elapsed() < TIME {
                let lock = base + 8 * (first + sent % (LOCKS / 2));
                begin.run(&[lock, 0])?;
                end.run(&[lock, 0])?;
                sent += 1;
            }
            Ok::<u64, std::io::Error>(sent)
        };
        let threads: Vec<_> = (0..drivers)
            .map(|it| scope.spawn(move || work(it)))
            .collect();
        let mut sent = 0;
        for thread in threads {
            sent += thread
                .join()
                .map_err(|_| anyhow::anyhow!("a driver panicked"))??;
        }
        Ok(sent)
    })?;
    println!("{sent} {}", begun.elapsed().as_nanos());
    Ok(())
}

fn address_of(symbol: &str) -> Result<u64> {
    let symbols = fs::read_to_string("/proc/kallsyms").context("symbols")?;
    let line = symbols.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next()?;
        (words.nth(1)? == symbol).then_some(address)
    });
    let address = line.with_context(|| format!("no {symbol} in /proc/kallsyms"))?;
    let address = u64::from_str_radix(address, 16)?;
    ensure!(address != 0, "/proc/kallsyms shows no addresses");
    Ok(address)
}
