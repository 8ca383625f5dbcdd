//! What the stacks of tasks at rest would say of holds if every function were believed:
//! what a table of hold frames is learned from and tried with.
//!
//! It asks exactly what the survey asks (`survey::holders`), of every frame instead of
//! those in the table, and of every lock that a stack points at instead of those that
//! tasks wait for; and it knows the answer, from a tracer and from the lock's own word.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    kernel::{
        locks::{LockWord, OwnerIs},
        memory::KernelMemory,
    },
    lock::{LockAddr, LockClass, LockMode, LockState},
    survey::{
        SurveyError, Surveyor, TracedHold,
        functions::Functions,
        holders::{self, Scene},
        link,
        look::{Look, TaskLook},
        names::Identity,
        queue::{self, Queue},
    },
    task::TaskKey,
};

/// A task that did not run from before the holds were read until after.
#[derive(Clone, Debug)]
pub struct Resting {
    /// Who.
    pub task: TaskKey,
    /// How often it has left a CPU: with the task it tells one sleep from the next.
    pub switches: u64,
    /// Its return addresses, innermost first, as far as they have a place on the stack.
    pub frames: Vec<u64>,
    /// What it was seen taking, as far as the locks' words agree, with the class of the lock
    /// where that is known.
    pub holds: Vec<(TracedHold, Option<LockClass>)>,
    /// What its stack says.
    pub claims: Vec<Claim>,
    /// Where its frames end, and where it points at which locks, in words of its stack.
    ends: Vec<usize>,
    pointers: Vec<(usize, LockAddr)>,
}

impl Resting {
    /// Whether the object of a lock, or the lock, is pointed at from a frame or further in.
    pub fn points_at(&self, lock: LockAddr, frame: usize) -> bool {
        let end = self.ends.get(frame).copied().unwrap_or(0);
        (self.pointers.iter()).any(|&(at, pointed)| at < end && pointed == lock)
    }
}

/// A lock that a stack points at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The lock.
    pub lock: LockAddr,
    /// What kind of lock.
    pub class: LockClass,
    /// Which frames would accuse the task of it, by index: under them, and not under
    /// others of the same function further in, lies a pointer to this object and to none
    /// of its kind besides. None where the survey does not ask the frames: a page fault
    /// decides, or the task waits for the lock.
    pub frames: Vec<usize>,
    /// Whether it holds the lock for read; `None` where that is not known.
    pub is_held: Option<bool>,
}

/// The classes whose objects a pointer tells.
const CLASSES: [LockClass; 4] = [
    LockClass::MmapLock,
    LockClass::InodeRwsem,
    LockClass::InvalidateLock,
    LockClass::SuperUmount,
];

impl Surveyor {
    /// Studies the tasks that are at rest for a moment and that `wanted` takes by their
    /// key and switches. `between` is called in that moment.
    ///
    /// # Errors
    /// When the kernel stops answering, or the tracer does.
    pub fn study(
        &mut self,
        wanted: impl Fn(TaskKey, u64) -> bool,
        between: impl FnOnce(),
    ) -> Result<Vec<Resting>, SurveyError> {
        let first = self.look_at_tasks(Vec::new(), None)?;
        let before = self.traced()?;
        between();
        let studied = self.said(&first, wanted)?;
        let locks = studied
            .iter()
            .flat_map(|(_, said)| said.claims.iter().map(|claim| claim.lock))
            .chain(before.iter().map(|hold| hold.lock));
        let words = self.words(locks.collect())?;
        let after = self.traced()?;
        let last = self.look_at_tasks(Vec::new(), None)?;
        let stood = stood_still(&first, &last);
        // Held all the time.
        let holds: Vec<TracedHold> = before
            .iter()
            .filter(|hold| after.contains(hold))
            .copied()
            .collect();
        let ever: Vec<TracedHold> = before.iter().chain(&after).copied().collect();
        let mut resting = Vec::new();
        for (index, mut said) in studied {
            let task = &first.tasks[index];
            let key = task.name.key;
            if !stood.contains(&key) {
                continue;
            }
            for claim in &mut said.claims {
                let word = words.get(&claim.lock);
                claim.is_held =
                    word.and_then(|word| is_held(claim.lock, task, word, &holds, &ever));
            }
            let mut own = Vec::new();
            for hold in holds.iter().filter(|hold| hold.task == key) {
                let agrees = |word: &LockWord| counts(word, readers_of(hold.lock, &holds));
                if words.get(&hold.lock).is_some_and(agrees) {
                    own.push((*hold, self.class_of(hold.lock, &first)?));
                }
            }
            resting.push(Resting {
                task: key,
                switches: switches(task),
                frames: task
                    .frames
                    .iter()
                    .map(|frame| frame.return_address)
                    .collect(),
                holds: own,
                claims: said.claims,
                ends: (0..task.frames.len())
                    .map(|frame| holders::frame_end(task, frame))
                    .collect(),
                pointers: said.pointers,
            });
        }
        Ok(resting)
    }

