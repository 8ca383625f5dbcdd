//! The part of a stack on which a task asks for a lock.
//!
//! The unwinder leaves out scheduler and lock functions as far as they lie in
//! `.sched.text`; some of a lock's own functions do not, and come first among the frames.

use crate::{
    kernel::arch::is_image_address,
    survey::{
        functions::Functions,
        look::{Look, TaskLook},
    },
};

/// What a task at rest has on its stack further in than the caller of a lock function.
pub(super) struct Asking<'a> {
    /// The words from the stack pointer to the caller's frame.
    pub(super) words: &'a [u64],
    /// How many of the first frames are a lock's own functions.
    pub(super) own_frames: usize,
}

/// How far the asking goes on a stack.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    words: usize,
    own_frames: usize,
}

impl<'a> Asking<'a> {
    /// `None` for a task on a CPU, or whose frames are not known.
    pub(super) fn of(
        functions: &mut Functions<'_>,
        look: &'a Look,
        task: &TaskLook,
    ) -> Option<Self> {
        if task.frames.is_empty() || task.record.on_cpu != 0 {
            return None;
        }
        let words = look.words(task);
        let extent = *task.asking.get_or_init(|| {
            let mut frames = task.frames.iter();
            let caller = frames.position(|frame| !functions.is_lock_function(frame.return_address));
            Extent {
                words: caller.map_or(words.len(), |caller| task.frames[caller].at),
                own_frames: caller.unwrap_or(task.frames.len()),
            }
        });
        Some(Self {
            words: &words[..extent.words.min(words.len())],
            own_frames: extent.own_frames,
        })
    }

    /// The return addresses among the words with the stems of their functions, from the
    /// caller inwards; old ones may be among them.
    pub(super) fn functions<'k>(
        &self,
        functions: &mut Functions<'k>,
    ) -> impl Iterator<Item = (&'k str, u64)> {
        self.words
            .iter()
            .rev()
            .filter(|&&word| is_image_address(word))
            .map(|&word| (functions.stem(word), word))
            .filter(|(stem, _)| !stem.is_empty())
    }

    /// The slow path that the caller called, and the return address into it; `None` if the
    /// task does not wait for a lock. Looked for once in each task of a look.
    pub(super) fn slow_path_of<'k>(
        functions: &mut Functions<'k>,
        look: &'a Look,
        task: &TaskLook,
    ) -> Option<(&'k str, u64)> {
        let address = *task
            .slow_path
            .get_or_init(|| Self::of(functions, look, task)?.slow_path(functions));
        let address = address?;
        Some((functions.stem(address), address))
    }

    fn slow_path(&self, functions: &mut Functions<'_>) -> Option<u64> {
        for &word in self.words.iter().rev() {
            if !is_image_address(word) {
                continue;
            }
            let stem = functions.stem(word);
            if stem.starts_with("schedule") || stem.starts_with("io_schedule") {
                return None;
            }
            if functions.is_slow_path(word) {
                return Some(word);
            }
        }
        None
    }
}
