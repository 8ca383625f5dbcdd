//! What a page fault on a stack says of the lock of its address space or memory area.

use super::{Scene, reason};
use crate::{
    kernel::{
        arch::{PAGE_SIZE, is_kernel_address, is_user_address},
        fault::{FaultFlags, FaultHold},
        memory::{MemoryError, word},
    },
    lock::{Evidence, EvidenceKind, LockClass},
    survey::{look::TaskLook, names::Identity, stack::frame_words},
};

/// The verdict of a page fault on this address space or VMA, if the task is in one.
/// `Some(empty)` means: it is in one, and holds nothing.
pub(in crate::survey) fn fault(
    scene: &mut Scene<'_, '_>,
    lock: &Identity,
    task: &TaskLook,
    stems: &[&str],
) -> Result<Option<Vec<Evidence>>, MemoryError> {
    let Some(object) = lock.object_address else {
        return Ok(None);
    };
    let is_vma = lock.class == LockClass::VmaLock;
    for index in 0..stems.len() {
        if !scene.layout.fault.frames.contains(&stems[index]) {
            continue;
        }
        let Some(flags) = fault_flags(scene, object, task, index)? else {
            continue;
        };
        let found = |kind| vec![reason(kind, Some(stems[index]), Some(flags.describe()))];
        let inner = &stems[..=index];
        let hold = if is_vma {
            flags.vma_hold(inner)
        } else {
            flags.hold(inner)
        };
        return Ok(Some(match hold {
            FaultHold::Holds => found(EvidenceKind::FaultFlags),
            FaultHold::Unknown => found(EvidenceKind::ObjectWord),
            FaultHold::HoldsNot => Vec::new(),
        }));
    }
    Ok(None)
}

/// The flags of the `vm_fault` in this frame, if there is one for this mm or VMA. Content
/// alone is not enough, stale ones lie about: it must be in the right frame, name a
/// VMA of the mm, and an address inside of it.
fn fault_flags(
    scene: &mut Scene<'_, '_>,
    object: u64,
    task: &TaskLook,
    frame: usize,
) -> Result<Option<FaultFlags>, MemoryError> {
    let layout = scene.layout.fault;
    let all = scene.look.words(task);
    let (from, words) = frame_words(&task.frames, frame, all);
    // Up to 4.9 the VMA is in a register that what the frame calls saves.
    let beside: Vec<u64> = match layout.fault_vma {
        Some(_) => Vec::new(),
        None => scene.look.pointers(&all[..from + words.len()]),
    };
    for start in 0..words
        .len()
        .saturating_sub(layout.fault_size.div_ceil(8) - 1)
    {
        let field = |offset: usize| words[start + offset / 8] >> (8 * (offset % 8));
        let (address, pgoff) = (field(layout.fault_address), field(layout.fault_pgoff));
        let flags = FaultFlags::decode(field(layout.fault_flags) as u32, layout.rules);
        let (true, Some(flags)) = (is_user_address(address), flags) else {
            continue;
        };
        let named = layout.fault_vma.map(field);
        for &vma in named.as_slice().iter().chain(&beside) {
            if !is_kernel_address(vma) {
                continue;
            }
            let Some(bytes) = scene.memory.read(vma, layout.vma_size)? else {
                continue;
            };
            let member = |offset: usize| word(&bytes, offset);
            let start = member(layout.vma_start);
            let inside = (start..member(layout.vma_end)).contains(&address);
            let is_its_page =
                || member(layout.vma_pgoff).wrapping_add((address - start) / PAGE_SIZE) == pgoff;
            let is_it = inside && (named.is_some() || is_its_page());
            if is_it && (vma == object || member(layout.vma_mm) == object) {
                return Ok(Some(flags));
            }
        }
    }
    Ok(None)
}
