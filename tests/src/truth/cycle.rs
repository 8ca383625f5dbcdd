//! The truth of a deadlock, and of a queue too long to list.

use serde::{Deserialize, Serialize};

use super::{Tgid, Tid};

/// Tasks that wait for each other in a ring: none of them ever goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cycle {
    /// The ring: each waits for the next, and the last for the first. They must all be in
    /// the one finding.
    pub tasks: Vec<Member>,
    /// Tasks that stand between two of the ring without having a lock, such as the writer
    /// that a reader queues behind: they may be in the finding or not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub between: Vec<Tid>,
    /// Names of the locks of the ring, as in [`super::Lock::name`].
    pub locks: Vec<String>,
}

/// A task of a [`Cycle`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its thread.
    pub tid: Tid,
    /// Its process.
    pub tgid: Tgid,
    /// Its comm.
    pub comm: String,
    /// What the task before it waits for.
    pub role: Role,
}

/// Why somebody waits for a task of a [`Cycle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It holds the lock that the one before it waits for.
    Holder,
    /// It is the only thread that can answer the request that the one before it waits for.
    Daemon,
}

/// Waiters of one process, behind those that are listed: all of them readers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crowd {
    /// The process.
    pub tgid: Tgid,
    /// Comm of the process and of each of its threads.
    pub comm: String,
    /// How many of its threads wait.
    pub tasks: u32,
}
