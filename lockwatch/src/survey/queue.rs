//! The queues: which tasks wait for which lock, in which order.
//!
//! A queue entry lies on its waiter's stack, above a return address into a slow
//! path. The entries' links give the order, and the one pointer that is no entry is
//! the head inside the lock. Everything found that way is then read again from
//! memory: stacks hold bytes that user space controls.

mod drain;
mod entry;
mod pi;
mod settle;
#[cfg(test)]
mod tests;

use std::ops::Range;

use self::entry::in_ranges;
pub(super) use self::{drain::find as find_drained, entry::Entry, pi::find as find_pi};
use crate::{
    kernel::{
        locks::{LockLayout, LockWord},
        memory::{KernelMemory, MemoryError, half_word},
    },
    lock::{LockAddr, LockKind},
    survey::look::Look,
};

/// A row of the table of locks, with its functions' places in this kernel.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// The lock.
    pub(super) layout: LockLayout,
    /// Where the functions are that queue a task on it.
    pub(super) slow_paths: Vec<Range<u64>>,
}

/// A lock with its queue, as verified in memory.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    /// Where the lock is.
    pub(super) lock: LockAddr,
    /// Which primitive.
    pub(super) kind: LockKind,
    /// Its rt_mutex stands for a spinlock, on PREEMPT_RT.
    pub(super) is_spinlock: bool,
    /// The queue is in the order of priorities.
    pub(super) by_priority: bool,
    /// What its words mean.
    pub(super) word: LockWord,
    /// The queue in order.
    pub(super) entries: Vec<Entry>,
    /// Tasks that were granted the lock and have not run: they hold it already.
    pub(super) granted: Vec<Entry>,
    /// Tasks that spin for it, by index.
    pub(super) spinners: Vec<usize>,
}

impl Queue {
    /// A lock that only its draining writer waits for.
    fn of_drainer(look: &Look, lock: LockAddr, kind: LockKind, word: LockWord) -> Self {
        let mut queue = Self {
            lock,
            kind,
            is_spinlock: false,
            by_priority: false,
            word,
            entries: Vec::new(),
            granted: Vec::new(),
            spinners: Vec::new(),
        };
        queue.put_drainer_first(look);
        queue
    }

    /// A writer that waits for the readers to leave has no entry, but is the next.
    fn put_drainer_first(&mut self, look: &Look) {
        let Some(task) = look.task_at(self.word.drainer) else {
            return;
        };
        for entry in &mut self.entries {
            entry.position = entry.position.saturating_add(1);
        }
        let entry = Entry::without_links(task, self.lock.0);
        self.entries.insert(0, entry);
    }
}

/// What the queues of one look are.
#[derive(Debug, Default)]
pub(super) struct Queues {
    /// Every lock whose queue could be verified.
    pub(super) queues: Vec<Queue>,
    /// Locks whose queue changed while it was read.
    pub(super) unsettled: u32,
}

/// Finds and verifies every queue.
///
/// # Errors
/// When kernel memory cannot be read at all.
pub(super) fn find(
    look: &Look,
    rows: &[Row],
    memory: &mut dyn KernelMemory,
) -> Result<Queues, MemoryError> {
    let stacked = entry::on_stacks(look, rows);
    let mut found = Queues::default();
    for (index, row) in rows.iter().enumerate() {
        let of_row = |granted: bool| -> Vec<Entry> {
            stacked
                .iter()
                .filter(|stacked| stacked.row == index && stacked.granted == granted)
                .map(|stacked| stacked.entry)
                .collect()
        };
        let mut queues = Vec::new();
        for group in settle::groups(look, &row.layout, of_row(false), memory)? {
            match settle::settle(look, &row.layout, &group, memory)? {
                Some(queue) => queues.push(queue),
                None => found.unsettled += 1,
            }
        }
        // Entries that were seen on both sides of a change can lead to the same lock.
        queues.sort_by_key(|queue: &Queue| queue.lock);
        queues.dedup_by_key(|queue| queue.lock);
        assign_granted(look, rows, of_row(true), &mut queues);
        for queue in &mut queues {
            queue.put_drainer_first(look);
        }
        find_spinners(look, row, &mut queues, memory)?;
        found.queues.append(&mut queues);
    }
    Ok(found)
}

/// Granted readers keep the links of the private list they were woken through, so
/// the lock has to be found otherwise: the slow path keeps its address.
fn assign_granted(look: &Look, rows: &[Row], granted: Vec<Entry>, queues: &mut [Queue]) {
    for entry in granted {
        let task = &look.tasks[entry.task];
        let words = &look.words(task)[..entry::asking_len(look, task, rows)];
        // The address must lie in the slow path's own region, and be unambiguous.
        let mut locks = queues
            .iter_mut()
            .filter(|queue| words.contains(&queue.lock.0));
        if let (Some(queue), None) = (locks.next(), locks.next()) {
            queue.granted.push(entry);
        }
    }
}

/// A spinner runs in the slow path without an entry. The lock's spinner queue names the
/// CPU of the one that came last (`osq.tail` is that CPU plus 1, include/linux/osq_lock.h);
/// those before it are not told.
fn find_spinners(
    look: &Look,
    row: &Row,
    queues: &mut [Queue],
    memory: &mut dyn KernelMemory,
) -> Result<(), MemoryError> {
    let Some(osq) = row.layout.osq else {
        return Ok(());
    };
    let running: Vec<usize> = (0..look.tasks.len())
        .filter(|&index| {
            let task = &look.tasks[index];
            task.record.on_cpu != 0
                && look
                    .words(task)
                    .iter()
                    .any(|&word| in_ranges(&row.slow_paths, word))
        })
        .collect();
    if running.is_empty() {
        return Ok(());
    }
    for queue in queues {
        let Some(bytes) = memory.read(queue.lock.0 + osq as u64, 4)? else {
            continue;
        };
        let Some(cpu) = half_word(&bytes, 0).checked_sub(1) else {
            continue;
        };
        queue.spinners = running
            .iter()
            .copied()
            .filter(|&index| look.tasks[index].record.cpu == cpu)
            .filter(|index| !queue.entries.iter().any(|entry| entry.task == *index))
            .filter(|&index| look.words(&look.tasks[index]).contains(&queue.lock.0))
            .collect();
    }
    Ok(())
}
