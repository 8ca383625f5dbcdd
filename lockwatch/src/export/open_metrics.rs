//! A [`State`] as OpenMetrics text, and in the older format of Prometheus for programs that
//! do not read that.
//!
//! The crate `prometheus-client` writes both. Nothing is recorded anew: what it gets are the
//! counts between bounds (`le`) that no bucket of ours lies across.

mod bounds;
mod callers;
mod catalogue;
mod families;

use prometheus_client::{
    encoding::{prometheus_text, text},
    registry::Registry,
};

use self::{
    callers::Callers,
    families::{Families, Histogram},
};
pub use self::{
    callers::{ROOM, SERIES_OF_CALLERS, SYMBOLS},
    catalogue::{ALL, Metric},
    families::ROOTS,
};
use crate::export::State;

/// Callers that are told apart if nobody asks for another number.
pub const CALLERS_DEFAULT: usize = 10;

/// How the text is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Prometheus' own format before that, 0.0.4.
    Classic,
}

impl Format {
    /// Its MIME type with parameters.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Classic => prometheus_text::CONTENT_TYPE,
        }
    }
}

/// What is exported in the course of a run.
#[derive(Debug)]
pub struct Exposition {
    callers: Callers,
    kernel: String,
}

impl Exposition {
    /// Tells apart the `callers` that waited or held longest, which may be [`ROOM`] times as
    /// many in the course of the run; with 0 all are `other`. `kernel` is the release of the
    /// running one, as `uname -r` tells it.
    pub fn new(callers: usize, kernel: impl Into<String>) -> Self {
        Self {
            callers: Callers::new(callers),
            kernel: kernel.into(),
        }
    }

    /// The text for a state. Its histograms never go back, not even if the state is older
    /// than the one before.
    pub fn text(&mut self, state: State, format: Format) -> String {
        self.callers.update(&state.latency);
        let families = Families {
            histograms: self.callers.series().map(Histogram::of).collect(),
            other_callers: self.callers.others() as u64,
            uncounted: self.callers.lost(),
            kernel: self.kernel.clone(),
            state,
        };
        let mut registry = Registry::default();
        registry.register_collector(Box::new(families));
        let mut text = String::new();
        let written = match format {
            Format::OpenMetrics => text::encode(&mut text, &registry),
            Format::Classic => prometheus_text::encode(&mut text, &registry),
        };
        #[expect(
            clippy::expect_used,
            reason = "a String takes all that is written to it"
        )]
        written.expect("text of metrics");
        text
    }
}

#[cfg(test)]
mod tests;
