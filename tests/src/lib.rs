//! What the stall lab says about the stalls it makes.
//!
//! The lab itself is the binary `stall-lab`; this library is only the form of
//! its output, so that the live tests read the truth with the same types the
//! lab wrote it with.

pub mod truth;
