//! Who has a lock: every reason to name a task, from one look.

mod fault;
mod hits;

use rustc_hash::{FxHashMap, FxHashSet};

pub(super) use self::{
    fault::fault,
    hits::{Hits, frame_end, hold_frame},
};
use crate::{
    kernel::{
        fault::FAULT_FRAMES,
        hold_frames,
        layout::Layout,
        learned::{Lesson, lesson},
        locks::{OwnerIs, RT_RWSEM_ASKS, RWSEM_SLOW_PATHS},
        memory::{KernelMemory, MemoryError},
    },
    lock::{Evidence, EvidenceKind, LockClass, LockMode, LockState},
    survey::{
        areas,
        asking::Asking,
        confidence::{Strength, strength},
        functions::Functions,
        holds::TracedHold,
        link,
        look::{Look, TaskLook},
        names::Identity,
        queue::{Entry, Queue},
        recursion, writers,
    },
};

/// A task with the reasons for naming it.
#[derive(Clone, Debug)]
pub(super) struct Suspect {
    /// Index into [`Look::tasks`].
    pub(super) task: usize,
    /// How it would hold the lock.
    pub(super) mode: LockMode,
    /// The reasons, at least one.
    pub(super) evidence: Vec<Evidence>,
    /// `CLOCK_MONOTONIC` ns at which it was seen to take the lock, the earliest if it did
    /// so more than once.
    pub(super) since_ns: Option<u64>,
    /// How many of the lock's readers it is: more than one if it was seen to take the lock
    /// more than once.
    pub(super) holds: u32,
}

impl Suspect {
    /// The strength of its best reason.
    pub(super) fn strongest(&self) -> Strength {
        self.evidence
            .iter()
            .map(|evidence| strength(evidence.kind))
            .max()
            .unwrap_or(Strength::Hint)
    }
}

/// Everything the search needs to know about the kernel and the moment.
pub(super) struct Scene<'a, 'k> {
    /// The look.
    pub(super) look: &'a Look,
    /// The kernel's layouts.
    pub(super) layout: &'a Layout,
    /// Names of functions.
    pub(super) functions: &'a mut Functions<'k>,
    /// Kernel memory.
    pub(super) memory: &'a mut dyn KernelMemory,
    /// Our own process, never a suspect.
    pub(super) own_tgid: u32,
}

/// Every task that there is a reason to name as holder of this lock.
///
/// # Errors
/// When kernel memory cannot be read at all.
pub(super) fn suspects(
    scene: &mut Scene<'_, '_>,
    queue: &Queue,
    lock: &Identity,
    holds: &[TracedHold],
) -> Result<Vec<Suspect>, MemoryError> {
    let mut suspects: Vec<Suspect> = match queue.word.state {
        LockState::WriteHeld => writer(scene.look, queue).into_iter().collect(),
        LockState::ReadHeld => readers(scene, queue, lock)?,
        LockState::Free | LockState::Inconsistent => Vec::new(),
    };
    add_traced(scene.look, &mut suspects, holds);
    Ok(suspects)
}

/// What was seen being taken. Whoever exits releases first: an unknown task is none.
fn add_traced(look: &Look, suspects: &mut Vec<Suspect>, holds: &[TracedHold]) {
    if holds.is_empty() {
        return;
    }
    let tasks = look.by_key();
    // Where each of them is among the suspects.
    let mut places: FxHashMap<usize, usize> = FxHashMap::default();
    for (place, suspect) in suspects.iter().enumerate() {
        places.entry(suspect.task).or_insert(place);
    }
    for hold in holds {
        let Some(&task) = tasks.get(&hold.task) else {
            continue;
        };
        let kind = if hold.is_sure {
            EvidenceKind::TracedAcquire
        } else {
            EvidenceKind::TracedInPart
        };
        let traced = reason(kind, None, None);
        let since_ns = hold.is_sure.then_some(hold.since_ns);
        let Some(&place) = places.get(&task) else {
            places.insert(task, suspects.len());
            suspects.push(Suspect {
                task,
                mode: hold.mode,
                evidence: vec![traced],
                since_ns,
                holds: 1,
            });
            continue;
        };
        let known = &mut suspects[place];
        match (known.since_ns, since_ns) {
            (Some(earlier_ns), Some(since_ns)) => {
                known.since_ns = Some(earlier_ns.min(since_ns));
                known.holds = known.holds.saturating_add(1);
            }
            (_, None) => known.evidence.push(traced),
            (None, Some(_)) => {
                known.since_ns = since_ns;
                known
                    .evidence
                    .retain(|evidence| strength(evidence.kind) > Strength::Hint);
                known.evidence.push(traced);
            }
        }
    }
}

