//! Readers queued behind a queued writer while the lock is only read-held: they could
//! have the lock now, but the queue is fair.

use super::{Detector, Finding, Scene, Severity, is_stalled};
use crate::{
    figures::Count,
    lock::{Lock, LockKind, LockMode, LockState, Waiter},
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Convoy;

/// The writer in front and the readers behind it, if this lock has a convoy.
fn convoy(lock: &Lock) -> Option<(&Waiter, Vec<&Waiter>)> {
    if lock.kind != LockKind::Rwsem || lock.state != LockState::ReadHeld {
        return None;
    }
    let mut queue = lock.waiters.iter().filter(|waiter| !waiter.granted);
    // A reader in front means that the readers wait for a wake-up, not for a writer.
    let writer = queue
        .next()
        .filter(|waiter| waiter.mode == LockMode::Write)?;
    let readers: Vec<&Waiter> = queue
        .filter(|waiter| waiter.mode == LockMode::Read)
        .collect();
    (!readers.is_empty()).then_some((writer, readers))
}

impl Detector for Convoy {
    fn name(&self) -> &'static str {
        "convoy"
    }

    fn check(&self, scene: &Scene<'_>) -> Vec<Finding> {
        scene
            .locks
            .iter()
            .filter(|lock| is_stalled(lock, scene.thresholds.wait))
            .filter_map(|lock| {
                let (writer, readers) = convoy(lock)?;
                let count = Count::of(readers.len());
                Some(Finding {
                    detector: self.name(),
                    severity: Severity::Warning,
                    sentence: format!(
                        "{} {} for {} behind writer {} although the lock is only read-held",
                        count.nouns("reader", "readers"),
                        if count.0 == 1 { "waits" } else { "wait" },
                        lock.name,
                        writer.task,
                    ),
                    locks: vec![lock.address],
                    tasks: std::iter::once(writer)
                        .chain(readers)
                        .map(|waiter| waiter.task.key.tid)
                        .collect(),
                    ..Finding::EMPTY
                })
            })
            .collect()
    }
}
