//! Tasks that have waited for a lock longer than the threshold.

use super::{Detector, Finding, Scene, Severity};
use crate::{
    figures::{Count, Span},
    lock::Waiter,
    task::Nanos,
};

/// From here on the kernel's own hung-task detector would complain
/// (`kernel.hung_task_timeout_secs`, 120 by default).
const KERNEL_WOULD_COMPLAIN: Nanos = Nanos(120 * 1_000_000_000);

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct LongWait;

impl Detector for LongWait {
    fn name(&self) -> &'static str {
        "long-wait"
    }

    fn check(&self, scene: &Scene<'_>) -> Vec<Finding> {
        scene
            .locks
            .iter()
            .filter_map(|lock| {
                let long: Vec<&Waiter> = lock
                    .waiters
                    .iter()
                    .filter(|waiter| waiter.wait >= scene.thresholds.wait)
                    .collect();
                // Of equal waits the one in front.
                let oldest = long.iter().rev().max_by_key(|waiter| waiter.wait)?;
                let sentence = if long.len() == 1 {
                    format!(
                        "{} has waited for {} for {}",
                        oldest.task,
                        lock.name,
                        Span(oldest.wait)
                    )
                } else {
                    format!(
                        "{} tasks have waited for {} for {} or longer; {} longest, for {}",
                        Count::of(long.len()),
                        lock.name,
                        Span(scene.thresholds.wait),
                        oldest.task,
                        Span(oldest.wait)
                    )
                };
                Some(Finding {
                    detector: self.name(),
                    severity: if oldest.wait >= KERNEL_WOULD_COMPLAIN {
                        Severity::Critical
                    } else {
                        Severity::Warning
                    },
                    sentence,
                    locks: vec![lock.address],
                    tasks: long.iter().map(|waiter| waiter.task.key.tid).collect(),
                    ..Finding::EMPTY
                })
            })
            .collect()
    }
}
