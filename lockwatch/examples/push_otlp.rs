//! Pushes states over OTLP that it is told line by line on stdin, for `cargo xtask otlp`.
//!
//! A line is a JSON object, see [`Line`]; the end of stdin is the end of the run. The
//! environment says where to push to, as for lockwatch itself; a first argument is the
//! endpoint, further ones are headers. What is to be said to a person goes to stdout at once,
//! each line a JSON object, and at the end what became of the pushes, and by how much a timer
//! of 5 ms in the same event loop was late at worst.

use std::{
    io::{self, BufRead as _, Write as _},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use lockwatch::{
    export::{
        Cost, Hang, Root, Stalls, State,
        otlp::{Header, Otlp, Setup},
    },
    latency::{Distribution, SeriesKey, Snapshot},
    lock::LockClass,
    task::Nanos,
};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

/// A state: times of each series from the start on, and some figures.
#[derive(Debug, Deserialize)]
struct Line {
    series: Vec<Series>,
    stalls: u64,
    standing: u64,
    roots: Vec<Blocking>,
    lost: u64,
    cpu_ns: u64,
}

#[derive(Debug, Deserialize)]
struct Series {
    key: SeriesKey,
    times_ns: Vec<u64>,
}

#[derive(Debug, Deserialize)]
struct Blocking {
    class: LockClass,
    comm: String,
    stuck: String,
    blocked_tasks: u64,
}

fn state(line: &str, since: jiff::Timestamp) -> anyhow::Result<State> {
    let line: Line = serde_json::from_str(line).context("a line of stdin")?;
    let mut latency = Snapshot::default();
    for series in line.series {
        let mut distribution = Distribution::default();
        for time in series.times_ns {
            distribution.record(Nanos(time));
        }
        latency.series.insert(series.key, distribution);
    }
    latency.lost.waits = line.lost;
    let root = |root: Blocking| Root {
        class: root.class,
        comm: root.comm,
        stuck: root.stuck,
        blocked_tasks: root.blocked_tasks,
    };
    Ok(State {
        at: jiff::Timestamp::now(),
        since,
        latency,
        stalls: Stalls {
            threshold: Nanos(100_000_000),
            total: line.stalls,
            standing: line.standing,
            longest_standing: Nanos(1_500_000_000),
            longest: Nanos(60_000_000_000),
        },
        blocked_tasks: line.roots.iter().map(|root| root.blocked_tasks).sum(),
        roots: line.roots.into_iter().map(root).collect(),
        hangs: vec![Hang {
            detector: "hung-task",
            total: 2,
            standing: 1,
        }],
        lost: vec![("events", line.lost)],
        cost: Cost {
            cpu: Duration::from_nanos(line.cpu_ns),
            resident_bytes: 12_000_000,
            map_bytes: 6_500_000,
        },
    })
}

/// Writes a line at once: who reads them waits for them.
fn tell(value: &serde_json::Value) {
    let mut stdout = io::stdout().lock();
    // Nobody is left to be told if this fails.
    let _ = writeln!(stdout, "{value}").and_then(|()| stdout.flush());
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let endpoint = arguments.next();
    let headers: Result<Vec<Header>, String> = arguments.map(|header| header.parse()).collect();
    let headers = headers.map_err(anyhow::Error::msg)?;
    let setup = Setup::new(endpoint.as_deref(), &headers, |name| {
        std::env::var(name).ok()
    })?;
    tell(&json!({ "target": setup.to_string() }));
    let otlp = setup.start(|line| tell(&json!({ "said": line })));
    let (last, late) = offer_all(&otlp).await?;
    let start = Instant::now();
    let pushes = otlp.finish(last).await;
    tell(&json!({
        "taken": pushes.taken,
        "failed": pushes.failed,
        "rejected_points": pushes.rejected_points,
        "late_ms": late.as_millis() as u64,
        "farewell_ms": start.elapsed().as_millis() as u64,
    }));
    Ok(())
}

/// Reads states in a thread of its own, so that the event loop has nothing to do but to push.
fn read() -> mpsc::Receiver<anyhow::Result<State>> {
    let since = jiff::Timestamp::now();
    let (sender, receiver) = mpsc::channel(1);
    thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            let read = line.context("stdin").and_then(|line| state(&line, since));
            if sender.blocking_send(read).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Offers what stdin says; the last state, with the time of now, and how late the timer was.
async fn offer_all(otlp: &Otlp) -> anyhow::Result<(State, Duration)> {
    const TICK: Duration = Duration::from_millis(5);
    let mut states = read();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut late, mut last) = (Duration::ZERO, State::default());
    loop {
        tokio::select! {
            due = ticks.tick() => late = late.max(due.elapsed()),
            state = states.recv() => {
                let Some(state) = state else { break };
                last = state?;
                otlp.offer(last.clone());
                tell(&json!({ "offered": last.at.to_string(), "taken": otlp.pushes().taken }));
            }
        }
    }
    last.at = jiff::Timestamp::now();
    Ok((last, late))
}
