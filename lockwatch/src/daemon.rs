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
    /// Threads that have the connection's device among their open files, except those that
    /// are clients; these, too, if nobody else has it: then the daemon waits for itself.
    /// Empty if nobody has it open here (virtiofs is served by the host), or if that could
    /// not be read, which the survey then says.
    pub threads: Vec<DaemonThread>,
}

impl Daemon {
    /// The threads that the clients wait for, as far as that carries weight: `likely` or
    /// `certain`.
    pub fn serving(&self) -> impl Iterator<Item = &DaemonThread> {
        let known = |thread: &&DaemonThread| thread.serves.is_some_and(Confidence::carries_weight);
        self.threads.iter().filter(known)
    }

    /// It has read a request that it does not answer, and all its threads wait for the next
    /// one: nobody is at work on it. The daemon has lost it, or answers when something comes
    /// by another way.
    pub fn owes_while_idle(&self) -> bool {
        let owes = |client: &Client| client.is_sent && client.stood;
        let is_idle = |thread: &DaemonThread| thread.evidence == ServesEvidence::Idle;
        !self.threads.is_empty()
            && self.clients.iter().any(owes)
            && self.threads.iter().all(is_idle)
    }
}

/// A task that waits for a daemon's answer to a request of its own. Who waits for a page that
/// somebody else asked for is none.
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
    /// How sure it is that the clients wait for this thread; `None` for one that waits for the
    /// next request in the kernel, and so is not at work on any. If all are so, see
    /// [`Daemon::owes_while_idle`].
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
pub enum ServesEvidence {
    /// It waits in the kernel for the next request (`fuse_dev_do_read`): it has none.
    Idle,
    /// No other thread has the connection's device among its open files: whatever this one
    /// does, nobody else can read a request or answer one.
    OnlyThread,
    /// All other threads are idle, in both looks.
    OthersIdle,
    /// All other threads are idle, or asleep in a call that waits for user space or for a timer
    /// (futex, poll, sleep …), where threads that serve seldom are; this one is not.
    OthersParked,
    /// Others could have the requests as well.
    OneOfSeveral,
}

impl ServesEvidence {
    /// In words for a person.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Idle => "it waits for the next request",
            Self::OnlyThread => "its only thread",
            Self::OthersIdle => "its other threads wait for the next request",
            Self::OthersParked => "its other threads sleep in calls that wait for user space",
            Self::OneOfSeveral => "one of several threads that could have the request",
        }
    }
}
