//! `lockwatch watch`: stalls as they stand and as they end.

mod event;
mod filter;
mod output;
mod progress;
mod session;
mod surveys;

use std::{
    io::{self, Write as _},
    pin::pin,
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval, sleep},
};

use self::{filter::Filter, output::Output, session::Session, surveys::Surveys};
use super::{Outcome, allow_closed_pipe, lock_memory};
use crate::{
    cli::WatchArgs,
    figures::Span,
    stream::{Stream, StreamOptions},
    survey::Surveyor,
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
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?
        .block_on(watch(args))
}

async fn watch(args: &WatchArgs) -> anyhow::Result<Outcome> {
    let threshold = Nanos::from_duration(args.threshold);
    // Everything is loaded and attached before the first wait is looked at: later,
    // on a host that hangs, it might not be possible.
    let Sources {
        stream,
        surveys,
        said,
    } = Sources::open(threshold)?;
    let tick = (args.threshold / TICKS_PER_THRESHOLD).clamp(TICK_MIN, TICK_MAX);
    let stdout = Box::new(io::BufWriter::new(io::stdout()));
    let mut output = Output::new(stdout, args.format, args.look.for_stdout(), threshold);
    output.watching(&said).context("write to standard output")?;
    say(&format!(
        "watching: waits of {} and longer; {}",
        Span(threshold),
        said.join("; ")
    ));

    lock_memory();
    let mut session = Session::new(threshold, Filter::from(args), output, stream, surveys);
    let followed = follow(&mut session, tick, args.duration).await;
    allow_closed_pipe(followed).context("watch")?;
    allow_closed_pipe(session.report_rest()).context("write to standard output")?;
    let found = session.stall_count() > 0;
    allow_closed_pipe(session.finish()).context("write to standard output")?;
    Ok(if found {
        Outcome::Stall
    } else {
        Outcome::Clear
    })
}

/// A line on standard error, unless only errors are wanted there.
fn say(line: &str) {
    if tracing::enabled!(tracing::Level::WARN) {
        // Nobody is left to be told if this fails.
        let _ = writeln!(io::stderr(), "{line}");
    }
}

/// Where the knowledge comes from.
struct Sources {
    stream: Option<Stream>,
    surveys: Option<Surveys>,
    /// In words.
    said: Vec<String>,
}

impl Sources {
    /// Opens what this host allows; what is missing is said, with its cost.
    fn open(threshold: Nanos) -> anyhow::Result<Self> {
        let options = StreamOptions {
            ends_from: threshold,
            begins: false,
        };
        let stream = Stream::attach(&options).map_err(anyhow::Error::new);
        let surveyor = Surveyor::open().map_err(anyhow::Error::new);
        let mut said = Vec::new();
        let (stream, surveyor) = match (stream, surveyor) {
            (Err(stream), Err(surveyor)) => {
                tracing::debug!("no stream: {stream:#}");
                return Err(surveyor.context("nothing can be watched on this host"));
            }
            sources => sources,
        };
        match &stream {
            Ok(stream) => {
                said.push("lock waits from contention_begin, contention_end".to_owned());
                match stream.times_error() {
                    None => said.push("holders from sched_switch, sched_wakeup".to_owned()),
                    Some(error) => {
                        tracing::warn!("how holders spend their time is not known: {error}");
                    }
                }
            }
            Err(error) => {
                said.push("lock waits from a survey a second".to_owned());
                tracing::warn!("short stalls are missed, and all times are rough: {error:#}");
            }
        }
        let surveys = match surveyor {
            Ok(surveyor) => {
                said.push("surveys".to_owned());
                Some(Surveys::start(surveyor).context("cannot start a thread")?)
            }
            Err(error) => {
                tracing::warn!("holders and names of locks are not known: {error:#}");
                None
            }
        };
        Ok(Self {
            stream: stream.ok(),
            surveys,
            said,
        })
    }
}

/// Runs the session until a signal or the end of the time.
async fn follow(
    session: &mut Session,
    tick: Duration,
    duration: Option<Duration>,
) -> io::Result<()> {
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let mut ticks = interval(tick);
    // After a survey's printing, say, one tick is enough.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut over = pin!(async {
        match duration {
            Some(duration) => sleep(duration).await,
            None => std::future::pending().await,
        }
    });
    session.start();
    loop {
        tokio::select! {
            input = session.next() => session.take(input?)?,
            _ = ticks.tick() => session.tick()?,
            _ = interrupted.recv() => return Ok(()),
            _ = terminated.recv() => return Ok(()),
            () = &mut over => return Ok(()),
        }
    }
}
