//! Who has a lock: every reason to name a task, from one look.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    kernel::{
        arch::{PAGE_SIZE, is_kernel_address, is_user_address},
        fault::{FAULT_FRAMES, FaultFlags, FaultHold},
        hold_frames::{self, HoldFrame},
        layout::Layout,
        learned::{Lesson, lesson},
        locks::{OwnerIs, RT_RWSEM_ASKS, RWSEM_SLOW_PATHS},
        memory::{KernelMemory, MemoryError, word},
    },
    lock::{Evidence, EvidenceKind, LockClass, LockMode, LockState},
    survey::{
        asking::Asking,
        confidence::{Strength, strength},
        functions::Functions,
        holds::TracedHold,
        link,
        look::{Look, TaskLook},
        names::Identity,
        queue::{Entry, Queue},
        recursion,
        stack::frame_words,
        writers,
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

/// The words of a stack that point at the lock or at the object that contains it.
pub(super) struct Hits {
    /// Word indexes of the lock's address.
    lock: Vec<usize>,
    /// Word indexes of the object's address.
    object: Vec<usize>,
}

impl Hits {
    pub(super) fn find(words: &[u64], lock: u64, object: Option<u64>) -> Self {
        let mut hits = Self {
            lock: Vec::new(),
            object: Vec::new(),
        };
        for (at, &word) in words.iter().enumerate() {
            if word == lock {
                hits.lock.push(at);
            } else if Some(word) == object {
                hits.object.push(at);
            }
        }
        hits
    }

    /// Those from this word on.
    pub(super) fn outside(mut self, from: usize) -> Self {
        self.lock.retain(|&at| at >= from);
        self.object.retain(|&at| at >= from);
        self
    }

    fn is_empty(&self) -> bool {
        self.lock.is_empty() && self.object.is_empty()
    }

    fn any_before(&self, end: usize) -> bool {
        self.lock.iter().chain(&self.object).any(|&at| at < end)
    }

    fn as_evidence(&self, functions: &mut Functions<'_>, task: &TaskLook) -> Vec<Evidence> {
        let kinds = [
            (EvidenceKind::LockWord, &self.lock),
            (EvidenceKind::ObjectWord, &self.object),
        ];
        kinds
            .into_iter()
            .filter_map(|(kind, at)| {
                let first = *at.first()?;
                let frame = task.frames.iter().rev().find(|frame| frame.at < first);
                let function = frame.map(|frame| functions.stem(frame.return_address));
                Some(reason(kind, function.filter(|stem| !stem.is_empty()), None))
            })
            .collect()
    }
}

/// A known function on the stack, and where its frame ends.
pub(super) struct Found {
    pub(super) known: &'static HoldFrame,
    /// Words from the stack pointer to the end of its frame: what it keeps for the
    /// release lies there, for what it calls saves its registers.
    pub(super) end: usize,
}

/// A function on the stack that holds this class of lock, with the lock or its
/// object in its own frame or deeper.
pub(super) fn hold_frame(
    task: &TaskLook,
    stems: &[&str],
    from: usize,
    lock: &Identity,
    own_mm: bool,
    hits: &Hits,
) -> Option<Found> {
    let table = hold_frames::of_class(&lock.class);
    (from..stems.len()).find_map(|index| {
        let known = table.iter().find(|known| known.function == stems[index])?;
        // Stacked file systems: what the inner one points at is not the outer one's.
        if stems[..index].contains(&stems[index]) {
            return None;
        }
        let callee = index.checked_sub(1).map_or("", |callee| stems[callee]);
        let end = frame_end(task, index);
        let linked = (own_mm && known.own_mm) || hits.any_before(end);
        (known.holds_in(callee) && linked).then_some(Found { known, end })
    })
}

/// Words from the stack pointer to the end of a frame.
pub(super) fn frame_end(task: &TaskLook, index: usize) -> usize {
    // The outermost frame has no known end; what it calls has.
    task.frames
        .get(index + 1)
        .map_or(task.frames[index].at, |outer| outer.at)
}

/// The verdict of a page fault on this address space or VMA, if the task is in one.
/// `Some(empty)` means: it is in one, and holds nothing.
pub(super) fn fault(
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
