//! lockwatch: which kernel lock a hanging Linux host waits for, who holds it,
//! and why that one does not let go.
//!
//! ```text
//! kernel probes ─► source (survey | stream | recording) ─► graph ─► detect ─► report ─► text, JSON, …
//! ```
//! Everything left of [`graph`] knows the kernel; from there on everything is pure.

pub mod cli;
pub mod clock;
pub mod commands;
pub mod daemon;
pub mod detect;
pub mod export;
pub mod figures;
pub mod graph;
mod hex;
pub mod kernel;
pub mod kernel_log;
pub mod kmsg;
pub mod latency;
pub mod lock;
pub mod lockup;
pub mod plan;
pub mod probes;
pub mod recording;
pub mod report;
pub mod sleeper;
pub mod stream;
pub mod survey;
pub mod task;
