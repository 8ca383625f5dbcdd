//! A holder that waits for a block tag of a device that has nothing in flight.
//!
//! A tag becomes free when a request completes, and that wakes who waits for one. Where no
//! request is in flight every tag is free, and nobody will wake the waiter any more.

use super::{frame_of, held};
use crate::{
    detect::{Detector, Finding, Scene, Severity},
    figures::Span,
};

/// Functions that wait for a tag (block/blk-mq-tag.c; `bt_get` before 4.9).
const TAGS: &[&str] = &["blk_mq_get_tag", "bt_get"];

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct LostWakeup;

impl Detector for LostWakeup {
    fn name(&self) -> &'static str {
        "lost-wakeup"
    }

    fn check(&self, scene: &Scene<'_>) -> Vec<Finding> {
        held(scene)
            .filter(|(_, holder)| holder.stood)
            .filter_map(|(lock, holder)| {
                frame_of(scene, holder.stack, TAGS)?;
                let device = holder.stuck.device.as_ref()?;
                let since = holder
                    .stuck
                    .since
                    .filter(|&since| since >= scene.thresholds.wait)?;
                (device.in_flight == Some(0)).then(|| Finding {
                    detector: self.name(),
                    severity: Severity::Info,
                    sentence: format!(
                        "lost wakeup suspected: {} has waited {} for a free tag of {}, which has \
                         no request in flight",
                        holder.task,
                        Span(since),
                        device.name
                    ),
                    locks: vec![lock.address],
                    tasks: vec![holder.task.key.tid],
                    ..Finding::EMPTY
                })
            })
            .collect()
    }
}
