//! Where it goes to, each as it wants it: scrapes when somebody asks, logs and pushes by a
//! timer.

use std::{future::pending, io};

use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};

use super::log::LogSink;
use crate::{
    cli::ExportArgs,
    commands::watch::{Beside, Session, say},
    export::{
        Callers, State,
        http::{self, Limits, Scrape},
        open_metrics::Exposition,
        otlp::{Otlp, Setup},
    },
    report::Host,
};

/// Scrapes that may wait for their turn.
const SCRAPES: usize = 8;

/// All places that are exported to.
pub(super) struct Sinks {
    log: Option<LogSink>,
    push: Option<Push>,
    /// When both of these are served, by one state.
    timer: Interval,
    scrapes: Option<(mpsc::Receiver<Scrape>, Server)>,
    said: Vec<String>,
    due: Option<Due>,
}

/// What is to be done now.
enum Due {
    Interval,
    Scrape(Scrape),
}

/// The task that answers; it ends with this.
struct Server(JoinHandle<()>);

/// What is pushed, and to whom.
struct Push {
    otlp: Otlp,
    callers: Callers,
}

impl Push {
    fn offer(&mut self, state: State) {
        self.callers.update(&state.latency);
        self.otlp.offer(self.told(state));
    }

    async fn finish(mut self, state: State) {
        self.callers.finish(&state.latency);
        let last = self.told(state);
        self.otlp.finish(last).await;
    }

    /// The number of series is bounded, and none of them ever goes back.
    fn told(&self, state: State) -> State {
        State {
            latency: self.callers.told().clone(),
            ..state
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Sinks {
    /// Opens them all.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub(super) async fn open(args: &ExportArgs) -> anyhow::Result<Self> {
        let mut sinks = Self {
            log: LogSink::open(args)?,
            push: None,
            timer: timer(args.interval),
            scrapes: None,
            said: Vec::new(),
            due: None,
        };
        if let Some(address) = args.listen {
            let listener = http::listen(address)?;
            let address = listener.local_addr().unwrap_or(address);
            if let Some(warning) = http::exposure(address) {
                tracing::warn!("{warning}");
            }
            let (ask, scrapes) = mpsc::channel(SCRAPES);
            let exposition = Exposition::new(args.top_callers, Host::this().kernel);
            let serving = http::serve(listener, ask, exposition, Limits::default());
            let server = tokio::spawn(async move { match serving.await {} });
            sinks.scrapes = Some((scrapes, Server(server)));
            sinks.said.push(format!("http://{address}/metrics"));
        }
        if let Some(path) = &args.hdr_log {
            sinks.said.push(format!("log {}", path.display()));
        }
        if let Some(endpoint) = &args.otlp {
            let endpoint = Some(endpoint.as_str()).filter(|endpoint| !endpoint.is_empty());
            let variable = |name: &str| std::env::var(name).ok();
            let setup = Setup::new(endpoint, &args.otlp_header, variable)?;
            sinks.said.push(format!("OTLP {setup}"));
            sinks.push = Some(Push {
                otlp: setup.start(say),
                callers: Callers::new(args.top_callers),
            });
        }
        Ok(sinks)
    }

    /// In words.
    pub(super) fn said(&self) -> &[String] {
        &self.said
    }
}

/// Ticks for the first time after one interval.
fn timer(interval: std::time::Duration) -> Interval {
    let mut timer = interval_at(Instant::now() + interval, interval);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    timer
}

impl Beside for Sinks {
    async fn ready(&mut self) {
        let is_timed = self.log.is_some() || self.push.is_some();
        let Self { timer, scrapes, .. } = self;
        let scrape = async {
            let asked = match scrapes {
                Some((scrapes, _)) => scrapes.recv().await,
                None => None,
            };
            match asked {
                Some(scrape) => scrape,
                None => pending().await,
            }
        };
        // No wait lies between what is ready and what is kept of it, so that nothing is lost
        // if this is dropped.
        let due = tokio::select! {
            scrape = scrape => Due::Scrape(scrape),
            _ = timer.tick(), if is_timed => Due::Interval,
        };
        self.due = Some(due);
    }

    fn act(&mut self, session: &mut Session) -> io::Result<()> {
        let Some(due) = self.due.take() else {
            return Ok(());
        };
        let state = session.state()?;
        match due {
            Due::Interval => {
                if let Some(log) = &mut self.log {
                    log.write(state.latency.clone(), state.at);
                }
                if let Some(push) = &mut self.push {
                    push.offer(state);
                }
            }
            // Whoever has asked may be gone.
            Due::Scrape(scrape) => drop(scrape.send(state)),
        }
        Ok(())
    }

    async fn finish(self, session: &mut Session) -> io::Result<()> {
        let state = session.state()?;
        if let Some(push) = self.push {
            push.finish(state.clone()).await;
        }
        if let Some(log) = self.log {
            log.finish(state.latency, state.at);
        }
        Ok(())
    }
}