    /// What the stacks of the tasks at rest say that are wanted, each with the task's index.
    fn said(
        &mut self,
        first: &Look,
        wanted: impl Fn(TaskKey, u64) -> bool,
    ) -> Result<Vec<(usize, Said)>, SurveyError> {
        let mut functions = Functions::new(&self.kernel.symbols);
        let mut found = queue::find(first, &self.kernel.rows, &mut self.probes)?.queues;
        let pi = queue::find_pi(
            first,
            &self.kernel.layout.locks,
            &mut functions,
            &mut self.probes,
        )?;
        found.extend(pi.queues);
        let mut studied = Vec::new();
        for (index, task) in first.tasks.iter().enumerate() {
            let switches = switches(task);
            let is_own = task.record.tgid == std::process::id();
            if is_own || !is_at_rest(task) || !wanted(task.name.key, switches) {
                continue;
            }
            let mut scene = Scene {
                look: first,
                layout: &self.kernel.layout,
                functions: &mut functions,
                memory: &mut self.probes,
                own_tgid: std::process::id(),
            };
            studied.push((index, Said::by(&mut scene, &found, index)?));
        }
        Ok(studied)
    }

    fn traced(&mut self) -> Result<Vec<TracedHold>, SurveyError> {
        match &mut self.holds {
            Some(source) => source.holds().map_err(SurveyError::Holds),
            None => Ok(Vec::new()),
        }
    }

    /// What the words of locks say now.
    fn words(
        &mut self,
        mut locks: Vec<LockAddr>,
    ) -> Result<FxHashMap<LockAddr, LockWord>, SurveyError> {
        let Some((layout, size)) = self.kernel.layout.locks.rwsem() else {
            return Ok(FxHashMap::default());
        };
        locks.sort_unstable();
        locks.dedup();
        let reads: Vec<(u64, usize)> = locks.iter().map(|lock| (lock.0, size)).collect();
        let read = self.probes.read_batch(&reads)?;
        Ok(locks
            .into_iter()
            .zip(read)
            .filter_map(|(lock, bytes)| Some((lock, layout.decode(&bytes?, true))))
            .collect())
    }

    /// The class of a lock by its address.
    fn class_of(&mut self, lock: LockAddr, look: &Look) -> Result<Option<LockClass>, SurveyError> {
        for class in CLASSES {
            let Some(offset) = link::offset_in_object(&class, &self.kernel.layout) else {
                continue;
            };
            let object = lock.0.wrapping_sub(offset);
            let found = link::pointed_at(
                &class,
                &[object],
                look,
                &self.kernel.layout,
                &mut self.probes,
            )?;
            if found.iter().any(|&(_, address)| address == object) {
                return Ok(Some(class));
            }
        }
        Ok(None)
    }
}

fn switches(task: &TaskLook) -> u64 {
    task.record.nvcsw.wrapping_add(task.record.nivcsw)
}

/// The tasks that were at rest in both looks, and did not run in between.
fn stood_still(first: &Look, last: &Look) -> FxHashSet<TaskKey> {
    let stood = |now: &&TaskLook| {
        let then = first.task_at(now.record.task);
        then.is_some_and(|then| now.stood_still_since(&first.tasks[then]))
    };
    last.tasks
        .iter()
        .filter(|now| is_at_rest(now))
        .filter(stood)
        .map(|now| now.name.key)
        .collect()
}

fn is_at_rest(task: &TaskLook) -> bool {
    task.record.on_cpu == 0 && task.record.moved == 0 && !task.frames.is_empty()
}

/// What a stack says.
struct Said {
    claims: Vec<Claim>,
    pointers: Vec<(usize, LockAddr)>,
}

impl Said {
    /// What the survey would say of a task if each of its frames were known as one that holds.
    fn by(scene: &mut Scene<'_, '_>, queues: &[Queue], index: usize) -> Result<Self, SurveyError> {
        let look = scene.look;
        let task = &look.tasks[index];
        let words = look.words(task);
        let stems = scene.functions.stems(task);
        let askers = holders::askers(scene.functions, look, task);
        let mut claims: Vec<Claim> = Vec::new();
        let mut pointers = Vec::new();
        for class in CLASSES {
            let Some(offset) = link::offset_in_object(&class, scene.layout) else {
                continue;
            };
            let pointed = link::pointed_at(&class, words, look, scene.layout, scene.memory)?;
            let lock = |object: u64| LockAddr(object.wrapping_add(offset));
            pointers.extend(pointed.iter().map(|&(at, object)| (at, lock(object))));
            let mut frames: Vec<(u64, usize)> = Vec::new();
            for frame in askers..task.frames.len() {
                if stems[frame].is_empty() || stems[..frame].contains(&stems[frame]) {
                    continue;
                }
                let end = holders::frame_end(task, frame);
                let mut under = pointed.iter().take_while(|(at, _)| *at < end);
                if let Some(&(_, object)) = under.next()
                    && under.all(|&(_, other)| other == object)
                {
                    frames.push((object, frame));
                }
            }
            let mut objects: Vec<u64> = frames.iter().map(|&(object, _)| object).collect();
            objects.dedup();
            for object in objects {
                let lock = lock(object);
                let is_in_queue = |queue: &&Queue| {
                    queue.lock == lock
                        && (queue.entries.iter().chain(&queue.granted))
                            .any(|entry| entry.task == index)
                };
                let identity = Identity {
                    class: class.clone(),
                    object: None,
                    object_address: Some(object),
                    name: String::new(),
                    note: None,
                };
                let is_fault = class == LockClass::MmapLock
                    && holders::fault(scene, &identity, task, &stems)?.is_some();
                let is_asked = !is_fault && !queues.iter().any(|queue| is_in_queue(&queue));
                claims.push(Claim {
                    lock,
                    class: class.clone(),
                    frames: frames
                        .iter()
                        .filter(|(of, _)| is_asked && *of == object)
                        .map(|&(_, frame)| frame)
                        .collect(),
                    is_held: None,
                });
            }
        }
        Ok(Self { claims, pointers })
    }
}

