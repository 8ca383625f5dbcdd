//! How long tasks waited for locks and held them: distributions by lock class, mode and
//! caller.
//!
//! They are counted in the kernel, from the start of lockwatch on, and never set back: a
//! [`Snapshot`] is what was counted by some time, and the difference of two is an interval.

mod distribution;
mod series;
mod snapshot;

pub use self::{
    distribution::{Distribution, HIGHEST_NS, SIGNIFICANT_DIGITS},
    series::{Caller, Measure, SeriesKey},
    snapshot::{CountsLost, Snapshot},
};
