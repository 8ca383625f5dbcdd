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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kernel::symbols::Symbols,
        survey::{
            functions::Functions,
            image::{Image, STUCK, Sleeper, layout},
        },
    };

    const MM: u64 = 0xffff_8882_0000_0000;
    const AREA: u64 = 0xffff_8882_0001_0000;
    const PROGRAM: u64 = 0xffff_ffff_8101_0050;
    const OTHER: u64 = 0xffff_ffff_8102_0050;
    const SHOW: u64 = 0xffff_ffff_8103_0050;
    const READ: u64 = 0xffff_ffff_8104_0050;

    /// What is said of a task asleep in these functions, innermost first, with these words
    /// in their frames, where the area belongs to this address space.
    fn is_holder(mm: u64, frames: &[(u64, &[u64])]) -> bool {
        let symbols = Symbols::parse(
            "ffffffff81010000 t bpf_iter_run_prog\n\
             ffffffff81020000 t something_else\n\
             ffffffff81030000 t task_vma_seq_show\n\
             ffffffff81040000 t bpf_seq_read\n\
             ffffffff81050000 t behind\n"
                .to_owned(),
        )
        .unwrap();
        let mut image = Image::default();
        image.set_all(AREA, &[0x7000, 0x8000, mm]);
        let frames = frames.iter().map(|&(at, words)| (at, words.to_vec()));
        let sleeper = Sleeper {
            state: STUCK,
            files: 0,
            switches: 0,
            frames: frames.collect(),
        };
        image.sleep(1, &[0; 4], sleeper);
        let look = image.look(1);
        let (mut functions, layout) = (Functions::new(&symbols), layout());
        let task = &look.tasks[0];
        let stems = functions.stems(task);
        let mut scene = Scene {
            look: &look,
            layout: &layout,
            functions: &mut functions,
            memory: &mut image,
            own_tgid: 0,
        };
        let lock = Identity {
            class: LockClass::MmapLock,
            object: None,
            object_address: Some(MM),
            name: String::new(),
            note: None,
        };
        let found = area_frame(&mut scene, task, &stems, 0, &lock).unwrap();
        found.is_some()
    }

    #[test]
    fn an_area_in_the_frame_of_a_function_that_holds_its_lock_tells() {
        let frames = [(PROGRAM, &[0][..]), (SHOW, &[0, AREA]), (READ, &[0])];
        assert!(is_holder(MM, &frames));
    }

    #[test]
    fn the_area_must_be_of_this_address_space_in_that_frame_and_the_lock_held_there() {
        let frames = [(PROGRAM, &[0][..]), (SHOW, &[0, AREA]), (READ, &[0])];
        assert!(!is_holder(MM + 0x1000, &frames));
        let elsewhere = [(PROGRAM, &[AREA][..]), (SHOW, &[0, 0]), (READ, &[AREA])];
        assert!(!is_holder(MM, &elsewhere));
        let before = [(OTHER, &[0][..]), (SHOW, &[0, AREA]), (READ, &[0])];
        assert!(!is_holder(MM, &before));
    }
}