fn writer(look: &Look, queue: &Queue) -> Option<Suspect> {
    let kind = match queue.word.owner_is {
        OwnerIs::Holder => EvidenceKind::WriterOwner,
        OwnerIs::Next => EvidenceKind::Granted,
        OwnerIs::Last => EvidenceKind::LastHolder,
        // A writer sets the count first: until it sets the owner, a reader's is there.
        OwnerIs::Reader => return None,
    };
    let task = look.task_at(queue.word.owner_task)?;
    let value = (kind != EvidenceKind::Granted).then(|| format!("owner {:#x}", queue.word.owner));
    Some(Suspect {
        task,
        mode: LockMode::Write,
        evidence: vec![reason(kind, None, value)],
        since_ns: None,
        holds: 1,
    })
}

fn readers(
    scene: &mut Scene<'_, '_>,
    queue: &Queue,
    lock: &Identity,
) -> Result<Vec<Suspect>, MemoryError> {
    let look = scene.look;
    let granted: FxHashSet<usize> = queue.granted.iter().map(|entry| entry.task).collect();
    let mut queued: FxHashMap<usize, &Entry> = FxHashMap::default();
    for entry in &queue.entries {
        queued.entry(entry.task).or_insert(entry);
    }
    let mut suspects = Vec::new();
    for (index, task) in look.tasks.iter().enumerate() {
        if task.record.tgid == scene.own_tgid {
            continue;
        }
        let mut evidence = Vec::new();
        if granted.contains(&index) {
            evidence.push(reason(EvidenceKind::Granted, None, None));
        }
        if scene.layout.readers_clear_owner
            && queue.word.owner_is == OwnerIs::Reader
            && queue.word.owner_task == task.record.task
        {
            evidence.push(reason(
                EvidenceKind::ReaderOwner,
                None,
                Some(format!("owner {:#x}", queue.word.owner)),
            ));
        }
        let waits_here = queued.get(&index).copied();
        evidence.extend(on_stack(scene, queue, lock, index, waits_here)?);
        // A pointer on the stack of a task that is known to hold the lock adds nothing.
        if evidence
            .iter()
            .any(|evidence| strength(evidence.kind) > Strength::Hint)
        {
            evidence.retain(|evidence| strength(evidence.kind) > Strength::Hint);
        }
        if !evidence.is_empty() {
            suspects.push(Suspect {
                task: index,
                mode: LockMode::Read,
                evidence,
                since_ns: None,
                holds: 1,
            });
        }
    }
    Ok(suspects)
}

pub(super) fn reason(kind: EvidenceKind, frame: Option<&str>, value: Option<String>) -> Evidence {
    Evidence {
        kind,
        frame: frame.map(ToOwned::to_owned),
        value,
    }
}

/// What the stack of a task says about holding the lock for read. What waits for this very
/// lock (`waits_here`) asks for it in some of its frames: those say nothing.
fn on_stack(
    scene: &mut Scene<'_, '_>,
    queue: &Queue,
    lock: &Identity,
    index: usize,
    waits_here: Option<&Entry>,
) -> Result<Vec<Evidence>, MemoryError> {
    let look = scene.look;
    let task = &look.tasks[index];
    if lock.class == LockClass::SuperWriters {
        return if waits_here.is_some() {
            Ok(Vec::new())
        } else {
            writers::on_stack(scene, queue.lock, lock, task)
        };
    }
    let words = look.words(task);
    let hits = Hits::find(words, queue.lock.0, lock.object_address);
    let own_mm = lock.class == LockClass::MmapLock && Some(task.record.mm) == lock.object_address;
    if hits.is_empty() && !own_mm {
        return Ok(Vec::new());
    }
    let stems = scene.functions.stems(task);
    if matches!(lock.class, LockClass::MmapLock | LockClass::VmaLock)
        && let Some(verdict) = fault(scene, lock, task, &stems)?
    {
        // The fault decides alone: what called it for another process's memory knows
        // whether the fault has dropped the lock.
        return Ok(verdict);
    }
    if let Some(entry) = waits_here {
        let held = recursion::held_before(scene, queue, entry, lock, own_mm)?;
        return Ok(held.into_iter().collect());
    }
    // Asleep in a slow path, the innermost frame is the one that asks for a lock.
    let askers = askers(scene.functions, look, task);
    if let Some(found) = hold_frame(task, &stems, askers, lock, own_mm, &hits) {
        let linked = own_mm && found.known.own_mm
            || !link::points_at_another(
                lock,
                &words[..found.end],
                look,
                scene.layout,
                scene.memory,
            )?;
        return Ok(vec![if linked {
            reason(EvidenceKind::HoldFrame, Some(found.known.function), None)
        } else {
            reason(EvidenceKind::ObjectWord, Some(found.known.function), None)
        }]);
    }
    if let Some(found) = areas::area_frame(scene, task, &stems, askers, lock)? {
        return Ok(vec![found]);
    }
    if let Some(found) = learned_frame(scene, task, &stems, askers, lock, &hits)? {
        return Ok(vec![found]);
    }
    let idle = stems
        .first()
        .is_some_and(|function| hold_frames::holds_nothing(function));
    if idle || only_carries(scene, task, &stems, lock, &hits) {
        return Ok(Vec::new());
    }
    Ok(hits.as_evidence(scene.functions, task))
}

