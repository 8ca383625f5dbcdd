//! Hanging tasks in the report: in uninterruptible sleep, past the threshold.

use schemars::JsonSchema;
use serde::Serialize;

use super::{Stuck, WayOut};
use crate::{
    sleeper::{Awaited, QueueKind},
    task::{Nanos, Tgid, Tid},
};

/// Tasks that have been in uninterruptible sleep for the threshold or longer and wait for
/// the same.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Hung {
    /// What for.
    pub awaits: Awaits,
    /// What for, in words: `block device nvme0n1`.
    pub name: String,
    /// Who, the longest first.
    pub tasks: Vec<HungTask>,
    /// What the first of them is stuck in.
    pub stuck: Stuck,
    /// What a person could do, the most effective first. Empty for a lock, which has its own.
    pub ways_out: Vec<WayOut>,
    /// `awaits` as the survey knows it.
    #[serde(skip)]
    pub awaited: Awaited,
    /// What the detector says of it: index among the report's findings; `None` if it was not
    /// asked.
    #[serde(skip)]
    pub(crate) finding: Option<usize>,
}

/// What hanging tasks wait for: exactly one of these keys.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Awaits {
    /// `id` of a lock.
    Lock(String),
    /// Name of a block device.
    Device(String),
    /// A FUSE daemon.
    Fuse {
        /// Number of the connection. Absent where it could not be read.
        #[serde(skip_serializing_if = "Option::is_none")]
        connection: Option<u32>,
    },
    /// The server of a network file system.
    Server {
        /// File system type: `nfs4`.
        fstype: String,
        /// Name or address. Absent where it could not be read.
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// Something that tasks queue on.
    Queue {
        /// Which kind of thing.
        kind: QueueKind,
        /// Where it is in kernel memory, hexadecimal.
        address: String,
        /// The function that waits for it. Absent where it is not known.
        #[serde(skip_serializing_if = "Option::is_none")]
        function: Option<String>,
    },
    /// No more is known than the function that they sleep in; absent where not even that is.
    Unknown {
        /// Its name.
        #[serde(skip_serializing_if = "Option::is_none")]
        function: Option<String>,
    },
}

/// A task that hangs.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct HungTask {
    /// Thread id.
    pub tid: Tid,
    /// Process id.
    pub tgid: Tgid,
    /// Name of the thread.
    pub comm: String,
    /// A fatal signal would end the sleep.
    pub killable: bool,
    /// The scheduler counts the sleep as waiting for I/O.
    pub io_wait: bool,
    /// It has slept for this long at least, in ns.
    pub asleep_ns: Nanos,
    /// Index of its kernel stack in `stacks`. Absent where it was not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack: Option<u32>,
}
