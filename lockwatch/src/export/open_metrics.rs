//! A [`State`] as OpenMetrics text, and in the older format of Prometheus for programs that
//! do not read that.
//!
//! The crate `prometheus-client` writes both. Nothing is recorded anew: what it gets are the
//! counts between bounds (`le`) that no bucket of ours lies across.

mod bounds;
mod catalogue;
mod families;

use prometheus_client::{
    encoding::{prometheus_text, text},
    registry::Registry,
};

pub use self::catalogue::{ALL, Metric};
use self::families::{Families, Histogram};
use crate::export::{Callers, State};

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
    /// Tells apart as many callers as [`Callers::new`] says. `kernel` is the release of the
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
        let told = self.callers.told();
        let families = Families {
            histograms: told.series.iter().map(Histogram::of).collect(),
            other_callers: self.callers.others() as u64,
            uncounted: told.lost,
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