/// How many holds for read of a lock are known.
fn readers_of(lock: LockAddr, holds: &[TracedHold]) -> usize {
    let of_lock = |hold: &&TracedHold| hold.lock == lock && hold.mode == LockMode::Read;
    holds.iter().filter(of_lock).count()
}

/// Whether a lock is held for read, by so many.
fn counts(word: &LockWord, readers: usize) -> bool {
    word.state == LockState::ReadHeld
        && (word.readers).is_some_and(|counted| counted as usize == readers)
}

/// Whether a task holds a lock for read. `holds` stood all the time, `ever` are those that
/// did at some time. The lock's own word has to agree: a tracer may have come too late,
/// speaks a moment before a release, and misses one where its program is interrupted by a
/// task that needs it, too.
fn is_held(
    lock: LockAddr,
    task: &TaskLook,
    word: &LockWord,
    holds: &[TracedHold],
    ever: &[TracedHold],
) -> Option<bool> {
    let of_task = |hold: &&TracedHold| hold.lock == lock && hold.task == task.name.key;
    let known = readers_of(lock, holds);
    if let Some(hold) = holds.iter().find(of_task) {
        return (hold.mode == LockMode::Read && counts(word, known)).then_some(true);
    }
    if ever.iter().any(|hold| of_task(&hold)) {
        return None;
    }
    let is_free_of_it = match word.state {
        LockState::Free => true,
        LockState::WriteHeld => {
            word.owner_is == OwnerIs::Holder
                && word.owner_task != 0
                && word.owner_task != task.record.task
        }
        LockState::ReadHeld => counts(word, known),
        LockState::Inconsistent => false,
    };
    is_free_of_it.then_some(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::survey::image::{Image, RWSEM, task_address};

    const LOCK: LockAddr = LockAddr(0xffff_8882_0000_0040);

    /// Whether task 1 holds the lock, whose words are these; the tracer knows those holds.
    fn held(count: u64, owner: u64, holds: &[(usize, LockMode)]) -> Option<bool> {
        let mut image = Image::default();
        (1..=3).for_each(|n| image.task(n));
        let look = image.look(3);
        let holds: Vec<TracedHold> = holds
            .iter()
            .map(|&(task, mode)| TracedHold {
                lock: LOCK,
                task: look.tasks[task - 1].name.key,
                mode,
                is_sure: true,
                since_ns: 7,
            })
            .collect();
        let bytes = [count.to_le_bytes(), owner.to_le_bytes()].concat();
        let word = RWSEM.word.decode(&bytes, true);
        is_held(LOCK, &look.tasks[0], &word, &holds, &holds)
    }

    #[test]
    fn the_word_proves_that_a_task_holds_nothing() {
        assert_eq!(held(0, 0, &[]), Some(false), "it is free");
        assert_eq!(held(1, task_address(2), &[]), Some(false));
        assert_eq!(held(1, task_address(1), &[]), None);
        let other = [(2, LockMode::Read)];
        assert_eq!(held(0x100, 0, &other), Some(false), "the other is all");
        assert_eq!(held(0x200, 0, &other), None, "somebody is not known");
        assert_eq!(held(0x100, 0, &[]), None);
    }

    #[test]
    fn a_hold_is_one_if_the_word_counts_it() {
        let own = [(1, LockMode::Read)];
        assert_eq!(held(0x100, 0, &own), Some(true));
        assert_eq!(held(0, 0, &own), None, "its release was missed");
        assert_eq!(held(0x200, 0, &own), None, "somebody is not known");
        assert_eq!(held(1, task_address(1), &[(1, LockMode::Write)]), None);
        let both = [(1, LockMode::Read), (2, LockMode::Read)];
        assert_eq!(held(0x200, 0, &both), Some(true));
    }
}
