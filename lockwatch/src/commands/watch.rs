//! `lockwatch watch`: stalls as they stand and as they end.

mod cpus;
mod event;
mod filter;
mod hang_watch;
mod holders;
mod output;
mod progress;
mod reports;
mod session;
mod sources;
mod surveys;
mod ticks;
mod unseen;
mod words;

use std::{
    io::{self, Write as _},
    pin::pin,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use self::{
    filter::Filter,
    output::Output,
    reports::Reports,
    sources::{Asked, Sources},
    ticks::Ticks,
};
pub(super) use self::{
    output::Summary,
    session::Session,
    words::{by_kind, findings_of_hangs, printable, unsurveyed},
};
use super::{
    Outcome, allow_closed_pipe, memory::lock_memory, priority::be_real_time, recorder::Recorder,
};
use crate::{
    cli::{self, ExportArgs, RecordArgs, SourceArgs, WatchArgs},
    detect::{Detectors, Thresholds},
    figures::Span,
    latency::Snapshot,
    plan::Gap,
    recording::Header,
    stream::counts::CountOptions,
    task::Nanos,
};

/// The graph is brought up to date this many times within the threshold …
const TICKS_PER_THRESHOLD: u32 = 4;
/// … but neither more often nor less often than this.
const TICK_MIN: Duration = Duration::from_millis(10);
const TICK_MAX: Duration = Duration::from_millis(250);

/// Watches until told to stop.
///
/// # Errors
/// When neither the stream nor surveys can be had on this host, or the output cannot
/// be written.
pub fn run(args: &WatchArgs) -> anyhow::Result<Outcome> {
    event_loop()?.block_on(watch(args))
}

async fn watch(args: &WatchArgs) -> anyhow::Result<Outcome> {
    let detectors = args.detect.detectors();
    let thresholds = cli::thresholds(args.threshold, args.hang, Some(args.lockup));
    let thresholds = detectors.asked(thresholds);
    be_real_time(args.sources.priority)?;
    // Everything is loaded and attached before the first wait is looked at: later,
    // on a host that hangs, it might not be possible.
    let sources = Sources::open(thresholds, &args.sources, Asked::STALLS)?;
    let stdout = Box::new(io::BufWriter::new(io::stdout()));
    let mut output = Output::new(stdout, args.format, args.look.for_stdout());
    let reports = Reports::new(thresholds, detectors);
    let told = sources.tell(thresholds);
    output
        .watching(told, &sources.said, &sources.gaps)
        .context("write to standard output")?;
    say(&format!(
        "watching: waits of {} and longer; {}; {}",
        Span(told.wait),
        words::of_hangs(told),
        sources.said.join("; ")
    ));
    for gap in &sources.gaps {
        say(&format!(
            "not here: {}: {}; {}",
            gap.missing, gap.why, gap.cost
        ));
    }

    lock_memory();
    let filter = Filter::from(args);
    let mut session = Session::new(thresholds, filter, reports, Some(output), None, sources);
    let followed = follow(&mut session, args.threshold, args.duration, &mut Alone).await;
    allow_closed_pipe(followed).context("watch")?;
    allow_closed_pipe(session.report_rest()).context("write to standard output")?;
    let found = session.has_found();
    allow_closed_pipe(session.finish().map(drop)).context("write to standard output")?;
    Ok(if found {
        Outcome::Stall
    } else {
        Outcome::Clear
    })
}

/// Records what watching sees until told to stop; prints nothing of it. `start` is given
/// what the recording begins with once everything is attached.
///
/// # Errors
/// When neither the stream nor surveys can be had on this host, or `start` fails. A file
/// that cannot be written to ends the run early, and is what [`Recorder::finish`] says.
pub(super) fn record(
    args: &RecordArgs,
    start: impl FnOnce(&Header) -> anyhow::Result<Recorder>,
) -> anyhow::Result<(Recorder, Summary)> {
    event_loop()?.block_on(async {
        let thresholds = cli::thresholds(args.threshold, args.hang, Some(args.lockup));
        be_real_time(args.sources.priority)?;
        let sources = Sources::open(thresholds, &args.sources, Asked::BARE)?;
        let gap = |gap: &Gap| format!("{}: {}; {}", gap.missing, gap.why, gap.cost);
        let gaps = sources.gaps.iter().map(gap).collect();
        let header = Header::now(thresholds, sources.said.clone(), gaps);
        let recorder = start(&header)?;
        lock_memory();
        let reports = Reports::new(thresholds, Detectors::default());
        let filter = Filter::default();
        let mut session = Session::new(thresholds, filter, reports, None, Some(recorder), sources);
        follow(&mut session, args.threshold, args.duration, &mut Alone)
            .await
            .context("record")?;
        session.report_rest().context("record")?;
        let summary = session.finish().context("record")?;
        let recorder = session.into_recorder();
        Ok((recorder.context("nothing records")?, summary))
    })
}

/// Watches until told to stop, prints nothing, and counts as `counting` says; `beside` does
/// with it what it likes, for the last time at the end. True if something was found.
///
/// # Errors
/// When waits cannot be counted on this host, or `beside` fails.
pub(super) fn export<B: Beside>(
    args: &ExportArgs,
    counting: &CountOptions,
    start: impl AsyncFnOnce(&[String], &[Gap]) -> anyhow::Result<B>,
) -> anyhow::Result<bool> {
    event_loop()?.block_on(async {
        let thresholds = cli::thresholds(args.threshold, args.hang, Some(args.lockup));
        be_real_time(args.sources.priority)?;
        let sources = Sources::open(thresholds, &args.sources, Asked::counts(counting))?;
        ensure!(sources.counts.is_some(), CANNOT_COUNT);
        let mut beside = start(&sources.said, &sources.gaps).await?;
        lock_memory();
        let reports = Reports::new(thresholds, Detectors::default());
        let filter = Filter::default();
        let mut session = Session::new(thresholds, filter, reports, None, None, sources);
        let followed = follow(&mut session, args.threshold, args.duration, &mut beside).await;
        // What was counted last is told, whatever ended the run.
        let rest = session.report_rest();
        let last = beside.finish(&mut session).await;
        followed.and(rest).and(last).context("export")?;
        Ok(session.has_found())
    })
}

/// Counts waits, and holds where they are tracked, for this long or until interrupted; since
/// when that was; and what of them cannot be known here.
///
/// # Errors
/// When waits cannot be counted on this host.
pub(super) fn count(
    args: &SourceArgs,
    counting: &CountOptions,
    time: Duration,
) -> anyhow::Result<(Snapshot, Timestamp, Vec<Gap>)> {
    event_loop()?.block_on(async {
        be_real_time(args.priority)?;
        let sources = Sources::open(Thresholds::NONE, args, Asked::counts(counting))?;
        let counts = sources.counts.context(CANNOT_COUNT)?;
        // To find out what can be attached takes longer than to attach it.
        let from = Timestamp::now();
        let mut interrupted = signal(SignalKind::interrupt())?;
        let mut terminated = signal(SignalKind::terminate())?;
        say(&format!(
            "counting for {}; {}",
            Span(Nanos::from_duration(time)),
            sources.said.join("; ")
        ));
        lock_memory();
        tokio::select! {
            () = sleep(time) => {}
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
        }
        let counted = counts.snapshot().context("cannot read the counts")?;
        Ok((counted, from, sources.gaps))
    })
}

/// Why nothing is counted, and what to do.
const CANNOT_COUNT: &str =
    "waits cannot be counted on this host: `lockwatch check` says what it does not allow";

fn event_loop() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")
}

