//! Lock waits as a busy host has them, made from a seed: the same events in every run.

use fastrand::Rng;
use lockwatch::{
    lock::LockAddr,
    stream::{Scan, Wait},
};
use lockwatch_ebpf::{
    stream::{Event, OpenWait, WaitKey, flags, kind},
    survey::COMM_LEN,
};
use zerocopy::IntoBytes as _;

/// Tasks that do nothing but wait and go on.
pub(crate) const TASKS: u32 = 2_000;
/// Locks they wait for; a quarter of the waits is for the first eight of them.
const LOCKS: u64 = 500;
const HOT: u64 = 8;
/// Between two events, in ns: a million of them a second.
const STEP_NS: u64 = 1_000;
/// One wait of so many lasts until the next [`Scene::release`].
const LONG: u32 = 50_000;
/// Bytes of a record of the ring buffer.
pub(crate) const RECORD: usize = size_of::<Event>();

/// Who waits for what.
pub(crate) struct Scene {
    rng: Rng,
    now_ns: u64,
    /// By task.
    open: Vec<Option<(u64, OpenWait)>>,
    /// Tasks that wait until they are released.
    long: Vec<u32>,
    has_long: bool,
    first_lock: LockAddr,
}

impl Scene {
    /// Nobody waits yet. One of the hot locks is `first_lock`; with `has_long`, some waits
    /// are long.
    pub(crate) fn new(first_lock: LockAddr, has_long: bool) -> Self {
        Self {
            rng: Rng::with_seed(7),
            now_ns: 1_000_000_000_000,
            open: vec![None; TASKS as usize],
            long: Vec::new(),
            has_long,
            first_lock,
        }
    }

    /// `CLOCK_MONOTONIC` ns.
    pub(crate) fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// Adds so many events to `out`, as the kernel's programs write them.
    pub(crate) fn go_on(&mut self, events: usize, out: &mut Vec<u8>) {
        let mut made = 0;
        while made < events {
            let task = self.rng.u32(0..TASKS);
            if self.long.contains(&task) {
                continue;
            }
            made += 1;
            self.now_ns += STEP_NS;
            let event = match self.open[task as usize].take() {
                Some((lock, wait)) => self.event(task, lock, wait, kind::WAIT_END),
                None => {
                    let (lock, wait) = self.begin(task);
                    if self.rng.u32(0..LONG) == 0 && self.has_long {
                        self.long.push(task);
                    }
                    self.event(task, lock, wait, kind::WAIT_BEGIN)
                }
            };
            out.extend_from_slice(event.as_bytes());
        }
    }

    /// Ends the long waits; how many there were.
    pub(crate) fn release(&mut self, out: &mut Vec<u8>) -> usize {
        let long = std::mem::take(&mut self.long);
        for &task in &long {
            if let Some((lock, wait)) = self.open[task as usize].take() {
                self.now_ns += STEP_NS;
                let event = self.event(task, lock, wait, kind::WAIT_END);
                out.extend_from_slice(event.as_bytes());
            }
        }
        long.len()
    }

    /// The waits that are open.
    pub(crate) fn scan(&self) -> Scan {
        let open = (0..TASKS).zip(&self.open);
        let waits = open.filter_map(|(task, wait)| {
            let (lock, wait) = wait.as_ref()?;
            Some(Wait::decode(key(task, *lock), wait))
        });
        Scan {
            at_ns: self.now_ns,
            waits: waits.collect(),
            complete: true,
        }
    }

    fn begin(&mut self, task: u32) -> (u64, OpenWait) {
        let range = if self.rng.u32(0..4) == 0 { HOT } else { LOCKS };
        let lock = self.first_lock.0 + 0x140 * self.rng.u64(0..range);
        let how = [flags::MUTEX, flags::READ, flags::WRITE];
        let mut comm = [0; COMM_LEN];
        let name = format!("worker/{}:{}", task % 16, task % 7);
        comm[..name.len()].copy_from_slice(name.as_bytes());
        let wait = OpenWait {
            since_ns: self.now_ns,
            start_time_ns: 1_000_000 * u64::from(task),
            tgid: task / 16 * 16,
            flags: how[self.rng.usize(0..how.len())],
            comm,
        };
        self.open[task as usize] = Some((lock, wait));
        (lock, wait)
    }

    fn event(&self, task: u32, lock: u64, wait: OpenWait, kind: u32) -> Event {
        Event {
            at_ns: self.now_ns,
            key: key(task, lock),
            wait,
            kind,
            result: 0,
        }
    }
}

fn key(task: u32, lock: u64) -> WaitKey {
    WaitKey {
        lock,
        tid: task + 1,
        _pad: 0,
    }
}
