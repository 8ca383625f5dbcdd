//! Waits and their ends in the domain's words, decoded once, here.

use lockwatch_ebpf::{
    counts::HELD,
    stream::{self as abi, OpenWait, WaitKey, flags, kind},
    survey::COMM_LEN,
};

use serde::{Deserialize, Serialize};

use crate::{
    kernel::memory::comm,
    lock::{LockAddr, LockKind, LockMode},
    task::{TaskKey, TaskName, Tgid, Tid},
};

/// A task that waits for a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// Who.
    pub task: TaskName,
    /// For which lock.
    pub lock: LockAddr,
    /// Which primitive that is.
    pub kind: LockKind,
    /// How it wants it. Mutexes and semaphores are wanted for write.
    pub mode: LockMode,
    /// `CLOCK_MONOTONIC` ns at which the wait began.
    pub since_ns: u64,
}

/// Tells one wait from every other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WaitId {
    /// Who.
    pub task: TaskKey,
    /// For which lock.
    pub lock: LockAddr,
    /// `CLOCK_MONOTONIC` ns at which it began.
    pub since_ns: u64,
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A task began to wait.
    WaitBegin(Wait),
    /// A wait is over.
    WaitEnd {
        /// Which.
        wait: Wait,
        /// `CLOCK_MONOTONIC` ns.
        at_ns: u64,
        /// False if the task gave up: a signal, a time-out.
        acquired: bool,
    },
}

/// All waits that were open at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// `CLOCK_MONOTONIC` ns before the reading began.
    pub at_ns: u64,
    /// The waits, in no particular order.
    pub waits: Vec<Wait>,
    /// False if there may be more.
    pub complete: bool,
}

impl Wait {
    /// Its identity.
    pub fn id(&self) -> WaitId {
        WaitId {
            task: self.task.key,
            lock: self.lock,
            since_ns: self.since_ns,
        }
    }

    /// As the kernel keeps it.
    pub fn decode(key: WaitKey, open: &OpenWait) -> Self {
        Self {
            task: TaskName {
                key: TaskKey {
                    tid: Tid(key.tid),
                    start_ns: open.start_time_ns,
                },
                tgid: Tgid(open.tgid),
                comm: comm(&open.comm),
            },
            lock: LockAddr(key.lock),
            kind: lock_kind(open.flags),
            mode: lock_mode(open.flags),
            since_ns: open.since_ns,
        }
    }

    pub(super) fn encode(&self) -> (WaitKey, OpenWait) {
        let mode = match self.mode {
            LockMode::Read => flags::READ,
            LockMode::Write => flags::WRITE,
        };
        let flags = match self.kind {
            LockKind::Mutex => flags::MUTEX,
            LockKind::RtMutex => flags::RT,
            LockKind::Semaphore => 0,
            LockKind::PercpuRwsem => flags::PERCPU | mode,
            LockKind::VmaLock => flags::VMA | mode,
            LockKind::Rwsem | LockKind::Unknown => mode,
        };
        let key = WaitKey {
            lock: self.lock.0,
            tid: self.task.key.tid.0,
            _pad: 0,
        };
        let open = OpenWait {
            since_ns: self.since_ns,
            start_time_ns: self.task.key.start_ns,
            tgid: self.task.tgid.0,
            flags,
            comm: comm_bytes(&self.task.comm),
        };
        (key, open)
    }
}

impl Event {
    /// `None` for a kind that this version does not know.
    pub fn decode(event: &abi::Event) -> Option<Self> {
        let wait = Wait::decode(event.key, &event.wait);
        match event.kind {
            kind::WAIT_BEGIN => Some(Self::WaitBegin(wait)),
            kind::WAIT_END => Some(Self::WaitEnd {
                wait,
                at_ns: event.at_ns,
                acquired: event.result >= 0,
            }),
            _ => None,
        }
    }
}

