//! Tasks that are queued on a lock for read although they have it for read already: behind a
//! queued writer they wait for themselves.
//!
//! A queue says of its members that they do not have the lock, so this is believed only where
//! what has it is told apart from what asks for it. The frame that asks proves nothing, nor
//! does the one that called it, for the asking may be wrapped. Pointers within the asking
//! prove nothing, for the asking needs them. And a writer is never believed to be a reader:
//! functions that turn a read hold into a write hold release it first
//! (`wrap_directory_iterator`, fs/readdir.c).

use crate::{
    kernel::memory::MemoryError,
    lock::{Evidence, EvidenceKind, LockClass, LockKind, LockMode},
    survey::{
        asking::Asking,
        holders::{Hits, Scene, askers, frame_end, hold_frame, learned_frame, reason},
        holds::TracedHold,
        link,
        look::Look,
        names::Identity,
        queue::{Entry, Queue},
    },
};

/// What the stack of a queued task says of an earlier hold of the same lock.
///
/// # Errors
/// When kernel memory cannot be read at all.
pub(super) fn held_before(
    scene: &mut Scene<'_, '_>,
    queue: &Queue,
    entry: &Entry,
    lock: &Identity,
    own_mm: bool,
) -> Result<Option<Evidence>, MemoryError> {
    let look = scene.look;
    let task = &look.tasks[entry.task];
    if entry.mode != LockMode::Read || queue.kind != LockKind::Rwsem || !can_be_told(&lock.class) {
        return Ok(None);
    }
    let Some(asking) = Asking::of(scene.functions, look, task) else {
        return Ok(None);
    };
    let outside = askers(scene.functions, look, task);
    // Its slow path does not show, so nothing tells which frame asks.
    if outside <= asking.own_frames || outside >= task.frames.len() {
        return Ok(None);
    }
    let words = look.words(task);
    let stems = scene.functions.stems(task);
    let hits =
        Hits::find(words, queue.lock.0, lock.object_address).outside(frame_end(task, outside - 1));
    if let Some(found) = hold_frame(task, &stems, outside + 1, lock, own_mm, &hits) {
        let is_linked = own_mm && found.known.own_mm
            || !link::points_at_another(
                lock,
                &words[..found.end],
                look,
                scene.layout,
                scene.memory,
            )?;
        let evidence = reason(EvidenceKind::HoldFrame, Some(found.known.function), None);
        return Ok(is_linked.then_some(evidence));
    }
    // Many functions drop mmap_lock and take it again for their callers, who then seem to
    // hold it: `__get_user_pages_locked`, `fixup_user_fault`, `madvise_willneed` (mm/).
    if lock.class == LockClass::MmapLock {
        return Ok(None);
    }
    let learned = learned_frame(scene, task, &stems, outside + 1, lock, &hits)?;
    Ok(learned.filter(|evidence| evidence.kind == EvidenceKind::LearnedFrame))
}

/// Whether another object of the class would be told by a pointer to it.
fn can_be_told(class: &LockClass) -> bool {
    matches!(
        class,
        LockClass::MmapLock
            | LockClass::InodeRwsem
            | LockClass::InvalidateLock
            | LockClass::SuperUmount
    )
}

/// Whether a task that is queued on this lock was seen taking it for read before that: not
/// since, which would mean that its wait is over.
pub(super) fn was_traced(look: &Look, entry: &Entry, hold: &TracedHold) -> bool {
    let task = &look.tasks[entry.task];
    task.name.key == hold.task
        && hold.is_sure
        && (entry.mode, hold.mode) == (LockMode::Read, LockMode::Read)
        && hold.since_ns < task.record.taken_at_ns
}
