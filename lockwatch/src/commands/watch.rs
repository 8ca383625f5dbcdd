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

use anyhow::Context as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use self::{
    filter::Filter, output::Output, reports::Reports, session::Session, sources::Sources,
    ticks::Ticks,
};
pub(super) use self::{
    output::Summary,
    words::{by_kind, findings_of_hangs, printable, unsurveyed},
};
use super::{Outcome, allow_closed_pipe, lock_memory, priority::be_real_time, recorder::Recorder};
use crate::{
    cli::{self, RecordArgs, WatchArgs},
    detect::Detectors,
    figures::Span,
    plan::Gap,
    recording::Header,
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
    let sources = Sources::open(thresholds, &args.sources)?;
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
    let followed = follow(&mut session, args.threshold, args.duration).await;
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
        let sources = Sources::open(thresholds, &args.sources)?;
        let gap = |gap: &Gap| format!("{}: {}; {}", gap.missing, gap.why, gap.cost);
        let gaps = sources.gaps.iter().map(gap).collect();
        let header = Header::now(thresholds, sources.said.clone(), gaps);
        let recorder = start(&header)?;
        lock_memory();
        let reports = Reports::new(thresholds, Detectors::default());
        let filter = Filter::default();
        let mut session = Session::new(thresholds, filter, reports, None, Some(recorder), sources);
        follow(&mut session, args.threshold, args.duration)
            .await
            .context("record")?;
        session.report_rest().context("record")?;
        let summary = session.finish().context("record")?;
        let recorder = session.into_recorder();
        Ok((recorder.context("nothing records")?, summary))
    })
}

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

/// Runs the session until a signal or the end of the time.
async fn follow(
    session: &mut Session,
    threshold: Duration,
    duration: Option<Duration>,
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
