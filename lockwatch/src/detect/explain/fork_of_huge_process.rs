//! A fork that copies the page tables of a large process, with its mmap_lock write-held.

use super::{frame_of, held};
use crate::{
    detect::{Detector, Finding, Scene, Severity},
    lock::{LockClass, LockMode},
};

/// Functions that copy an address space (kernel/fork.c, mm/mmap.c, mm/memory.c).
const COPIES: &[&str] = &["copy_page_range", "dup_mmap", "dup_mm"];

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct ForkOfHugeProcess;

impl Detector for ForkOfHugeProcess {
    fn name(&self) -> &'static str {
        "fork-of-huge-process"
    }

    fn check(&self, scene: &Scene<'_>) -> Vec<Finding> {
        held(scene)
            .filter(|(lock, holder)| {
                lock.class == LockClass::MmapLock && holder.mode == LockMode::Write
            })
            .filter_map(|(lock, holder)| {
                frame_of(scene, holder.stack, COPIES)?;
                Some(Finding {
                    detector: self.name(),
                    severity: Severity::Info,
                    sentence: format!(
                        "{} forks: it copies the page tables of its process with the lock held \
                         for write, which takes the longer the more memory that process has; \
                         vfork, posix_spawn and huge pages avoid it",
                        holder.task
                    ),
                    locks: vec![lock.address],
                    tasks: vec![holder.task.key.tid],
                    ..Finding::EMPTY
                })
            })
            .collect()
    }
}
