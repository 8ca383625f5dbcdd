//! A [`State`] pushed over OTLP, the protocol of OpenTelemetry: protobuf in HTTP, waits and
//! holds as exponential histograms. docs/opentelemetry.md is about it.
//!
//! Pushing is a task of its own, which is given the newest state now and then and keeps no
//! other: all counts are from the start of the run on, so that a push which fails loses
//! nothing that the next one does not tell.

mod answer;
mod attributes;
mod exchange;
mod exponential;
mod instrument;
mod list;
mod pace;
mod pusher;
mod request;
mod resource;
mod series;
mod target;

use std::{fmt, sync::Arc, time::Duration};

use opentelemetry_proto::tonic::resource::v1::Resource;
use tokio::{sync::watch, task::JoinHandle, time::timeout};

pub use self::{
    instrument::{INSTRUMENTS, Instrument, Kind},
    pusher::Pushes,
    target::{Header, SettingError},
};
use self::{
    pusher::{Offer, Pusher},
    target::Target,
};
use crate::{export::State, report::Host};

/// Of lockwatch.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// At the end of a run nobody waits longer than that for a receiver.
const FAREWELL: Duration = Duration::from_secs(3);

/// Where to push to, how, and in whose name.
#[derive(Clone, Debug)]
pub struct Setup {
    target: Target,
    resource: Resource,
}

impl fmt::Display for Setup {
    /// The URL that is pushed to.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.target.fmt(f)
    }
}

impl Setup {
    /// Puts together what the command line says, which comes first, and what the environment
    /// says in the variables of OpenTelemetry's specification, which are asked for by name;
    /// an empty one counts as not there. Touches no network.
    ///
    /// `/v1/metrics` is added to an `endpoint` without a path; one with a path is used as it
    /// is. Without an endpoint the variables decide, and without these it is the collector
    /// on this host. `OTEL_EXPORTER_OTLP_ENDPOINT` always gets `/v1/metrics` added,
    /// `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT` never: the specification says so.
    ///
    /// # Errors
    /// When an endpoint, a header or another setting cannot be used; which, and why.
    pub fn new(
        endpoint: Option<&str>,
        headers: &[Header],
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, SettingError> {
        Ok(Self {
            target: Target::new(endpoint, headers, &variable)?,
            resource: resource::resource(&Host::this(), &variable)?,
        })
    }

    /// Starts the task, which pushes each state that it is offered. `say` gets a line when a
    /// receiver begins to fail, fails in another way, or takes metrics again.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(self, say: impl FnMut(&str) + Send + 'static) -> Otlp {
        let (offered, offers) = watch::channel(Arc::new(Offer::default()));
        let pusher = Pusher::new(self.target, self.resource, offers, say);
        let pushes = pusher.pushes();
        Otlp {
            offered,
            pushes,
            task: tokio::spawn(pusher.run()),
        }
    }
}

/// A task that pushes states. It ends when this is dropped.
#[derive(Debug)]
pub struct Otlp {
    offered: watch::Sender<Arc<Offer>>,
    pushes: watch::Receiver<Pushes>,
    task: JoinHandle<()>,
}

impl Otlp {
    /// Has a state pushed; it takes the place of one that has not been pushed yet. Returns
    /// at once.
    ///
    /// Each of its distributions becomes a series, told apart by how class, kind, mode and
    /// caller are written: how many there are is bounded by whoever makes the state, and none
    /// of them may go back from one state to the next.
    pub fn offer(&self, state: State) {
        self.offered.send_replace(Arc::new(Offer::of(state)));
    }

    /// What has become of the pushes so far.
    pub fn pushes(&self) -> Pushes {
        *self.pushes.borrow()
    }

    /// Pushes a last state, in which what is about now has no value any more, and waits for
    /// that, 3 s at most. Its time must be after those of all states before it.
    pub async fn finish(mut self, state: State) -> Pushes {
        self.offered.send_replace(Arc::new(Offer::last(state)));
        // Ended in whichever way: nothing is to be done about it any more.
        let _ = timeout(FAREWELL, &mut self.task).await;
        self.pushes()
    }
}

impl Drop for Otlp {
    fn drop(&mut self) {
        self.task.abort();
    }
}
