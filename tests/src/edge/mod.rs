//! The edges of a lock's life: attempts that fail, waits that are given up, downgrades,
//! recursion, releases by another task, tasks that end. Each is made to happen, and it
//! is seen that it did.

pub mod actor;
pub mod agitator;
pub mod killed;
pub mod made_up;
pub mod reborn;
