//! An unmount that waits for the super block, and what queues behind it.

use super::{super::is_stalled, frame_of};
use crate::{
    detect::{Detector, Finding, Scene, Severity},
    figures::Count,
    lock::{LockClass, LockMode},
};

/// Functions of an unmount that take `s_umount` for write (fs/super.c, fs/namespace.c).
const UMOUNTS: &[&str] = &[
    "deactivate_super",
    "path_umount",
    "do_umount",
    "cleanup_mnt",
];

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct UmountWaits;

impl Detector for UmountWaits {
    fn name(&self) -> &'static str {
        "umount-waits"
    }

    fn check(&self, scene: &Scene<'_>) -> Vec<Finding> {
        scene
            .locks
            .iter()
            .filter(|lock| lock.class == LockClass::SuperUmount)
            .filter(|lock| is_stalled(lock, scene.thresholds.wait))
            .filter_map(|lock| {
                let mut blocked = lock.waiters.iter().filter(|waiter| !waiter.granted);
                let umount = blocked.find(|waiter| {
                    waiter.mode == LockMode::Write
                        && frame_of(scene, waiter.stack, UMOUNTS).is_some()
                })?;
                let behind = match blocked.count() {
                    0 => "later ones (sync, mount, statfs of it) will queue behind it".to_owned(),
                    count => format!(
                        "{} behind it",
                        Count::of(count).nouns("task queues", "tasks queue")
                    ),
                };
                Some(Finding {
                    detector: self.name(),
                    severity: Severity::Info,
                    sentence: format!(
                        "{} unmounts a file system that is still in use: it waits for {} for \
                         write, and {behind}",
                        umount.task, lock.name
                    ),
                    locks: vec![lock.address],
                    tasks: vec![umount.task.key.tid],
                    ..Finding::EMPTY
                })
            })
            .collect()
    }
}
