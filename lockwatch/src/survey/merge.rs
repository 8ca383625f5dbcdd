//! What two looks agree on: only that is reported as standing.

use std::cmp::Reverse;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    kernel::locks::OwnerIs,
    lock::{
        Confidence, EvidenceKind, Holder, Lock, LockKind, LockMode, LockState, StackId, Stacks,
        WaitSource, Waiter,
    },
    survey::{
        clock::Clocks,
        confidence::{Circumstances, Strength, confidence, strength},
        functions::Functions,
        holders::Suspect,
        look::{Look, TaskLook},
        names::{Identity, is_caller},
        queue::{Entry, Queue},
        stuck,
    },
    task::{Nanos, TaskKey, TaskState},
};

/// One look with what was found in it.
pub(super) struct Seen<'a> {
    /// The look.
    pub(super) look: &'a Look,
    /// One queue of it.
    pub(super) queue: &'a Queue,
    /// The tasks there is a reason to name.
    pub(super) suspects: &'a [Suspect],
}

impl Seen<'_> {
    /// Holds of suspects whose best reason is at least this strong.
    fn found(&self, least: Strength) -> u32 {
        self.suspects
            .iter()
            .filter(|suspect| suspect.strongest() >= least)
            .map(|suspect| suspect.holds)
            .fold(0, u32::saturating_add)
    }

    /// Holds by the lock's own word.
    fn counted(&self) -> Option<u32> {
        match self.queue.word.state {
            LockState::ReadHeld => self.queue.word.readers,
            LockState::WriteHeld => Some(1),
            LockState::Free | LockState::Inconsistent => Some(0),
        }
    }
}

/// Turns what was seen into a report's facts.
pub(super) struct Merger<'a, 'k> {
    /// Names of functions.
    pub(super) functions: &'a mut Functions<'k>,
    /// How the clocks relate.
    pub(super) clocks: Clocks,
    /// Equal stacks, kept once.
    pub(super) stacks: &'a mut Stacks,
    /// Their ids, by their return addresses.
    pub(super) by_addresses: FxHashMap<Vec<u64>, StackId>,
}

/// Most tasks that are named as merely possible holders of one lock.
const POSSIBLE_MAX: usize = 8;

impl Merger<'_, '_> {
    /// The lock as both looks saw it, or as the only one did; `None` if no wait stood
    /// through both.
    pub(super) fn lock(
        &mut self,
        first: Option<&Seen<'_>>,
        last: &Seen<'_>,
        identity: Identity,
    ) -> Option<Lock> {
        let queue = last.queue;
        let earlier: Option<FxHashSet<Wait>> = first.map(|first| {
            first
                .queue
                .entries
                .iter()
                .map(|entry| wait(first, entry))
                .collect()
        });
        let mut waiters = Vec::with_capacity(queue.entries.len());
        for entry in &queue.entries {
            let stands = |earlier: &FxHashSet<Wait>| earlier.contains(&wait(last, entry));
            if earlier.as_ref().is_none_or(stands) {
                waiters.push(self.waiter(last, entry));
            }
        }
        if waiters.is_empty() {
            return None;
        }
        let holders = self.holders(first, last);
        Some(Lock {
            address: queue.lock,
            kind: queue.kind,
            class: identity.class,
            name: identity.name,
            object: identity.object,
            state: queue.word.state,
            reader_count: queue
                .word
                .readers
                .filter(|_| queue.word.state == LockState::ReadHeld),
            count: queue.word.count,
            count_is_signed: queue.word.is_signed,
            owner: queue.word.owner,
            waiters,
            by_priority: queue.by_priority,
            first_was_overtaken: first.is_some_and(|first| was_overtaken(first, last)),
            note: identity
                .note
                .filter(|_| is_holder_unknown(queue.word.state, &holders)),
            spinners: queue
                .spinners
                .iter()
                .map(|&task| last.look.tasks[task].name.key.tid)
                .collect(),
            holders,
            recent_holds: Vec::new(),
        })
    }

    fn waiter(&mut self, seen: &Seen<'_>, entry: &Entry) -> Waiter {
        let look = seen.look;
        let task = &look.tasks[entry.task];
        let word = &seen.queue.word;
        let off_cpu = self.off_cpu(task);
        let (wait, wait_source) = self
            .clocks
            .wait(entry.timeout, look.jiffies, off_cpu)
            .unwrap_or((Nanos(0), WaitSource::QueueEntry));
        Waiter {
            task: task.name.clone(),
            position: entry.position,
            mode: entry.mode,
            wait,
            wait_source,
            killable: matches!(task.state, TaskState::Killable | TaskState::Interruptible),
            // A mutex can be handed to a task that is still in its queue.
            granted: word.owner_is == OwnerIs::Next && word.owner_task == task.record.task,
            state: task.state,
            caller: self.caller(task),
            stack: self.stack(look, task),
        }
    }

