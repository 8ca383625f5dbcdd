//! Why a task does not go on.

use crate::{
    kernel::sleep_frames::{classify, classify_hidden},
    survey::{
        asking::Asking,
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
        _ => match slow_path(functions, look, task) {
            Some((slow_path, _)) => (StuckClass::Lock, Some(slow_path.to_owned())),
            None => match classify(&stems).or_else(|| {
                let hidden = hidden_stems(functions, look, task);
                classify_hidden(&hidden, &stems)
            }) {
                Some((class, function)) => (class, Some(function.to_owned())),
                None => (StuckClass::Unknown, innermost),
            },
        },
    };
    Stuck {
        class,
        frame,
        since,
        device: None,
    }
}

/// The functions further in than what the unwinder shows, innermost first. Old ones may be
/// among them.
fn hidden_stems<'k>(functions: &mut Functions<'k>, look: &Look, task: &TaskLook) -> Vec<&'k str> {
    let Some(asking) = Asking::of(functions, look, task) else {
        return Vec::new();
    };
    let mut stems: Vec<_> = asking.functions(functions).map(|(stem, _)| stem).collect();
    stems.reverse();
    stems
}

/// The lock slow path that a task off the CPU is in, and the return address into it.
pub(super) fn slow_path<'k>(
    functions: &mut Functions<'k>,
    look: &Look,
    task: &TaskLook,
) -> Option<(&'k str, u64)> {
    Asking::slow_path_of(functions, look, task)
}