/// A task's name in memory, cut as the kernel cuts it: the last byte stays 0.
pub(super) fn comm_bytes(comm: &str) -> [u8; COMM_LEN] {
    let mut bytes = [0; COMM_LEN];
    for (to, from) in bytes[..COMM_LEN - 1].iter_mut().zip(comm.bytes()) {
        *to = from;
    }
    bytes
}

/// How the lock is wanted, by the flags of `contention_begin`.
pub(super) const fn lock_mode(wait_flags: u32) -> LockMode {
    if wait_flags & flags::READ != 0 {
        LockMode::Read
    } else {
        LockMode::Write
    }
}

/// Which primitive `contention_begin` means (see KERNEL facts in `abi::stream::flags`).
pub(super) fn lock_kind(wait_flags: u32) -> LockKind {
    let wait_flags = wait_flags & !(flags::SPINS_INSIDE | HELD);
    let is = |flag| wait_flags & flag != 0;
    if is(flags::VMA) {
        LockKind::VmaLock
    } else if is(flags::MUTEX) {
        LockKind::Mutex
    } else if is(flags::PERCPU) {
        LockKind::PercpuRwsem
    } else if is(flags::READ | flags::WRITE) {
        LockKind::Rwsem
    } else if is(flags::RT) {
        LockKind::RtMutex
    } else if wait_flags == 0 {
        LockKind::Semaphore
    } else {
        LockKind::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(wait_flags: u32, comm: &[u8]) -> OpenWait {
        let mut padded = [0; COMM_LEN];
        padded[..comm.len()].copy_from_slice(comm);
        OpenWait {
            since_ns: 5,
            start_time_ns: 3,
            tgid: 10,
            flags: wait_flags,
            comm: padded,
        }
    }

    #[test]
    fn every_primitive_survives_the_way_there_and_back() {
        let key = WaitKey {
            lock: 0xffff_8880_0000_1000,
            tid: 11,
            _pad: 0,
        };
        for (wait_flags, kind, mode) in [
            (flags::READ, LockKind::Rwsem, LockMode::Read),
            (flags::WRITE, LockKind::Rwsem, LockMode::Write),
            (flags::MUTEX, LockKind::Mutex, LockMode::Write),
            (
                flags::PERCPU | flags::READ,
                LockKind::PercpuRwsem,
                LockMode::Read,
            ),
            (
                flags::VMA | flags::WRITE,
                LockKind::VmaLock,
                LockMode::Write,
            ),
            (flags::RT, LockKind::RtMutex, LockMode::Write),
            (0, LockKind::Semaphore, LockMode::Write),
        ] {
            let wait = Wait::decode(key, &open(wait_flags, b"worker"));
            assert_eq!((wait.kind, wait.mode), (kind, mode));
            assert_eq!(wait.encode(), (key, open(wait_flags, b"worker")));
        }
    }

    #[test]
    fn a_mutex_that_spins_is_a_mutex() {
        assert_eq!(lock_kind(flags::MUTEX | flags::SPIN), LockKind::Mutex);
        assert_eq!(lock_kind(flags::RT | flags::READ), LockKind::Rwsem);
    }

    #[test]
    fn a_name_cannot_steer_the_terminal() {
        let wait = Wait::decode(WaitKey::default(), &open(0, b"a\x1b[31mb\xff"));
        assert_eq!(wait.task.comm, "a\u{fffd}[31mb\u{fffd}");
    }

    #[test]
    fn an_end_with_an_error_acquired_nothing() {
        let event = abi::Event {
            at_ns: 9,
            key: WaitKey::default(),
            wait: open(flags::READ, b"x"),
            kind: kind::WAIT_END,
            result: -4,
        };
        assert!(matches!(
            Event::decode(&event),
            Some(Event::WaitEnd {
                acquired: false,
                at_ns: 9,
                ..
            })
        ));
        assert_eq!(Event::decode(&abi::Event { kind: 77, ..event }), None);
    }
}
