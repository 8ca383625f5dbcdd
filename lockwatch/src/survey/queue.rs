//! The queues: which tasks wait for which rwsem, in which order.
//!
//! A queue entry lies on its waiter's stack, above a return address into a slow
//! path. The entries' links give the order, and the one pointer that is no entry is
//! the head inside the lock. Everything found that way is then read again from
//! memory: stacks hold bytes that user space controls.

mod entry;
mod settle;
#[cfg(test)]
mod tests;

use std::ops::Range;

pub(super) use self::entry::Entry;
use self::entry::in_ranges;
use crate::{
    kernel::{
        layout::RwsemLayout,
        lock_word::LockWord,
        memory::{KernelMemory, MemoryError, half_word},
    },
    lock::LockAddr,
    survey::look::Look,
};

/// A lock with its queue, as verified in memory.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    /// Where the lock is.
    pub(super) lock: LockAddr,
    /// Its raw count.
    pub(super) count: u64,
    /// Its raw owner.
    pub(super) owner: u64,
    /// What both mean.
    pub(super) word: LockWord,
    /// The queue in order.
    pub(super) entries: Vec<Entry>,
    /// Readers that were granted the lock and have not run: they hold it already.
    pub(super) granted: Vec<Entry>,
    /// Tasks that spin for it, by index.
    pub(super) spinners: Vec<usize>,
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
    layout: &RwsemLayout,
    slow_paths: &[Range<u64>],
    memory: &mut dyn KernelMemory,
) -> Result<Queues, MemoryError> {
    let (entries, granted) = entry::on_stacks(look, layout, slow_paths);
    let mut found = Queues::default();
    for group in settle::groups(look, layout, entries, memory)? {
        match settle::settle(look, layout, &group, memory)? {
            Some(queue) => found.queues.push(queue),
            None => found.unsettled += 1,
        }
    }
    // Entries that were seen on both sides of a change can lead to the same lock.
    found.queues.sort_by_key(|queue| queue.lock);
    found.queues.dedup_by_key(|queue| queue.lock);
    assign_granted(look, granted, &mut found.queues);
    find_spinners(look, layout, slow_paths, &mut found.queues, memory)?;
    Ok(found)
}

/// Granted readers keep the links of the private list they were woken through, so
/// the lock has to be found otherwise: the slow path keeps its address.
fn assign_granted(look: &Look, granted: Vec<Entry>, queues: &mut [Queue]) {
    for entry in granted {
        let words = look.scheduler_words(&look.tasks[entry.task]);
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
    layout: &RwsemLayout,
    slow_paths: &[Range<u64>],
    queues: &mut [Queue],
    memory: &mut dyn KernelMemory,
) -> Result<(), MemoryError> {
    let Some(osq) = layout.osq else {
        return Ok(());
    };
    let running: Vec<usize> = (0..look.tasks.len())
        .filter(|&index| {
            let task = &look.tasks[index];
            task.record.on_cpu != 0
                && look
                    .words(task)
                    .iter()
                    .any(|&word| in_ranges(slow_paths, word))
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
