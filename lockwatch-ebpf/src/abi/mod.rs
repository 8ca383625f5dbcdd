//! The shared types, one file per object.

pub mod stream;
pub mod survey;
