//! The shared types, one file per object.

pub mod acquisitions;
pub mod beats;
pub mod counts;
pub mod edge;
pub mod holds;
pub mod long_holds;
pub mod stream;
pub mod survey;
pub mod tally;
