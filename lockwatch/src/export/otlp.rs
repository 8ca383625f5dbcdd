//! A [`State`](super::State) pushed over OTLP, the protocol of OpenTelemetry: protobuf in
//! HTTP, waits and holds as exponential histograms.

mod attributes;
mod exponential;
mod instrument;
mod list;
mod request;
mod resource;
mod series;
mod target;

pub use self::{
    exponential::{BOUND, MIDDLE, SCALE},
    instrument::{INSTRUMENTS, Instrument, Kind},
    target::{Header, Target, TargetError},
};

/// Of lockwatch.
const VERSION: &str = env!("CARGO_PKG_VERSION");
