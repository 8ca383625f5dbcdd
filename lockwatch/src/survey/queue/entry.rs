//! Queue entries: on the stacks of those who wait, and in memory.

use std::ops::Range;

use rustc_hash::FxHashMap;

use crate::{
    kernel::{
        arch::is_kernel_address,
        layout::RwsemLayout,
        lock_word::waiter_mode,
        memory::{KernelMemory, MemoryError, half_word, word},
    },
    lock::LockMode,
    survey::look::Look,
};

/// How far above the slow path's return address its queue entry is looked for.
const ENTRY_WORDS: usize = 64;

/// A task's entry in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::survey) struct Entry {
    /// Index into [`Look::tasks`].
    pub(in crate::survey) task: usize,
    /// Where the entry lies.
    pub(in crate::survey) address: u64,
    /// Read or write.
    pub(in crate::survey) mode: LockMode,
    /// Jiffies at which it may ask for a hand-off: a fixed time after it queued.
    pub(in crate::survey) timeout: u64,
    /// Place in the queue, from 1; 0 until that is known.
    pub(in crate::survey) position: u32,
    /// Its forward link, as read.
    pub(super) next: u64,
    /// Its backward link, as read.
    pub(super) prev: u64,
}

/// The entries of all tasks that a slow path has queued, and of readers that were granted
/// the lock and have not run since.
pub(super) fn on_stacks(
    look: &Look,
    layout: &RwsemLayout,
    slow_paths: &[Range<u64>],
) -> (Vec<Entry>, Vec<Entry>) {
    let mut queued = Vec::new();
    let mut granted = Vec::new();
    for (index, task) in look.tasks.iter().enumerate() {
        let words = look.words(task);
        let region = look.scheduler_words(task).len();
        // The outermost return address into a slow path is the live one; deeper ones
        // can be left from an earlier wait, with an entry that looks the same.
        let candidate = (0..region)
            .rev()
            .filter(|&at| in_ranges(slow_paths, words[at]))
            .find_map(|at| entry_above(look, layout, index, at));
        match candidate {
            Some((entry, false)) => queued.push(entry),
            Some((entry, true)) => granted.push(entry),
            None => {}
        }
    }
    (queued, granted)
}

/// The entry above a return address into a slow path, and whether it was granted.
fn entry_above(
    look: &Look,
    layout: &RwsemLayout,
    index: usize,
    at: usize,
) -> Option<(Entry, bool)> {
    let task = &look.tasks[index];
    let words = look.words(task);
    // Within the slow path's own frames: what its callers keep can look like an entry.
    let end = look.scheduler_words(task).len();
    let places = at + 1..(at + 1 + ENTRY_WORDS).min(end);
    let entry_of = |pointer: u64| {
        let is_it = move |&start: &usize| word_at(words, start, layout.waiter_task) == pointer;
        places
            .clone()
            .filter(is_it)
            .filter_map(|start| decode_entry(look, layout, index, start))
    };
    if let Some(entry) = entry_of(task.record.task).next() {
        return Some((entry, false));
    }
    entry_of(0)
        .find(|entry| entry.mode == LockMode::Read && is_recent(entry.timeout, look.jiffies))
        .map(|entry| (entry, true))
}

fn word_at(words: &[u64], start: usize, offset: usize) -> u64 {
    words.get(start + offset / 8).copied().unwrap_or(0)
}

/// An entry with plausible links and type at this word of the task's stack.
fn decode_entry(look: &Look, layout: &RwsemLayout, task: usize, start: usize) -> Option<Entry> {
    let owner = &look.tasks[task];
    let words = look.words(owner);
    let (next, prev) = (*words.get(start)?, *words.get(start + 1)?);
    // The low half of the word: the type is a 32-bit enum.
    let mode = waiter_mode(word_at(words, start, layout.waiter_type) as u32)?;
    let is_link =
        |link: u64| is_kernel_address(link) && link.is_multiple_of(8) && link != owner.record.task;
    (is_link(next) && is_link(prev)).then(|| Entry {
        task,
        address: owner.word_address(start),
        mode,
        timeout: word_at(words, start, layout.waiter_timeout),
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
    layout: &RwsemLayout,
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
        .read(address, layout.waiter_size)?
        .and_then(|bytes| parse_entry(look, layout, address, &bytes));
    if let Some(entry) = entry {
        known.insert(address, entry);
    }
    Ok(entry)
}

pub(super) fn parse_entry(
    look: &Look,
    layout: &RwsemLayout,
    address: u64,
    bytes: &[u8],
) -> Option<Entry> {
    let task = look.task_at(word(bytes, layout.waiter_task))?;
    let base = look.tasks[task].record.stack_base;
    // The entry of a task lies on that task's own stack.
    if !(base..base + look.thread_size()).contains(&address) {
        return None;
    }
    Some(Entry {
        task,
        address,
        mode: waiter_mode(half_word(bytes, layout.waiter_type))?,
        timeout: word(bytes, layout.waiter_timeout),
        position: 0,
        next: word(bytes, 0),
        prev: word(bytes, 8),
    })
}
