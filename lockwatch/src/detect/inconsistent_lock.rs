//! Lock words that contradict each other or the queue, in both looks: a leaked count,
//! memory corruption, or a kernel that lockwatch reads wrongly.

use super::{Detector, Finding, Scene, Severity, is_stalled};
use crate::lock::LockState;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct InconsistentLock;

impl Detector for InconsistentLock {
    fn name(&self) -> &'static str {
        "inconsistent-lock"
    }

    fn check(&self, scene: &Scene<'_>) -> Vec<Finding> {
        scene
            .locks
            .iter()
            .filter(|lock| lock.state == LockState::Inconsistent)
            .filter(|lock| is_stalled(lock, scene.thresholds.wait))
            .map(|lock| Finding {
                detector: self.name(),
                severity: Severity::Critical,
                sentence: format!(
                    "the words of {} contradict each other or its queue: count {}, owner {:#x}",
                    lock.name,
                    lock.count_text(),
                    lock.owner
                ),
                locks: vec![lock.address],
                tasks: lock
                    .waiters
                    .iter()
                    .map(|waiter| waiter.task.key.tid)
                    .collect(),
                ..Finding::EMPTY
            })
            .collect()
    }
}
