//! Who gets a lock next, by the rules of its kind.
//!
//! An rwsem (kernel/locking/rwsem.c, 5.3 and later): the queue is first come, first served;
//! a reader that comes while tasks are queued queues too. A wake-up with a writer in front
//! wakes that writer alone. With a reader in front it grants the lock to at most 256 queued
//! readers, also to those behind queued writers. A writer is never granted the lock: it is
//! woken and takes it, and a spinner may be faster. A waiter in front that gives up wakes
//! those behind it.

use crate::{
    lock::{Lock, LockKind, LockMode, LockState, Waiter},
    task::TaskKey,
};

/// `MAX_READERS_WAKEUP` of kernel/locking/rwsem.c.
pub const GRANTED_AT_ONCE: usize = 256;

/// The queued tasks one of which, by the rules, is the first of the queue to get the lock,
/// in the order of the queue. Empty where nobody is queued, or nothing can be told because
/// the lock's words contradict each other.
pub fn first(lock: &Lock) -> Vec<TaskKey> {
    let mut queue = lock.waiters.iter().filter(|waiter| !waiter.granted);
    let Some(front) = queue.next() else {
        return Vec::new();
    };
    if lock.state == LockState::Inconsistent {
        return Vec::new();
    }
    let is_reader = |waiter: &&Waiter| waiter.mode == LockMode::Read;
    let with: Vec<&Waiter> = match (lock.kind, front.mode) {
        (LockKind::Rwsem, LockMode::Read) if !lock.by_priority => {
            queue.filter(is_reader).take(GRANTED_AT_ONCE - 1).collect()
        }
        // Readers in front are let in together (kernel/locking/percpu-rwsem.c, and PREEMPT_RT's
        // rwbase, where each wakes the next).
        (LockKind::PercpuRwsem | LockKind::Rwsem, LockMode::Read) => {
            queue.take_while(is_reader).collect()
        }
        _ => Vec::new(),
    };
    std::iter::once(front)
        .chain(with)
        .map(|waiter| waiter.task.key)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::example;

    fn tids(lock: &Lock) -> Vec<u32> {
        first(lock).into_iter().map(|key| key.tid.0).collect()
    }

    #[test]
    fn a_writer_in_front_comes_alone() {
        assert_eq!(tids(&example::incident().locks[0]), [4_431]);
    }

    #[test]
    fn readers_in_front_come_together_256_at_once() {
        let mut lock = example::incident().locks[0].clone();
        let writer = lock.waiters.remove(0);
        lock.waiters.insert(3, writer);
        let readers = tids(&lock);
        assert_eq!(readers.len(), GRANTED_AT_ONCE);
        assert!(!readers.contains(&4_431));
        // Also those behind the writer.
        assert_eq!(readers[3], lock.waiters[4].task.key.tid.0);
    }

    #[test]
    fn whoever_was_granted_the_lock_is_not_next() {
        let mut lock = example::incident().locks[0].clone();
        lock.waiters[0].granted = true;
        assert_eq!(tids(&lock).len(), GRANTED_AT_ONCE);
    }

    #[test]
    fn nothing_is_told_of_words_that_contradict_each_other() {
        let mut lock = example::incident().locks[0].clone();
        lock.state = LockState::Inconsistent;
        assert_eq!(tids(&lock), [0; 0]);
    }

    #[test]
    fn a_mutex_goes_to_the_one_in_front() {
        let mut lock = example::incident().locks[0].clone();
        lock.kind = LockKind::Mutex;
        assert_eq!(tids(&lock), [4_431]);
    }
}
