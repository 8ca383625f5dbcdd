//! The graph of tasks and locks: who waits for what, and who has it. Pure: no
//! kernel, no clock, no IO.

pub mod chain;
mod forecast;
mod input;
pub mod locked_cpu;
pub mod next;
mod stall;
pub mod timeline;
mod wait_graph;

pub use forecast::Forecasts;
pub use input::Input;
pub use stall::{Facts, HolderSpan, Stall, StallId};
pub use wait_graph::{Change, WaitGraph};
