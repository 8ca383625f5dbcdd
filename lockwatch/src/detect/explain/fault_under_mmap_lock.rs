//! A page fault that keeps its address space's lock while it waits for storage.

use super::{frame_of, held, slow_storage};
use crate::{
    detect::{Detector, Finding, Scene, Severity},
    lock::{LockClass, LockObject},
};

/// Functions inside of which a page fault is handled (mm/memory.c).
const FAULTS: &[&str] = &["handle_mm_fault", "__handle_mm_fault", "__get_user_pages"];

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct FaultUnderMmapLock;

impl Detector for FaultUnderMmapLock {
    fn name(&self) -> &'static str {
        "fault-under-mmap-lock"
    }

    fn check(&self, scene: &Scene<'_>) -> Vec<Finding> {
        held(scene)
            .filter(|(lock, _)| matches!(lock.class, LockClass::MmapLock | LockClass::VmaLock))
            .filter_map(|(lock, holder)| {
                frame_of(scene, holder.stack, FAULTS)?;
                let storage = slow_storage(holder.stuck.class)?;
                let owner = match &lock.object {
                    Some(LockObject::Mm { owner, .. } | LockObject::Vma { owner, .. }) => {
                        owner.as_ref()
                    }
                    _ => None,
                };
                let reached = owner.map_or_else(
                    || "reads its cmdline, environ or maps in /proc".to_owned(),
                    |(tgid, _)| format!("reads /proc/{tgid}/cmdline, environ or maps (ps, top)"),
                );
                Some(Finding {
                    detector: self.name(),
                    severity: Severity::Info,
                    sentence: format!(
                        "a page fault of {} waits for {storage} and keeps the lock meanwhile: \
                         whoever maps memory in that process, or {reached}, waits with it",
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
