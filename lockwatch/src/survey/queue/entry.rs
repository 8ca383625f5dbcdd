//! Queue entries: on the stacks of those who wait, and in memory.

use std::ops::Range;

use rustc_hash::FxHashMap;

use crate::{
    kernel::{
        arch::is_kernel_address,
        locks::{Granted, LockLayout},
        memory::{KernelMemory, MemoryError, half_word, word},
    },
    lock::{LockAddr, LockMode},
    survey::{
        look::{Look, TaskLook},
        queue::Row,
    },
};

/// How far above the slow path's return address its queue entry is looked for.
const ENTRY_WORDS: usize = 64;

/// A task's entry in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::survey) struct Entry {
    /// Index into [`Look::tasks`].
    pub(in crate::survey) task: usize,
    /// Where its links lie.
    pub(in crate::survey) address: u64,
    /// Read or write.
    pub(in crate::survey) mode: LockMode,
    /// Jiffies at which it may ask for a hand-off: a fixed time after it queued; `None`
    /// where entries have no such time.
    pub(in crate::survey) timeout: Option<u64>,
    /// Place in the queue, from 1; 0 until that is known.
    pub(in crate::survey) position: u32,
    /// Its forward link, as read.
    pub(super) next: u64,
    /// Its backward link, as read.
    pub(super) prev: u64,
}

impl Entry {
    /// A writer that is first in line without an entry.
    pub(super) const fn without_links(task: usize, lock: u64) -> Self {
        Self {
            task,
            address: lock,
            mode: LockMode::Write,
            timeout: None,
            position: 1,
            next: 0,
            prev: 0,
        }
    }

    /// It stands for the writer that has shut this lock and waits for the readers to leave.
    pub(in crate::survey) fn is_drainer_of(&self, lock: LockAddr) -> bool {
        self.address == lock.0
    }
}

/// An entry on a stack.
pub(super) struct Stacked {
    /// Index into the table of locks.
    pub(super) row: usize,
    /// The entry.
    pub(super) entry: Entry,
    /// Its task has been granted the lock and has not run since.
    pub(super) granted: bool,
}

/// The entries of all tasks that a slow path has queued, and of those that were granted
/// the lock and have not run since.
pub(super) fn on_stacks(look: &Look, rows: &[Row]) -> Vec<Stacked> {
    let mut stacked = Vec::new();
    let ranges = || rows.iter().flat_map(|row| &row.slow_paths);
    // Most words lie in none of them.
    let all = ranges().map(|range| range.start).min().unwrap_or(u64::MAX)
        ..ranges().map(|range| range.end).max().unwrap_or(0);
    for (index, task) in look.tasks.iter().enumerate() {
        let words = look.words(task);
        let region = asking_len(look, task, rows);
        // The outermost return address into a slow path is the live one; deeper ones
        // can be left from an earlier wait, with an entry that looks the same.
        let candidate = (0..region).rev().find_map(|at| {
            if !all.contains(&words[at]) {
                return None;
            }
            let row = rows
                .iter()
                .position(|row| in_ranges(&row.slow_paths, words[at]))?;
            let places = at + 1..(at + 1 + ENTRY_WORDS).min(region);
            let (entry, granted) = entry_in(look, &rows[row].layout, index, places)?;
            Some(Stacked {
                row,
                entry,
                granted,
            })
        });
        stacked.extend(candidate);
    }
    stacked
}

/// Words from the stack pointer up to the first function that is neither left out by the
/// unwinder nor a slow path: what its callers keep can look like an entry.
pub(super) fn asking_len(look: &Look, task: &TaskLook, rows: &[Row]) -> usize {
    let len = look.words(task).len();
    if task.record.on_cpu != 0 || task.frames.is_empty() {
        return len;
    }
    task.frames
        .iter()
        .find(|frame| {
            rows.iter()
                .all(|row| !in_ranges(&row.slow_paths, frame.return_address))
        })
        .map_or(len, |frame| frame.at.min(len))
}

