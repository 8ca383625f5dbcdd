//! The `why` lines: what the rules of the lock make of its state, and what is known of
//! stalls like this one. The rules of an rwsem: see [`crate::graph::next`].

use super::{Text, Tone};
use crate::{
    detect::{Detector as _, LostWakeup, Severity},
    figures::Count,
    graph::next::GRANTED_AT_ONCE,
    lock::{LockKind, LockMode, LockState},
    report::{Finding, Lock, Report, next::Queue},
};

/// Explanations that are shown for one lock: there may be one for each of its holders.
const EXPLANATIONS: usize = 3;

pub(super) fn lines(report: &Report, lock: &Lock) -> Vec<Text> {
    let explanations: Vec<&Finding> = report
        .findings
        .iter()
        .filter(|finding| finding.severity == Severity::Info && finding.locks.contains(&lock.id))
        // The root says that.
        .filter(|finding| finding.detector != LostWakeup.name())
        .collect();
    let mut lines: Vec<Text> = why(lock).into_iter().collect();
    let shown = explanations.iter().take(EXPLANATIONS);
    lines.extend(shown.map(|finding| Text::plain(&finding.sentence)));
    if explanations.len() > EXPLANATIONS {
        let more = Count::of(explanations.len() - EXPLANATIONS);
        lines.push(Text::plain(format!("… and {more} more like these")));
    }
    lines
}

fn why(lock: &Lock) -> Option<Text> {
    if lock.kind != LockKind::Rwsem {
        return why_not_an_rwsem(lock).map(Text::plain);
    }
    let queue = Queue::of(lock)?;
    let position = queue.first.position;
    let words = match (lock.state, queue.first.mode) {
        (LockState::ReadHeld, LockMode::Write) if queue.is_convoy(lock) => {
            return Some(
                Text::plain(format!(
                    "{} behind writer #{position} although the lock is only read-held (",
                    if queue.readers == 1 {
                        "a reader waits"
                    } else {
                        "readers wait"
                    }
                ))
                .with(Tone::Alarm, "convoy")
                .with(Tone::Plain, ")"),
            );
        }
        (LockState::ReadHeld, LockMode::Write) => {
            format!("writer #{position} waits until every reader has let go")
        }
        (LockState::ReadHeld, LockMode::Read) if lock.by_priority => {
            "readers queue although the lock is only read-held: a task is passing through"
                .to_owned()
        }
        (LockState::ReadHeld, LockMode::Read) => format!(
            "readers queue although the lock is only read-held and no writer is in front: \
             a wake-up grants it to at most {GRANTED_AT_ONCE} of them"
        ),
        (LockState::WriteHeld, _) => "nobody else gets a lock that is write-held".to_owned(),
        (LockState::Free, _) => {
            format!("the lock is free: #{position} has not taken it yet (woken, but not run?)")
        }
        (LockState::Inconsistent, _) => {
            return Some(Text::new().with(
                Tone::Alarm,
                format!(
                    "the lock's words contradict each other or the queue: count {}, owner {}",
                    lock.count, lock.owner
                ),
            ));
        }
    };
    Some(Text::plain(words))
}

/// The rules of the other locks. A mutex, an rt_mutex and a semaphore know one way to be
/// held. A per-CPU rwsem and a VMA are shut by a writer before the readers that are in have
/// left (kernel/locking/percpu-rwsem.c 5.7+, mm/mmap_lock.c 6.15+).
fn why_not_an_rwsem(lock: &Lock) -> Option<String> {
    let first = lock.blocked().next()?;
    let position = first.position;
    let words = match (lock.kind, lock.state) {
        (LockKind::Rwsem | LockKind::Unknown, _) => return None,
        (_, LockState::Inconsistent) => format!(
            "the lock's words contradict each other: count {}, owner {}",
            lock.count, lock.owner
        ),
        (_, LockState::Free) => {
            format!("the lock is free: #{position} has not taken it yet (woken, but not run?)")
        }
        (LockKind::Mutex | LockKind::RtMutex, _) => {
            "one task at a time has it, the others queue".to_owned()
        }
        (LockKind::Semaphore, _) => "all that the semaphore gives out is taken".to_owned(),
        (LockKind::PercpuRwsem, LockState::ReadHeld) => format!(
            "writer #{position} has shut it for new readers and waits until those that were in leave"
        ),
        (LockKind::PercpuRwsem, LockState::WriteHeld) => {
            "nobody else gets a lock that is write-held".to_owned()
        }
        (LockKind::VmaLock, _) => format!(
            "writer #{position} waits until everybody has left the memory area; it has mmap_lock for write meanwhile"
        ),
    };
    Some(words)
}
