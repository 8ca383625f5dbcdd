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
        areas,
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
    if let Some(found) = areas::area_frame(scene, task, &stems, outside + 1, lock)? {
        return Ok(Some(found));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kernel::symbols::Symbols,
        lock::{LockAddr, LockObject},
        survey::{
            functions::Functions,
            holders::suspects,
            image::{
                ENTRY_OFFSET, Image, RWSEM, SLOW_PATH, STUCK, Sleeper, entry_address, layout, row,
                task_address,
            },
            queue,
        },
    };

    const INODE: u64 = 0xffff_8882_0000_0000;
    const OTHER: u64 = 0xffff_8882_0001_0000;
    const LOCK: u64 = INODE + 0x40;
    const READ: u64 = 1;
    const WRITE: u64 = 0;

    /// Functions, 0x1000 bytes each; the slow path is the one of the image.
    const NAMES: [(&str, u64); 8] = [
        ("rwsem_down_read_slowpath", 0xffff_ffff_8100_0200),
        ("iterate_dir", 0xffff_ffff_8101_0000),
        ("lookup_slow", 0xffff_ffff_8102_0000),
        ("__lookup_slow", 0xffff_ffff_8103_0000),
        ("some_readdir", 0xffff_ffff_8104_0000),
        ("some_lookup", 0xffff_ffff_8105_0000),
        ("wrapped_lock", 0xffff_ffff_8106_0000),
        ("behind", 0xffff_ffff_8107_0000),
    ];

    fn into(name: &str) -> u64 {
        let (_, start) = NAMES.iter().find(|(known, _)| *known == name).unwrap();
        start + 0x50
    }

    fn symbols() -> Symbols {
        let lines = NAMES.map(|(name, start)| format!("{start:016x} t {name}\n"));
        Symbols::parse(lines.concat()).unwrap()
    }

    /// What is said of task 2, which is queued behind the writer 1 and sleeps in these
    /// functions, innermost first, with these words in their frames.
    fn evidence(kind: u64, frames: &[(&str, &[u64])]) -> Vec<EvidenceKind> {
        let mut image = Image::default();
        for inode in [INODE, OTHER] {
            image.set(inode + 16, inode + 0x80);
        }
        let frames = frames
            .iter()
            .map(|&(name, words)| (into(name), words.to_vec()))
            .collect();
        let sleeper = Sleeper {
            state: STUCK,
            files: 0,
            switches: 0,
            frames,
        };
        // The slow path's own frame, with the queue's entry in it.
        let mut asking = vec![0; ENTRY_OFFSET];
        asking.push(SLOW_PATH);
        asking.extend([0; 3]);
        let links = asking.len();
        asking.extend([0; 6]);
        asking.push(LOCK);
        let sp = image.sleep(2, &asking, sleeper);
        let entry = sp + 8 * links as u64;
        let head = LOCK + 24;
        image.entry(1, WRITE, entry, head);
        let words = [head, entry_address(1), task_address(2), kind, 0];
        image.set_all(entry, &words);
        image.lock(LOCK, 0x102, 3, entry_address(1), entry);
        let look = image.look(2);
        let queues = queue::find(&look, &[row(RWSEM)], &mut image).unwrap();
        let queue = &queues.queues[0];
        assert_eq!(queue.entries.len(), 2);
        let identity = Identity {
            class: LockClass::InodeRwsem,
            object: None::<LockObject>,
            object_address: Some(INODE),
            name: String::new(),
            note: None,
        };
        let symbols = symbols();
        let mut functions = Functions::new(&symbols);
        let layout = layout();
        let mut scene = Scene {
            look: &look,
            layout: &layout,
            functions: &mut functions,
            memory: &mut image,
            own_tgid: 0,
        };
        assert_eq!(queue.lock, LockAddr(LOCK));
        let found = suspects(&mut scene, queue, &identity, &[]).unwrap();
        found
            .iter()
            .filter(|suspect| look.tasks[suspect.task].name.key.tid.0 == 2)
            .flat_map(|suspect| suspect.evidence.iter().map(|evidence| evidence.kind))
            .collect()
    }

    /// It lists the directory, and then looks up a name in it.
    const RECURSION: [(&str, &[u64]); 4] = [
        ("lookup_slow", &[INODE]),
        ("some_readdir", &[0, 0]),
        ("iterate_dir", &[INODE, 0]),
        ("behind", &[0]),
    ];

    #[test]
    fn a_reader_that_asks_again_further_in_is_a_holder() {
        assert_eq!(evidence(READ, &RECURSION), [EvidenceKind::HoldFrame]);
    }

    #[test]
    fn the_asking_itself_is_no_hold() {
        let asks = [("iterate_dir", &[INODE, 0][..]), ("behind", &[0])];
        assert_eq!(evidence(READ, &asks), []);
        let wrapped = [
            ("wrapped_lock", &[INODE][..]),
            ("iterate_dir", &[INODE, 0]),
            ("behind", &[0]),
        ];
        assert_eq!(evidence(READ, &wrapped), []);
    }

    #[test]
    fn what_asks_to_write_has_released_what_it_read() {
        assert_eq!(evidence(WRITE, &RECURSION), []);
    }

    #[test]
    fn the_outer_one_of_two_directories_is_another() {
        // A stacked file system: only the asking knows the inner directory.
        let inner = [
            ("lookup_slow", &[INODE][..]),
            ("some_lookup", &[0]),
            ("__lookup_slow", &[OTHER, 0]),
            ("behind", &[0]),
        ];
        assert_eq!(evidence(READ, &inner), []);
        // It is passed on further out, too.
        let passed = [
            ("lookup_slow", &[INODE][..]),
            ("some_lookup", &[INODE]),
            ("__lookup_slow", &[OTHER, 0]),
            ("behind", &[0]),
        ];
        assert_eq!(evidence(READ, &passed), []);
    }
}