    pub(super) fn off_cpu(&self, task: &TaskLook) -> Option<Nanos> {
        (task.record.on_cpu == 0)
            .then(|| {
                self.clocks
                    .off_cpu(task.record.last_arrival_ns, task.record.taken_at_ns)
            })
            .flatten()
    }

    /// For how long a running task has had its CPU.
    pub(super) fn on_cpu(&self, task: &TaskLook) -> Option<Nanos> {
        (task.record.on_cpu != 0)
            .then(|| {
                self.clocks
                    .off_cpu(task.record.last_arrival_ns, task.record.taken_at_ns)
            })
            .flatten()
    }

    /// First function outside of lock code.
    fn caller(&mut self, task: &TaskLook) -> Option<String> {
        let stems = self.functions.stems(task);
        stems
            .iter()
            .copied()
            .find(|stem| is_caller(stem))
            .map(ToOwned::to_owned)
    }

    pub(super) fn stack(&mut self, look: &Look, task: &TaskLook) -> StackId {
        let mut addresses = Vec::with_capacity(task.frames.len() + 1);
        // One that the unwinder has left out.
        if let Some((_, address)) = stuck::slow_path(self.functions, look, task)
            && task
                .frames
                .iter()
                .all(|frame| frame.return_address != address)
        {
            addresses.push(address);
        }
        addresses.extend(task.frames.iter().map(|frame| frame.return_address));
        if let Some(&id) = self.by_addresses.get(&addresses) {
            return id;
        }
        let shown = addresses.iter().map(|&at| self.functions.show(at));
        let id = self.stacks.intern(shown.collect());
        self.by_addresses.insert(addresses, id);
        id
    }

    fn holders(&mut self, first: Option<&Seen<'_>>, last: &Seen<'_>) -> Vec<Holder> {
        let before = first.unwrap_or(last);
        let counted = [before.counted(), last.counted()];
        // Where as many are known by the kernel's own words, or were seen, as the lock
        // counts, what we know of its code must be wrong about everybody else.
        let least = [Strength::Word, Strength::Knowledge]
            .into_iter()
            .find(|&least| [before, last].map(|seen| Some(seen.found(least))) == counted);
        let circumstances = Circumstances {
            in_both_looks: false,
            found: [before, last].map(|seen| seen.found(least.unwrap_or(Strength::Knowledge))),
            counted,
        };
        let earlier: FxHashMap<_, _> = first
            .map(|first| {
                first
                    .suspects
                    .iter()
                    .map(|suspect| (first.look.tasks[suspect.task].name.key, suspect))
                    .collect()
            })
            .unwrap_or_default();
        let mut holders: Vec<Holder> = last
            .suspects
            .iter()
            // Where the known holders are as many as the lock counts, nobody else can be one.
            .filter(|suspect| least.is_none_or(|least| suspect.strongest() >= least))
            .map(|suspect| {
                let task = &last.look.tasks[suspect.task];
                let in_both_looks = earlier.get(&task.name.key).is_some_and(|then| {
                    first.is_some_and(|first| {
                        stands(&first.look.tasks[then.task], task, then, suspect)
                    })
                });
                let seen = Circumstances {
                    in_both_looks,
                    ..circumstances
                };
                self.holder(
                    last,
                    suspect,
                    confidence(suspect.strongest(), seen),
                    in_both_looks,
                )
            })
            .collect();
        holders.sort_by_key(|holder| (Reverse(holder.confidence), holder.task.key));
        let named = holders
            .iter()
            .filter(|holder| holder.confidence > Confidence::Possible)
            .count();
        holders.truncate(named + POSSIBLE_MAX);
        holders
    }

    fn holder(
        &mut self,
        seen: &Seen<'_>,
        suspect: &Suspect,
        confidence: Confidence,
        stood: bool,
    ) -> Holder {
        let task = &seen.look.tasks[suspect.task];
        let off_cpu = self.off_cpu(task);
        let mut evidence = suspect.evidence.clone();
        evidence.sort_by_key(|evidence| evidence.kind);
        Holder {
            task: task.name.clone(),
            mode: suspect.mode,
            confidence,
            evidence,
            stood,
            cgroup: None,
            state: task.state,
            stuck: stuck::of_task(self.functions, seen.look, task, off_cpu),
            // Not traced: it took the lock before it went to sleep in it.
            held: match suspect.since_ns {
                Some(since_ns) => Some(Nanos::between(since_ns, seen.look.at_ns)),
                None => off_cpu.filter(|_| task.state.is_asleep()),
            },
            held_is_lower_bound: suspect.since_ns.is_none(),
            stack: self.stack(seen.look, task),
        }
    }
}

