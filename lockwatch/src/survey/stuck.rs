//! Why a task does not go on.

use crate::{
    kernel::{
        arch::is_kernel_address,
        sleep_frames::{LOCK_SLOW_PATHS, classify},
    },
    survey::{
        functions::Functions,
        look::{Look, TaskLook},
    },
    task::{Nanos, Stuck, StuckClass, TaskState},
};

/// Class, deciding function and time off the CPU.
pub(super) fn of_task(
    functions: &mut Functions<'_>,
    look: &Look,
    task: &TaskLook,
    since: Option<Nanos>,
) -> Stuck {
    let stems = functions.stems(task);
    let innermost = stems
        .first()
        .filter(|stem| !stem.is_empty())
        .map(|&stem| stem.to_owned());
    let (class, frame) = match task.state {
        TaskState::Running => (StuckClass::Running, None),
        TaskState::Runnable => (StuckClass::Runnable, innermost),
        TaskState::Dead => (StuckClass::Exit, innermost),
        _ => match lock_slow_path(functions, look, task) {
            Some((slow_path, _)) => (StuckClass::Lock, Some(slow_path.to_owned())),
            None => match classify(&stems) {
                Some((class, function)) => (class, Some(function.to_owned())),
                None => (StuckClass::Unknown, innermost),
            },
        },
    };
    Stuck {
        class,
        frame,
        since,
    }
}

/// The lock slow path that a task off the CPU is in, and the return address into it.
///
/// The unwinder leaves scheduler and lock functions out, so the words between the
/// stack pointer and the first frame are asked, from the frame inwards: the first
/// function met is the one that frame called.
pub(super) fn lock_slow_path<'k>(
    functions: &mut Functions<'k>,
    look: &Look,
    task: &TaskLook,
) -> Option<(&'k str, u64)> {
    if task.frames.is_empty() || task.record.on_cpu != 0 {
        return None;
    }
    for &word in look.scheduler_words(task).iter().rev() {
        if !is_kernel_address(word) {
            continue;
        }
        let stem = functions.stem(word);
        if LOCK_SLOW_PATHS.contains(&stem) {
            return Some((stem, word));
        }
        if stem.starts_with("schedule") || stem.starts_with("io_schedule") {
            return None;
        }
    }
    None
}
