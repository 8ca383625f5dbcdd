//! A writer in front of its queue, while others take the lock again and again.
//!
//! The queue of an rwsem is first come, first served, but tasks that have not queued may
//! take a lock that is free or read-held before the one in front gets to run. The kernel
//! bounds that (`RWSEM_FLAG_HANDOFF`, 4.11 and later, after 4 ms); where the bound does not
//! work, or there is none, the writer starves. Said only where the lock was seen passing
//! to another task while the same writer stood in front in both looks.

use super::{Detector, Finding, Scene, Severity};
use crate::{
    figures::Span,
    lock::{LockMode, Waiter},
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct WriterStarvation;

impl Detector for WriterStarvation {
    fn name(&self) -> &'static str {
        "writer-starvation"
    }

    fn check(&self, scene: &Scene<'_>) -> Vec<Finding> {
        let overtaken = scene.locks.iter().filter(|lock| lock.first_was_overtaken);
        overtaken
            .filter_map(|lock| {
                let first: &Waiter = lock.waiters.iter().find(|waiter| !waiter.granted)?;
                let starves = first.mode == LockMode::Write && first.wait >= scene.thresholds.wait;
                starves.then(|| Finding {
                    detector: self.name(),
                    severity: Severity::Warning,
                    sentence: format!(
                        "writer {} has stood in front of the queue of {} for {} while others \
                         took the lock past it",
                        first.task,
                        lock.name,
                        Span(first.wait)
                    ),
                    locks: vec![lock.address],
                    tasks: vec![first.task.key.tid],
                    ..Finding::EMPTY
                })
            })
            .collect()
    }
}