/// Whether another task took the lock between the looks while the same writer stood in
/// front: the owner word, which whoever takes the lock writes, names another task.
fn was_overtaken(first: &Seen<'_>, last: &Seen<'_>) -> bool {
    if last.queue.kind != LockKind::Rwsem {
        return false;
    }
    let front = |seen: &Seen<'_>| {
        let entry = seen.queue.entries.first()?;
        (entry.mode == LockMode::Write).then(|| wait(seen, entry))
    };
    let owner = |seen: &Seen<'_>| {
        let word = &seen.queue.word;
        let is_held = matches!(word.state, LockState::ReadHeld | LockState::WriteHeld);
        (is_held && word.owner_task != 0).then_some(word.owner_task)
    };
    match (front(first), front(last), owner(first), owner(last)) {
        (Some(then), Some(now), Some(before), Some(after)) => then == now && before != after,
        _ => false,
    }
}

/// Whether somebody has the lock for write who is not named.
fn is_holder_unknown(state: LockState, holders: &[Holder]) -> bool {
    let named = |holder: &Holder| holder.confidence > Confidence::Possible;
    state == LockState::WriteHeld && !holders.iter().any(named)
}

/// The same entry, of the same task, queued at the same tick or, where entries do not tell
/// that, with no run in between: the same wait.
///
/// A writer that waits for the readers to leave runs at every attempt of a reader to come
/// in (kernel/locking/percpu-rwsem.c, `__percpu_down_read_trylock`), and waits on: the lock
/// itself names it. If it came back in between, its time tells: that counts from its last run.
type Wait = (u64, u64, LockMode, TaskKey);

fn wait(seen: &Seen<'_>, entry: &Entry) -> Wait {
    let task = &seen.look.tasks[entry.task];
    let runs = if entry.is_drainer_of(seen.queue.lock) {
        0
    } else {
        task.record.nvcsw.wrapping_add(task.record.nivcsw)
    };
    (
        entry.address,
        entry.timeout.unwrap_or(runs),
        entry.mode,
        task.name.key,
    )
}

/// Whether a suspect is one in both looks for the same reason, and has not run in
/// between. The owner of a write-held lock may run: the lock itself names it. So may one
/// whose acquisition was traced, if it is the same one.
fn stands(then: &TaskLook, now: &TaskLook, earlier: &Suspect, later: &Suspect) -> bool {
    let kinds = |suspect: &Suspect| {
        suspect
            .evidence
            .iter()
            .map(|evidence| evidence.kind)
            .max_by_key(|&kind| (strength(kind), Reverse(kind)))
    };
    let owner = |suspect: &Suspect| {
        suspect
            .evidence
            .iter()
            .any(|evidence| evidence.kind == EvidenceKind::WriterOwner)
    };
    kinds(earlier) == kinds(later)
        && earlier.mode == later.mode
        && ((owner(earlier) && owner(later))
            || (earlier.since_ns.is_some() && earlier.since_ns == later.since_ns)
            || now.stood_still_since(then))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::survey::{
        image::{Image, PERCPU_RWSEM, row},
        queue,
    };

    #[test]
    fn a_draining_writer_that_ran_waits_on_and_a_reader_that_ran_waits_anew() {
        let mut image = Image::default();
        image.drained(0xffff_8882_0000_0040);
        let mut look = image.look(2);
        let found = queue::find(&look, &[row(PERCPU_RWSEM)], &mut image).unwrap();
        let queue = &found.queues[0];
        let waits = |look: &Look| {
            let seen = Seen {
                look,
                queue,
                suspects: &[],
            };
            let of = |mode| {
                let entry = queue.entries.iter().find(|entry| entry.mode == mode);
                wait(&seen, entry.unwrap())
            };
            [of(LockMode::Write), of(LockMode::Read)]
        };
        let [writer, reader] = waits(&look);
        for task in &mut look.tasks {
            task.record.nvcsw += 1;
        }
        let [writer_later, reader_later] = waits(&look);
        assert_eq!(writer, writer_later);
        assert_ne!(reader, reader_later);
    }
}