/// A line on standard error, unless only errors are wanted there.
pub(super) fn say(line: &str) {
    if tracing::enabled!(tracing::Level::WARN) {
        // Nobody is left to be told if this fails.
        let _ = writeln!(io::stderr(), "{line}");
    }
}

/// What goes on beside a session, in its event loop.
pub(super) trait Beside {
    /// Waits until there is something to do; may be dropped and called again at any time.
    async fn ready(&mut self);

    /// Does it, without waiting.
    ///
    /// # Errors
    /// What ends the run.
    fn act(&mut self, session: &mut Session) -> io::Result<()>;

    /// The run is over, and all that was seen is known.
    ///
    /// # Errors
    /// What the run's end should tell.
    async fn finish(self, session: &mut Session) -> io::Result<()>;
}

/// Nothing.
struct Alone;

impl Beside for Alone {
    async fn ready(&mut self) {
        std::future::pending::<()>().await;
    }

    fn act(&mut self, _: &mut Session) -> io::Result<()> {
        Ok(())
    }

    async fn finish(self, _: &mut Session) -> io::Result<()> {
        Ok(())
    }
}

/// Runs the session until a signal or the end of the time.
async fn follow(
    session: &mut Session,
    threshold: Duration,
    duration: Option<Duration>,
    beside: &mut impl Beside,
) -> io::Result<()> {
    let tick = (threshold / TICKS_PER_THRESHOLD).clamp(TICK_MIN, TICK_MAX);
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let mut ticks = Ticks::start(tick)?;
    let mut over = pin!(async {
        match duration {
            Some(duration) => sleep(duration).await,
            None => std::future::pending().await,
        }
    });
    session.start();
    while !session.cannot_record() {
        tokio::select! {
            input = session.next() => session.take(input?)?,
            () = beside.ready() => beside.act(session)?,
            () = ticks.next() => {
                session.tick()?;
                ticks.keep_off(session.locked_cpus());
            }
            _ = interrupted.recv() => return Ok(()),
            _ = terminated.recv() => return Ok(()),
            () = &mut over => return Ok(()),
        }
    }
    Ok(())
}
