//! Daemons in the report: user-space servers that tasks wait for.

use schemars::JsonSchema;
use serde::Serialize;

use super::Stuck;
use crate::{
    daemon::ServesEvidence,
    lock::Confidence,
    task::{Nanos, Tgid, Tid},
};

/// A user-space server that tasks wait for: that of a FUSE connection.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Daemon {
    /// Number of the connection: its directory under `/sys/fs/fuse/connections`. Absent
    /// where it could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<u32>,
    /// In words: `fuse.sshfs on /mnt/share`.
    pub name: String,
    /// Tasks that wait for an answer, the longest wait first.
    pub clients: Vec<Client>,
    /// Threads of the processes that have the connection open, except its clients.
    pub threads: Vec<DaemonThread>,
}

/// A task that waits for a daemon's answer.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Client {
    /// Thread id.
    pub tid: Tid,
    /// Process id.
    pub tgid: Tgid,
    /// Name of the thread.
    pub comm: String,
    /// Off the CPU for this long, in ns: it has waited no longer for this answer.
    pub wait_ns: Nanos,
    /// The daemon has read the request; otherwise it lies in its queue.
    pub is_sent: bool,
    /// A fatal signal would end the wait.
    pub killable: bool,
    /// Index of its kernel stack in `stacks`. Absent where it was not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack: Option<u32>,
}

/// A thread of a daemon.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct DaemonThread {
    /// Thread id.
    pub tid: Tid,
    /// Process id.
    pub tgid: Tgid,
    /// Name of the thread.
    pub comm: String,
    /// How sure it is that the clients wait for this thread. Absent if they do not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serves: Option<Confidence>,
    /// Why.
    pub evidence: ServesEvidence,
    /// State letter as `ps` shows it: `R`, `S`, `D`, `I`, `T`, `X`, or `?`.
    pub state: char,
    /// Why it does not answer.
    pub stuck: Stuck,
    /// Index of its kernel stack in `stacks`. Absent where it was not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack: Option<u32>,
}
