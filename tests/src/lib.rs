//! What the stall lab and the live tests have in common.
//!
//! The lab itself is the binary `stall-lab`; the live tests are in `tests/`.
//! Here is the form of the lab's output, so that the tests read the truth with
//! the same types the lab wrote it with, and what the tests need to try
//! lockwatch on a stall and to judge what it says.

pub mod clock;
pub mod edge;
pub mod hook;
pub mod lab;
pub mod storm;
pub mod tally;
pub mod test_run;
pub mod trial;
pub mod truth;