/// As [`hold_frame`], by what was learned on real kernels. No address space is taken for
/// the task's own here: it has to be shown. And nothing is believed of a function that is in
/// a page fault: where a fault could not be asked ([`fault`]), it may have dropped the lock.
pub(super) fn learned_frame(
    scene: &mut Scene<'_, '_>,
    task: &TaskLook,
    stems: &[&str],
    from: usize,
    lock: &Identity,
    hits: &Hits,
) -> Result<Option<Evidence>, MemoryError> {
    for index in from..stems.len() {
        let end = frame_end(task, index);
        let in_fault = FAULT_FRAMES
            .iter()
            .any(|fault| stems[..index].contains(fault));
        if in_fault && lock.class == LockClass::MmapLock {
            return Ok(None);
        }
        if !hits.any_before(end) || stems[..index].contains(&stems[index]) {
            continue;
        }
        let Some(Lesson::Holds(kernels)) = learned(scene, task, stems, lock, index) else {
            continue;
        };
        let words = &scene.look.words(task)[..end];
        let frame = Some(stems[index]);
        // Another one's lock, or this one's.
        if link::points_at_another(lock, words, scene.look, scene.layout, scene.memory)? {
            return Ok(Some(reason(EvidenceKind::ObjectWord, frame, None)));
        }
        let names: Vec<&str> = kernels.names().collect();
        let learned_on = Some(names.join(", "));
        return Ok(Some(reason(EvidenceKind::LearnedFrame, frame, learned_on)));
    }
    Ok(None)
}

/// Whether every frame from the innermost that has a hit outwards is known to carry such
/// pointers without holding. One that is not known may hold.
fn only_carries(
    scene: &Scene<'_, '_>,
    task: &TaskLook,
    stems: &[&str],
    lock: &Identity,
    hits: &Hits,
) -> bool {
    let mut inside = (0..stems.len()).filter(|&index| hits.any_before(frame_end(task, index)));
    let carries = |index| learned(scene, task, stems, lock, index) == Some(Lesson::Carries);
    inside.clone().next().is_some() && inside.all(carries)
}

fn learned(
    scene: &Scene<'_, '_>,
    task: &TaskLook,
    stems: &[&str],
    lock: &Identity,
    index: usize,
) -> Option<Lesson> {
    let place = scene.functions.place(task.frames[index].return_address)?;
    let callee = index.checked_sub(1).map_or("", |callee| stems[callee]);
    lesson(&lock.class, &place, callee)
}

/// How many of a task's first frames say nothing of what it holds: the lock's own functions,
/// and the one that asks for an rwsem, which may be the very lock.
pub(super) fn askers(functions: &mut Functions<'_>, look: &Look, task: &TaskLook) -> usize {
    let Some(asking) = Asking::of(functions, look, task) else {
        return 0;
    };
    let is_rwsem = |stem: &&str| RWSEM_SLOW_PATHS.contains(stem) || RT_RWSEM_ASKS.contains(stem);
    let asks = asking.functions(functions).any(|(stem, _)| is_rwsem(&stem));
    asking.own_frames + usize::from(asks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{lock::LockAddr, survey::image::Image};

    fn suspect(is_sure: bool) -> Suspect {
        let mut image = Image::default();
        image.task(1);
        let look = image.look(1);
        let hold = TracedHold {
            lock: LockAddr(0xffff_8882_0000_0040),
            task: look.tasks[0].name.key,
            mode: LockMode::Read,
            since_ns: 7,
            is_sure,
        };
        let mut suspects = Vec::new();
        add_traced(&look, &mut suspects, &[hold]);
        suspects.remove(0)
    }

    #[test]
    fn a_hold_whose_release_may_have_been_missed_is_a_hint_without_a_time() {
        let sure = suspect(true);
        assert_eq!((sure.strongest(), sure.since_ns), (Strength::Word, Some(7)));
        let in_part = suspect(false);
        assert_eq!(
            (in_part.strongest(), in_part.since_ns),
            (Strength::Hint, None)
        );
    }
}
