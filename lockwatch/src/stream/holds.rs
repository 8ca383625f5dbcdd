//! Holds as the programs at the acquiring functions saw them begin.

use std::io;

use lockwatch_ebpf::holds::{AGAIN, SLOTS, TaskHolds};

use crate::{
    clock::now_ns,
    lock::{LockAddr, LockMode},
    probes::holds::HoldProbes,
    survey::{HoldSource, TracedHold},
    task::{TaskKey, Tid},
};

/// Deeper recursion of one task's reads is taken for nonsense.
const DEPTH_MAX: u32 = 16;

/// Hold tracking as a source of evidence for surveys.
#[derive(Debug)]
pub struct TracedHolds {
    probes: HoldProbes,
    gap: Gap,
}

/// Releases that the programs have missed.
#[derive(Clone, Copy, Debug, Default)]
struct Gap {
    /// So many, at the last reading.
    missed: u64,
    /// `CLOCK_MONOTONIC` ns of the first reading that gave this number: what was taken
    /// later is surely known.
    seen_ns: u64,
}

impl Gap {
    fn read(self, missed: u64, now_ns: u64) -> Self {
        if missed == self.missed {
            return self;
        }
        Self {
            missed,
            seen_ns: now_ns,
        }
    }
}

impl TracedHolds {
    /// Reads from these programs.
    pub fn new(probes: HoldProbes) -> Self {
        Self {
            probes,
            gap: Gap::default(),
        }
    }
}

impl HoldSource for TracedHolds {
    fn holds(&mut self) -> io::Result<Vec<TracedHold>> {
        // Releases are asked for after the holds: one in between is not missed.
        let tasks = self.probes.snapshot().map_err(io::Error::other)?;
        // After the holds: a release that was missed before is counted by now.
        let gap = self.gap.read(self.probes.missed(), now_ns());
        if gap.missed != self.gap.missed {
            tracing::debug!("the kernel skipped {} runs at releases", gap.missed);
        }
        self.gap = gap;
        let lost = self.probes.lost();
        if lost > 0 {
            tracing::debug!("{lost} acquisitions found no room");
        }
        let released_at = |lock| self.probes.released_at(lock);
        Ok(tasks
            .iter()
            .flat_map(|task| decode(task, gap.seen_ns, released_at))
            .collect())
    }
}

/// The holds of one task, a lock that it holds n times for read n times. Left out is a
/// lock that somebody else has released since: that may have been this task's hold.
fn decode(
    task: &TaskHolds,
    gap_ns: u64,
    released_at: impl Fn(u64) -> Option<u64>,
) -> impl Iterator<Item = TracedHold> {
    let key = TaskKey {
        tid: Tid(task.tid),
        start_ns: task.start_time_ns,
    };
    let holds = task.holds;
    (0..SLOTS)
        .filter(move |&slot| {
            let lock = holds.locks[slot];
            lock != 0 && released_at(lock).is_none_or(|at_ns| at_ns < holds.since_ns[slot])
        })
        .flat_map(move |slot| {
            let reads = holds.reads[slot] & !AGAIN;
            let hold = TracedHold {
                lock: LockAddr(holds.locks[slot]),
                task: key,
                mode: if reads == 0 {
                    LockMode::Write
                } else {
                    LockMode::Read
                },
                since_ns: holds.since_ns[slot],
                is_sure: holds.since_ns[slot] >= gap_ns,
            };
            std::iter::repeat_n(hold, reads.clamp(1, DEPTH_MAX) as usize)
        })
}

#[cfg(test)]
mod tests {
    use lockwatch_ebpf::holds::Holds;

    use super::*;

    const LOCK: u64 = 0xffff_8880_0000_1000;

    fn task(reads: u32) -> TaskHolds {
        let mut holds = Holds::default();
        // The first slot was left again.
        holds.locks[1] = LOCK;
        holds.since_ns = [10, 20, 0, 0, 0, 0, 0, 0];
        holds.reads[1] = reads;
        TaskHolds {
            start_time_ns: 5,
            tid: 11,
            tgid: 10,
            holds,
        }
    }

    fn modes(reads: u32, released_at: Option<u64>) -> Vec<LockMode> {
        let task = task(reads);
        let holds = decode(&task, 0, |lock| released_at.filter(|_| lock == LOCK));
        holds
            .inspect(|hold| {
                let key = TaskKey {
                    tid: Tid(11),
                    start_ns: 5,
                };
                assert_eq!((hold.task, hold.lock), (key, LockAddr(LOCK)));
                assert_eq!(hold.since_ns, 20);
            })
            .map(|hold| hold.mode)
            .collect()
    }

    #[test]
    fn a_hold_says_how_and_how_often() {
        assert_eq!(modes(0, None), [LockMode::Write]);
        assert_eq!(modes(1, None), [LockMode::Read]);
        assert_eq!(modes(2 | AGAIN, None), [LockMode::Read; 2]);
        assert_eq!(modes(u32::MAX, None).len(), DEPTH_MAX as usize);
    }

    #[test]
    fn what_was_taken_before_a_gap_is_not_sure() {
        let task = task(1);
        let is_sure = |gap_ns| decode(&task, gap_ns, |_| None).all(|hold| hold.is_sure);
        assert!(is_sure(0) && is_sure(20) && !is_sure(21));
        let gap = Gap::default().read(0, 5);
        assert_eq!(gap.seen_ns, 0, "nothing was missed");
        assert_eq!(gap.read(3, 9).read(3, 11).seen_ns, 9);
    }

    #[test]
    fn a_release_by_somebody_else_ends_older_holds_only() {
        assert_eq!(modes(0, Some(19)), [LockMode::Write]);
        assert_eq!(modes(0, Some(20)), []);
        assert_eq!(modes(1, Some(21)), []);
    }
}
