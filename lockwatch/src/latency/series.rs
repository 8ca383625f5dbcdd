//! What times are counted by.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::lock::{LockClass, LockKind, LockMode};

/// What the time was spent with.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// From when a task found the lock taken until it had it, or gave up.
    Wait,
    /// From when a task had the lock until it released it.
    Hold,
}

impl Measure {
    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Hold => "hold",
        }
    }
}

/// From where the lock was asked for or, of a hold, released.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Caller {
    /// The first function on the stack that is not lock code.
    Function(String),
    /// It was over before its stack was worth a look.
    Short,
    /// The stack does not tell.
    Unknown,
    /// Callers that are not told apart here.
    Other,
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Function(name) => name,
            Self::Short => "short",
            Self::Unknown => "unknown",
            Self::Other => "other",
        })
    }
}

/// What the times of one distribution have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SeriesKey {
    /// Waits or holds.
    pub measure: Measure,
    /// The class of the locks.
    pub class: LockClass,
    /// Their primitive.
    pub kind: LockKind,
    /// How the lock was wanted or had; mutexes and semaphores: for write.
    pub mode: LockMode,
    /// From where.
    pub caller: Caller,
}

impl SeriesKey {
    /// The same by what is written of it: its class as a symbol, its caller as a function.
    /// Two keys may become one: a caller that the stack does not tell is written as a function
    /// `unknown` would be.
    #[must_use]
    pub fn as_written(&self) -> Self {
        Self {
            class: LockClass::Symbol(self.class.to_string()),
            caller: Caller::Function(self.caller.to_string()),
            ..*self
        }
    }
}
