//! Holders of an `mmap_lock` that show the memory area they look at, not its address space.

use crate::{
    kernel::{
        hold_frames,
        memory::{MemoryError, word},
    },
    lock::{Evidence, EvidenceKind, LockClass},
    survey::{
        holders::{Scene, reason},
        look::TaskLook,
        names::Identity,
        stack::frame_words,
    },
};

/// What a function that holds the lock of an area says of this lock: its own frame, from
/// number `from` outwards, has to point at an area of the lock's address space.
///
/// # Errors
/// When kernel memory cannot be read at all.
pub(super) fn area_frame(
    scene: &mut Scene<'_, '_>,
    task: &TaskLook,
    stems: &[&str],
    from: usize,
    lock: &Identity,
) -> Result<Option<Evidence>, MemoryError> {
    let (LockClass::MmapLock, Some(mm)) = (&lock.class, lock.object_address) else {
        return Ok(None);
    };
    let layout = scene.layout.fault;
    for index in from.max(1)..stems.len() {
        let is_it = |known: &&hold_frames::HoldFrame| {
            known.function == stems[index] && known.holds_in(stems[index - 1])
        };
        let Some(known) = hold_frames::of_areas().iter().find(is_it) else {
            continue;
        };
        let (_, words) = frame_words(&task.frames, index, scene.look.words(task));
        let pointers = scene.look.pointers(words);
        let reads: Vec<(u64, usize)> = pointers.iter().map(|&at| (at, layout.vma_size)).collect();
        for bytes in scene.memory.read_batch(&reads)?.into_iter().flatten() {
            let member = |offset: usize| word(&bytes, offset);
            let is_area = member(layout.vma_start) < member(layout.vma_end);
            if is_area && member(layout.vma_mm) == mm {
                let function = Some(known.function);
                return Ok(Some(reason(EvidenceKind::HoldFrame, function, None)));
            }
        }
    }
    Ok(None)
}
