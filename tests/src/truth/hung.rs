//! The truth of tasks that hang without a lock.

use serde::{Deserialize, Serialize};

use super::{Scenario, Tgid, Tid};

/// Tasks that hang in state D for one and the same cause, which is no lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hung {
    /// Which scenario.
    pub scenario: Scenario,
    /// Process id of the lab.
    pub pid: Tgid,
    /// Mount point of the file system whose server does not answer.
    pub mount: String,
    /// The `s_dev` of that file system, `major:minor`.
    pub device: String,
    /// The thread that serves it, and does not answer.
    pub server: Tid,
    /// What they wait for.
    pub cause: HungCause,
    /// All that hang.
    pub tasks: Vec<HungTask>,
    /// When it will end by itself, `CLOCK_MONOTONIC`.
    pub ends_at_ns: u64,
}

/// What tasks hang for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HungCause {
    /// The answer of a FUSE daemon, which not even a fatal signal ends the wait for: the
    /// daemon has the request already.
    FuseAnswer,
    /// One page of a file, which is locked until it is read.
    Folio,
    /// An answer of an NFS server, whatever it was asked.
    NfsAnswer,
}

/// A task that hangs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HungTask {
    /// Its thread.
    pub tid: Tid,
    /// Its process.
    pub tgid: Tgid,
    /// Its comm.
    pub comm: String,
    /// A fatal signal ends its wait.
    pub killable: bool,
    /// Top of its kernel stack when it was seen hanging.
    pub frame: String,
    /// When it did not hang yet, `CLOCK_MONOTONIC`.
    pub before_ns: u64,
    /// When it was seen hanging, `CLOCK_MONOTONIC`.
    pub seen_ns: u64,
}
