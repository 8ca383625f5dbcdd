//! The truth of a CPU that is locked up.

use serde::{Deserialize, Serialize};

use super::{Cleared, LockState, Tgid, Tid};

/// The lockups that the lab can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LockupScenario {
    /// A task spins in mmap under its mmap_lock, held for write
    SoftLockupTask,
    /// A softirq spins where it receives a packet
    SoftLockupSoftirq,
    /// Many timers expire at once, each with a slow callback
    SoftLockupTimers,
    /// A task spins with interrupts off in kill, under the siglock of its target
    HardLockup,
}

impl LockupScenario {
    /// Its name on the command line and in the events.
    pub fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self)
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Interrupts are off on the CPU.
    pub fn is_hard(self) -> bool {
        matches!(self, Self::HardLockup)
    }
}

/// One line of the standard output of `lockup-lab`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum LockupEvent {
    /// Everything is prepared, and standard input is to end: if that was asked for.
    Prepared,
    /// The CPU is locked up, exactly as described.
    Ready(Box<LockedUp>),
    /// It is no more.
    Cleared(Cleared),
}

/// A CPU that is locked up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedUp {
    /// Which lockup.
    pub scenario: LockupScenario,
    /// Process id of the lab.
    pub pid: Tgid,
    /// The CPU.
    pub cpu: u32,
    /// In what context it spins.
    pub context: Context,
    /// The task on the CPU: the one that spins, or the one that the softirq interrupted. As
    /// the spinning program itself has seen it.
    pub task: Someone,
    /// The lock that is held there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<LockHeld>,
    /// Tasks that could run and have no other CPU.
    pub runnable: Vec<Someone>,
    /// A task on another CPU that spins with interrupts off for the lock that is held here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second: Option<Second>,
    /// Functions that are on the stack of the spinning CPU, if the compiler has left them.
    pub spins_in: Vec<String>,
    /// Since when it spins, `CLOCK_MONOTONIC`.
    pub begun_ns: u64,
    /// When it will end by itself, `CLOCK_MONOTONIC`.
    pub ends_at_ns: u64,
}

/// In what context a CPU spins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Context {
    /// A task's own, interrupts on.
    Task,
    /// A task's own, interrupts off.
    TaskIrqsOff,
    /// The softirq that receives packets.
    NetRx,
    /// The softirq that runs expired timers.
    Timer,
}

/// A task, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Someone {
    /// Its thread.
    pub tid: Tid,
    /// Its process.
    pub tgid: Tgid,
    /// Its comm.
    pub comm: String,
}

/// A lock that is held on the CPU, and its queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockHeld {
    /// The name a person would give it, e.g. `mmap_lock of lab-spinner[123]`.
    pub name: String,
    /// How it is held.
    pub state: LockState,
    /// Who waits for it.
    pub waiters: Vec<Someone>,
}

/// A task that spins elsewhere for the same lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Second {
    /// The task.
    pub task: Someone,
    /// Its CPU.
    pub cpu: u32,
}
