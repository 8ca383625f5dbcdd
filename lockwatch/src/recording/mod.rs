//! The recording: surveys and stream in a file, so that every report can be made from it
//! later and elsewhere.
//!
//! It holds what a [`WaitGraph`](crate::graph::WaitGraph) takes in ([`Input`]), in the
//! order in which the run that recorded it did. docs/recording.md explains the format.

mod format;
mod hangs;
mod reader;
mod replay;
mod scans;
mod writer;

pub use format::{CONTRACT, End, Header};
pub use hangs::{Hang, Hangs};
pub use reader::{Damage, OpenError, Reader};
pub use replay::{Chosen, Ended, Replayed};
pub use writer::Writer;

use crate::{graph::Input, stream::Lost};

/// One thing that a recording holds.
#[derive(Clone, Debug)]
pub enum Record {
    /// What the graph took in.
    Input(Input),
    /// What the stream has lost so far, when that changed.
    Lost(Lost),
    /// This many inputs are missing here: the file took them too slowly.
    Missing(u64),
    /// The run ended as it should.
    End(End),
}

#[cfg(test)]
mod tests;