/// The entry of this task at these words, and whether it was granted.
fn entry_in(
    look: &Look,
    layout: &LockLayout,
    index: usize,
    places: Range<usize>,
) -> Option<(Entry, bool)> {
    let task = &look.tasks[index];
    let words = look.words(task);
    let entry_of = |pointer: u64| {
        let is_it = move |&start: &usize| word_at(words, start, layout.entry.task) == pointer;
        places
            .clone()
            .filter(is_it)
            .filter_map(|start| decode_entry(look, layout, index, start))
    };
    if let Some(entry) = entry_of(task.record.task).next() {
        return Some((entry, false));
    }
    let is_granted = |entry: &Entry| match layout.entry.granted {
        Granted::TaskCleared => {
            entry.mode == LockMode::Read
                && entry
                    .timeout
                    .is_some_and(|timeout| is_recent(timeout, look.jiffies))
        }
        Granted::Unlinked => (entry.next, entry.prev) == (entry.address, entry.address),
        Granted::Untold => false,
    };
    entry_of(0).find(is_granted).map(|entry| (entry, true))
}

fn word_at(words: &[u64], start: usize, offset: usize) -> u64 {
    let word = words.get(start + offset / 8).copied().unwrap_or(0);
    word >> (8 * (offset % 8))
}

/// An entry with plausible links and type at this word of the task's stack.
fn decode_entry(look: &Look, layout: &LockLayout, task: usize, start: usize) -> Option<Entry> {
    let owner = &look.tasks[task];
    let words = look.words(owner);
    let layout = &layout.entry;
    let links = start + layout.links / 8;
    let (next, prev) = (*words.get(links)?, *words.get(links + 1)?);
    // The low half of the word: it is a 32-bit enum.
    let mode = layout
        .mode
        .decode(word_at(words, start, layout.mode.offset()) as u32)?;
    let is_link =
        |link: u64| is_kernel_address(link) && link.is_multiple_of(8) && link != owner.record.task;
    (is_link(next) && is_link(prev)).then(|| Entry {
        task,
        address: owner.word_address(links),
        mode,
        timeout: layout.timeout.map(|timeout| word_at(words, start, timeout)),
        position: 0,
        next,
        prev,
    })
}

/// A time-out that an entry of the last weeks can have: no pointer, no small number.
pub(super) const fn is_recent(timeout: u64, jiffies: u64) -> bool {
    timeout != 0 && timeout < jiffies + 1_000 && jiffies < timeout + 1_000_000_000
}

pub(super) fn in_ranges(ranges: &[Range<u64>], address: u64) -> bool {
    ranges.iter().any(|range| range.contains(&address))
}

/// The entry at this address, if it is one and belongs to a task we know.
pub(super) fn linked_entry(
    look: &Look,
    layout: &LockLayout,
    address: u64,
    known: &mut FxHashMap<u64, Entry>,
    memory: &mut dyn KernelMemory,
) -> Result<Option<Entry>, MemoryError> {
    if let Some(entry) = known.get(&address) {
        return Ok(Some(*entry));
    }
    if !look.in_a_stack(address) {
        return Ok(None);
    }
    let entry = memory
        .read(start_of(layout, address), layout.entry.size)?
        .and_then(|bytes| parse_entry(look, layout, address, &bytes));
    if let Some(entry) = entry {
        known.insert(address, entry);
    }
    Ok(entry)
}

/// Where the entry begins whose links lie at this address.
pub(super) const fn start_of(layout: &LockLayout, address: u64) -> u64 {
    address.wrapping_sub(layout.entry.links as u64)
}

/// The entry whose links lie at this address, by its bytes.
pub(super) fn parse_entry(
    look: &Look,
    layout: &LockLayout,
    address: u64,
    bytes: &[u8],
) -> Option<Entry> {
    let layout = &layout.entry;
    let task = look.task_at(word(bytes, layout.task))?;
    let base = look.tasks[task].record.stack_base;
    // The entry of a task lies on that task's own stack.
    if !(base..base + look.thread_size()).contains(&address) {
        return None;
    }
    Some(Entry {
        task,
        address,
        mode: layout.mode.decode(half_word(bytes, layout.mode.offset()))?,
        timeout: layout.timeout.map(|timeout| word(bytes, timeout)),
        position: 0,
        next: word(bytes, layout.links),
        prev: word(bytes, layout.links + 8),
    })
}
