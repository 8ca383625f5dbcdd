//! Daemons: user-space servers that tasks inside the kernel wait for. Today those are the
//! servers of FUSE file systems.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    lock::{Confidence, StackId},
    task::{Nanos, Stuck, TaskName, TaskState},
};

/// Address of the kernel's side of a connection (`struct fuse_conn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ConnectionAddr(#[serde(with = "crate::hex")] pub u64);

impl fmt::Display for ConnectionAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A server that at least one task waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Daemon {
    /// The connection it serves.
    pub connection: ConnectionAddr,
    /// Number of the connection: the directory under `/sys/fs/fuse/connections`, where
    /// writing to `abort` ends every wait for it. `None` where it could not be read.
    pub number: Option<u32>,
    /// In words: `fuse.sshfs on /mnt/share`, or `FUSE connection 45` if it is not mounted here.
    pub name: String,
    /// Tasks that wait for an answer, the longest wait first.
    pub clients: Vec<Client>,
    /// Threads of the processes that have the connection's device open, except those that
    /// are clients. Empty if nobody has it open any more.
    pub threads: Vec<DaemonThread>,
}

/// A task that waits for a daemon's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// Who.
    pub task: TaskName,
    /// Off the CPU for this long: it has waited at most as long for this answer.
    pub wait: Nanos,
    /// The daemon has read the request; otherwise it lies in the daemon's queue.
    pub is_sent: bool,
    /// A fatal signal would end the wait.
    pub killable: bool,
    /// Seen with the same request in both looks, and it did not run in between.
    pub stood: bool,
    /// Its kernel stack.
    pub stack: StackId,
}

/// A thread that may serve a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonThread {
    /// Who.
    pub task: TaskName,
    /// How sure it is that the clients wait for this thread; `None` for one that certainly
    /// has no request: it waits for the next one in the kernel.
    pub serves: Option<Confidence>,
    /// Why.
    pub evidence: ServesEvidence,
    /// What the scheduler says of it.
    pub state: TaskState,
    /// Why it does not answer.
    pub stuck: Stuck,
    /// It did not run between the looks.
    pub stood: bool,
    /// Its kernel stack.
    pub stack: StackId,
}

/// What is known of the other threads of a daemon says which one has the requests: the
/// kernel does not keep who read them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServesEvidence {
    /// It waits in the kernel for the next request (`fuse_dev_do_read`): it has none.
    Idle,
    /// The connection's device is open in one process, which has one thread.
    OnlyThread,
    /// All other threads are idle.
    OthersIdle,
    /// All other threads are idle, or asleep in a call that waits for user space or for a timer
    /// (futex, poll, sleep …), where threads that serve seldom are.
    OthersParked,
    /// Others could have the requests as well.
    OneOfSeveral,
}
