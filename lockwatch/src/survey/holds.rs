//! Holds that somebody has watched being taken: evidence for a survey.

use std::{fmt, io};

use rustc_hash::FxHashMap;

use crate::{
    lock::{LockAddr, LockMode, LockState},
    survey::{
        look::Look,
        queue::{Entry, Queue},
        recursion::was_traced,
    },
    task::TaskKey,
};

/// A lock that a task took, as a tracer saw it, and has not released since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TracedHold {
    /// The lock.
    pub lock: LockAddr,
    /// Who took it.
    pub task: TaskKey,
    /// How. A write hold that was downgraded is a read hold.
    pub mode: LockMode,
    /// `CLOCK_MONOTONIC` ns at which it was taken.
    pub since_ns: u64,
    /// False if its release, or an earlier one, may have been missed.
    pub is_sure: bool,
}

/// Whoever traces acquisitions and releases.
pub trait HoldSource: fmt::Debug + Send {
    /// Every hold that stands now. A task that holds a lock twice for read is in it twice.
    ///
    /// # Errors
    /// When the tracer stopped working; the survey goes on without it.
    fn holds(&mut self) -> io::Result<Vec<TracedHold>>;
}

/// Of the traced holds those of this lock that its word does not deny, and those it does.
pub(super) struct Testimony {
    /// Holds the lock's word agrees with.
    pub(super) heard: Vec<TracedHold>,
    /// Why the word contradicts the tracer, in words for a person.
    pub(super) contradiction: Option<String>,
}

/// Compares the tracer with the lock's own word. Where they disagree, the word is followed.
pub(super) fn testimony(look: &Look, queue: &Queue, holds: &[TracedHold]) -> Testimony {
    let mut heard: Vec<TracedHold> = holds
        .iter()
        .filter(|hold| hold.lock == queue.lock)
        .copied()
        .collect();
    if !heard.is_empty() {
        let mut queued: FxHashMap<TaskKey, &Entry> = FxHashMap::default();
        for entry in &queue.entries {
            let task = look.tasks[entry.task].name.key;
            queued.entry(task).or_insert(entry);
        }
        // What waits for it has it only if it has had it before.
        heard.retain(|hold| {
            let entry = queued.get(&hold.task);
            entry.is_none_or(|entry| was_traced(look, entry, hold))
        });
    }
    let owner = look
        .task_at(queue.word.owner_task)
        .map(|index| &look.tasks[index].name);
    let contradiction = match queue.word.state {
        LockState::WriteHeld => heard
            .iter()
            .find(|hold| {
                hold.mode == LockMode::Read || owner.is_some_and(|owner| owner.key != hold.task)
            })
            .map(|hold| {
                let owner = owner.map_or_else(|| "a writer".to_owned(), ToString::to_string);
                format!("thread {} has it, its word says {owner}", hold.task.tid)
            }),
        LockState::ReadHeld if heard.iter().any(|hold| hold.mode == LockMode::Write) => {
            Some("a writer has it, its word says readers".to_owned())
        }
        LockState::ReadHeld => queue
            .word
            .readers
            .filter(|&readers| heard.len() > readers as usize)
            .map(|readers| format!("{} readers have it, its word counts {readers}", heard.len())),
        LockState::Free if !heard.is_empty() => {
            Some("it is held, its word says it is free".to_owned())
        }
        _ => None,
    };
    match queue.word.state {
        LockState::WriteHeld => heard.retain(|hold| {
            hold.mode == LockMode::Write && owner.is_none_or(|owner| owner.key == hold.task)
        }),
        LockState::ReadHeld => heard.retain(|hold| hold.mode == LockMode::Read),
        LockState::Free | LockState::Inconsistent => heard.clear(),
    }
    Testimony {
        heard,
        contradiction: contradiction.map(|words| format!("tracing says of it that {words}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        survey::{
            image::{Image, RWSEM, TAKEN_AT_NS, row, task_address},
            queue,
        },
        task::Tid,
    };

    const LOCK: u64 = 0xffff_8882_0000_0040;

    /// Tasks 1 and 2 are queued, tasks 3 and 4 are elsewhere.
    fn heard(count: u64, owner: u64, holds: &[(u32, LockMode)]) -> Testimony {
        heard_since(count, owner, holds, 7)
    }

    fn heard_since(count: u64, owner: u64, holds: &[(u32, LockMode)], since_ns: u64) -> Testimony {
        let mut image = Image::default();
        image.queue(LOCK, count, owner, &[0, 1]);
        let look = image.look(4);
        let queues = queue::find(&look, &[row(RWSEM)], &mut image).unwrap();
        let holds: Vec<TracedHold> = holds
            .iter()
            .map(|&(tid, mode)| TracedHold {
                lock: LockAddr(LOCK),
                task: TaskKey {
                    tid: Tid(tid),
                    start_ns: tid.into(),
                },
                mode,
                since_ns,
                is_sure: true,
            })
            .collect();
        testimony(&look, &queues.queues[0], &holds)
    }

    fn tids(testimony: &Testimony) -> Vec<u32> {
        testimony.heard.iter().map(|hold| hold.task.tid.0).collect()
    }

    #[test]
    fn readers_that_the_word_counts_are_heard() {
        let both = heard(0x202, 3, &[(3, LockMode::Read), (4, LockMode::Read)]);
        assert_eq!((tids(&both), both.contradiction), (vec![3, 4], None));
    }

    #[test]
    fn a_queued_task_is_heard_only_of_what_it_took_before_and_only_as_a_reader() {
        let before = heard(0x102, 3, &[(2, LockMode::Read)]);
        assert_eq!((tids(&before), before.contradiction), (vec![2], None));
        let since = heard_since(0x102, 3, &[(2, LockMode::Read)], TAKEN_AT_NS);
        assert_eq!(tids(&since), Vec::<u32>::new(), "its wait is over");
        let writer = heard(0x102, 3, &[(1, LockMode::Read)]);
        assert_eq!(tids(&writer), Vec::<u32>::new(), "it wants to write");
    }

    #[test]
    fn the_word_wins_over_the_tracer() {
        let other = heard(0x3, task_address(4), &[(3, LockMode::Write)]);
        assert_eq!(tids(&other), Vec::<u32>::new());
        assert!(other.contradiction.is_some());
        let same = heard(0x3, task_address(4), &[(4, LockMode::Write)]);
        assert_eq!((tids(&same), same.contradiction), (vec![4], None));
        let reader = heard(0x102, 3, &[(3, LockMode::Write)]);
        assert_eq!(tids(&reader), Vec::<u32>::new());
        assert!(reader.contradiction.is_some());
        let many = heard(0x102, 3, &[(3, LockMode::Read), (4, LockMode::Read)]);
        assert!(many.contradiction.is_some());
    }
}
