//! Tasks that have held a lock longer than the threshold while others wait for it.

use super::{Detector, Finding, Scene, Severity, is_stalled};
use crate::{
    figures::Span,
    lock::{Holder, Lock, LockMode},
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct LongHold;

impl Detector for LongHold {
    fn name(&self) -> &'static str {
        "long-hold"
    }

    fn check(&self, scene: &Scene<'_>) -> Vec<Finding> {
        let stalled = scene.locks.iter();
        stalled
            .filter(|lock| is_stalled(lock, scene.thresholds.wait))
            .filter_map(|lock| self.longest(scene, lock))
            .collect()
    }
}

impl LongHold {
    fn longest(self, scene: &Scene<'_>, lock: &Lock) -> Option<Finding> {
        let long: Vec<&Holder> = lock
            .holders
            .iter()
            .filter(|holder| holder.confidence.carries_weight())
            .filter(|holder| {
                holder
                    .held
                    .is_some_and(|held| held >= scene.thresholds.wait)
            })
            .collect();
        let longest = long.iter().rev().max_by_key(|holder| holder.held)?;
        let mode = match longest.mode {
            _ if !lock.kind.has_readers() => "",
            LockMode::Read => " for read",
            LockMode::Write => " for write",
        };
        let least = if longest.held_is_lower_bound {
            "at least "
        } else {
            ""
        };
        let others = match long.len() {
            1 => String::new(),
            more => format!("; {} others hold it too long as well", more - 1),
        };
        Some(Finding {
            detector: self.name(),
            severity: Severity::Warning,
            sentence: format!(
                "{} has held {}{mode} for {least}{}{others}",
                longest.task,
                lock.name,
                Span(longest.held?),
            ),
            locks: vec![lock.address],
            tasks: long.iter().map(|holder| holder.task.key.tid).collect(),
            ..Finding::EMPTY
        })
    }
}
