//! The interval log of `HdrHistogram`, version 2: what was counted from one time to the next,
//! as text that many tools read.
//!
//! A line is one series in one interval: its [tag](tag()), when the interval began and how
//! long it was in s, the longest time in ms, and the histogram of ns. All times are Unix
//! times, so that a log can be continued, cut and joined. What the format has no place for is
//! in comments, which other readers skip.

mod background;
mod file;
mod mark;
mod read;
mod sum;
mod tag;
#[cfg(test)]
mod tests;
mod write;

pub use self::{
    background::Background,
    file::{OpenError, Rotation},
    read::{Log, ReadError, Within},
    sum::Sum,
    tag::{key, tag},
    write::{HdrLog, Header, Progress, RunLog, write_once},
};

/// Values of a log of ours are ns, and the column of maxima is in ms.
const MAX_VALUE_DIVISOR: f64 = 1e6;
