//! Which kernel functions take, give back and wait for sleeping locks, and what their
//! results say. Checked against the sources of 5.10, 6.1, 6.12, 6.18 and 7.3; names of
//! older kernels from kernel/locking/rwsem-xadd.c and lib/rwsem.c.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::lock::{LockKind, LockMode};

/// How a function that acquires says whether it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It returns when it has the lock, and has no result.
    Always,
    /// `int`: 0 = acquired, negative = given up on a signal.
    ZeroIsSuccess,
    /// `int` or `bool`: 1 = acquired, 0 = not.
    OneIsSuccess,
    /// A pointer to the lock = acquired, an error pointer (the last 4095 values) = given up.
    PointerIsSuccess,
}

/// What a place that belongs to one kind of lock waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Awaited {
    /// The primitive.
    pub kind: LockKind,
    /// How it is wanted; none where the second parameter, `bool reader`, tells.
    pub mode: Option<LockMode>,
}
