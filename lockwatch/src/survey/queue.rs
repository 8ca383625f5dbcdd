//! The queues: which tasks wait for which rwsem, in which order.
//!
//! A queue entry lies on its waiter's stack, above a return address into a slow
//! path. The entries' links give the order, and the one pointer that is no entry is
//! the head inside the lock. Everything found that way is then read again from
//! memory: stacks hold bytes that user space controls.

use std::ops::Range;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    kernel::{
        arch::is_kernel_address,
        layout::RwsemLayout,
        lock_word::LockWord,
        memory::{KernelMemory, MemoryError, half_word, word},
    },
    lock::{LockAddr, LockMode},
    survey::look::Look,
};

/// `enum rwsem_waiter_type` (kernel/locking/rwsem.c, the same since 3.10).
const TYPE_WRITE: u32 = 0;
const TYPE_READ: u32 = 1;

/// How far above the slow path's return address its queue entry is looked for.
const ENTRY_WORDS: usize = 64;

/// Longest queue that is followed.
const QUEUE_MAX: usize = 100_000;

/// A task's entry in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Index into [`Look::tasks`].
    pub(super) task: usize,
    /// Where the entry lies.
    pub(super) address: u64,
    /// Read or write.
    pub(super) mode: LockMode,
    /// Jiffies at which it may ask for a hand-off: a fixed time after it queued.
    pub(super) timeout: u64,
    next: u64,
    prev: u64,
}

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
    let (entries, granted) = entries_on_stacks(look, layout, slow_paths);
    let mut found = Queues::default();
    for chain in chains(look, layout, entries, memory)? {
        match verify(look, layout, &chain, memory)? {
            Some(queue) => found.queues.push(queue),
            None => found.unsettled += 1,
        }
    }
    assign_granted(look, granted, &mut found.queues);
    find_spinners(look, layout, slow_paths, &mut found.queues, memory)?;
    Ok(found)
}

fn entries_on_stacks(
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
    let places = at + 1..(at + 1 + ENTRY_WORDS).min(words.len());
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
    let mode = mode_of(word_at(words, start, layout.waiter_type) as u32)?;
    (is_kernel_address(next) && is_kernel_address(prev)).then(|| Entry {
        task,
        address: owner.word_address(start),
        mode,
        timeout: word_at(words, start, layout.waiter_timeout),
        next,
        prev,
    })
}

const fn mode_of(kind: u32) -> Option<LockMode> {
    match kind {
        TYPE_WRITE => Some(LockMode::Write),
        TYPE_READ => Some(LockMode::Read),
        _ => None,
    }
}

/// A time-out that an entry of the last weeks can have: no pointer, no small number.
const fn is_recent(timeout: u64, jiffies: u64) -> bool {
    timeout != 0 && timeout < jiffies + 1_000 && jiffies < timeout + 1_000_000_000
}

fn in_ranges(ranges: &[Range<u64>], address: u64) -> bool {
    ranges.iter().any(|range| range.contains(&address))
}

/// Entries in list order, with the address that closes the ring: the list head.
struct Chain {
    head: u64,
    entries: Vec<Entry>,
}

fn chains(
    look: &Look,
    layout: &RwsemLayout,
    entries: Vec<Entry>,
    memory: &mut dyn KernelMemory,
) -> Result<Vec<Chain>, MemoryError> {
    let mut by_address: FxHashMap<u64, Entry> = entries
        .iter()
        .map(|entry| (entry.address, *entry))
        .collect();
    let mut done: FxHashSet<u64> = FxHashSet::default();
    let mut chains = Vec::new();
    for entry in entries {
        if done.contains(&entry.address) {
            continue;
        }
        // Back to the first, then forth to the last, reading entries of tasks that
        // the look did not recognise (running ones) from memory.
        let mut first = entry;
        let mut seen = FxHashSet::default();
        while seen.insert(first.address) && seen.len() < QUEUE_MAX {
            match linked_entry(look, layout, first.prev, &mut by_address, memory)? {
                Some(previous) => first = previous,
                None => break,
            }
        }
        let head = first.prev;
        let mut ordered = vec![first];
        let mut members: FxHashSet<u64> = FxHashSet::from_iter([first.address]);
        let mut next = first.next;
        while next != head && ordered.len() < QUEUE_MAX {
            match linked_entry(look, layout, next, &mut by_address, memory)? {
                Some(entry) if members.insert(entry.address) => {
                    ordered.push(entry);
                    next = entry.next;
                }
                _ => break,
            }
        }
        done.extend(seen);
        done.extend(members);
        // A head on a stack is the private list of a task that wakes others.
        if !look.in_a_stack(head) {
            chains.push(Chain {
                head,
                entries: ordered,
            });
        }
    }
    Ok(chains)
}

/// The entry at this address, if it is one and belongs to a task we know.
fn linked_entry(
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

fn parse_entry(look: &Look, layout: &RwsemLayout, address: u64, bytes: &[u8]) -> Option<Entry> {
    let task = look.task_at(word(bytes, layout.waiter_task))?;
    let base = look.tasks[task].record.stack_base;
    // The entry of a task lies on that task's own stack.
    if !(base..base + look.thread_size()).contains(&address) {
        return None;
    }
    Some(Entry {
        task,
        address,
        mode: mode_of(half_word(bytes, layout.waiter_type))?,
        timeout: word(bytes, layout.waiter_timeout),
        next: word(bytes, 0),
        prev: word(bytes, 8),
    })
}

/// Reads lock and entries again; `None` if they are not (or no longer) a queue.
/// Waiters may have joined at the end meanwhile: they are in the next look.
fn verify(
    look: &Look,
    layout: &RwsemLayout,
    chain: &Chain,
    memory: &mut dyn KernelMemory,
) -> Result<Option<Queue>, MemoryError> {
    let lock = chain.head.wrapping_sub(layout.wait_list as u64);
    let mut reads = vec![(lock, layout.size)];
    reads.extend(
        chain
            .entries
            .iter()
            .map(|entry| (entry.address, layout.waiter_size)),
    );
    let mut bytes = memory.read_batch(&reads)?.into_iter();
    let Some(Some(lock_bytes)) = bytes.next() else {
        return Ok(None);
    };
    let (count, owner) = (
        word(&lock_bytes, layout.count),
        word(&lock_bytes, layout.owner),
    );
    let decoded = LockWord::decode(count, owner);
    let mut expected = word(&lock_bytes, layout.wait_list);
    let mut prev = chain.head;
    let mut entries = Vec::with_capacity(chain.entries.len());
    for (then, bytes) in chain.entries.iter().zip(bytes) {
        let now = bytes.and_then(|bytes| parse_entry(look, layout, then.address, &bytes));
        match now {
            Some(now)
                if now.address == expected
                    && now.prev == prev
                    && (now.task, now.mode, now.timeout)
                        == (then.task, then.mode, then.timeout) =>
            {
                expected = now.next;
                prev = now.address;
                entries.push(now);
            }
            _ => break,
        }
    }
    let complete = entries.len() == chain.entries.len() && decoded.has_waiters;
    Ok(complete.then_some(Queue {
        lock: LockAddr(lock),
        count,
        owner,
        word: decoded,
        entries,
        granted: Vec::new(),
        spinners: Vec::new(),
    }))
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

/// A spinner runs in the slow path without an entry, while the lock's spinner queue
/// is not empty and its address is on the task's stack.
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
        if half_word(&bytes, 0) == 0 {
            continue;
        }
        queue.spinners = running
            .iter()
            .copied()
            .filter(|index| !queue.entries.iter().any(|entry| entry.task == *index))
            .filter(|&index| look.words(&look.tasks[index]).contains(&queue.lock.0))
            .collect();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        lock::LockState,
        survey::image::{Image, JIFFIES, RWSEM, SLOW_PATH, entry_address},
    };

    const LOCK: u64 = 0xffff_8882_0000_0040;
    const READ_SLOW_PATH: Range<u64> = SLOW_PATH - 0x50..SLOW_PATH + 0x50;
    const SLOW_PATHS: &[Range<u64>] = &[READ_SLOW_PATH];

    fn find_in(image: &Image, tasks: u64) -> Queues {
        find(&image.look(tasks), &RWSEM, SLOW_PATHS, &mut image.clone()).unwrap()
    }

    #[test]
    fn a_queue_is_found_in_order() {
        let mut image = Image::default();
        image.queue(LOCK, 0x102, 3, &[0, 1, 1]);
        let found = find_in(&image, 4);
        let [queue] = &found.queues[..] else {
            panic!("{found:?}")
        };
        assert_eq!(
            (queue.lock, queue.word.state),
            (LockAddr(LOCK), LockState::ReadHeld)
        );
        let order: Vec<_> = queue
            .entries
            .iter()
            .map(|entry| (entry.task, entry.mode))
            .collect();
        assert_eq!(
            order,
            [
                (0, LockMode::Write),
                (1, LockMode::Read),
                (2, LockMode::Read)
            ]
        );
    }

    #[test]
    fn a_waiter_nobody_recognised_is_read_from_memory() {
        let mut image = Image::default();
        image.queue(LOCK, 0x102, 3, &[0, 1, 1]);
        let mut look = image.look(3);
        // Task 2 runs: the first waiter may spin, and its stack shows no slow path.
        look.tasks[1].record.on_cpu = 1;
        let blind: [Range<u64>; 0] = [];
        assert!(
            find(&look, &RWSEM, &blind, &mut image.clone())
                .unwrap()
                .queues
                .is_empty()
        );
        let (mut entries, _) = entries_on_stacks(&look, &RWSEM, SLOW_PATHS);
        entries.remove(1);
        let chains = chains(&look, &RWSEM, entries, &mut image).unwrap();
        assert_eq!(chains.len(), 1);
        assert_eq!(chains[0].entries.len(), 3);
    }

    #[test]
    fn a_forged_entry_makes_no_queue() {
        // An entry on a stack, with links into a page that user space filled, but no
        // lock that points back.
        let mut image = Image::default();
        image.entry(1, 1, LOCK + 24, LOCK + 24);
        assert!(
            find_in(&image, 1).queues.is_empty(),
            "the lock cannot be read"
        );
        image.lock(LOCK, 0x102, 3, entry_address(2), entry_address(2));
        assert!(
            find_in(&image, 1).queues.is_empty(),
            "the list starts elsewhere"
        );
        image.lock(LOCK, 0x100, 3, entry_address(1), entry_address(1));
        assert!(
            find_in(&image, 1).queues.is_empty(),
            "the count knows of no waiters"
        );
        image.lock(LOCK, 0x102, 3, entry_address(1), entry_address(1));
        assert_eq!(find_in(&image, 1).queues.len(), 1);
    }

    #[test]
    fn the_private_list_of_a_waker_is_no_lock() {
        let mut image = Image::default();
        let private = entry_address(2) + 0x100;
        image.entry(1, 1, private, private);
        image.lock(private - 24, 0x102, 3, entry_address(1), entry_address(1));
        let found = find_in(&image, 2);
        assert!(found.queues.is_empty());
    }

    #[test]
    fn a_granted_reader_is_no_waiter() {
        let mut image = Image::default();
        image.queue(LOCK, 0x102, 3, &[0]);
        image.entry(2, 1, entry_address(3), entry_address(3));
        image.set(entry_address(2) + 16, 0);
        // The slow path keeps the lock's address.
        image.set(entry_address(2) - 0x40, LOCK);
        let found = find_in(&image, 2);
        let [queue] = &found.queues[..] else {
            panic!("{found:?}")
        };
        assert_eq!(queue.entries.len(), 1);
        assert_eq!(
            queue
                .granted
                .iter()
                .map(|entry| entry.task)
                .collect::<Vec<_>>(),
            [1]
        );
        assert!(
            queue
                .granted
                .iter()
                .all(|entry| is_recent(entry.timeout, JIFFIES))
        );
    }

    proptest! {
        /// Whatever the links are: no panic, no endless walk, no waiter twice, and
        /// every queue that comes out is one that memory confirms.
        #[test]
        fn hostile_links_are_survived(links in prop::collection::vec((0u64..9, 0u64..9), 1..8)) {
            let mut image = Image::default();
            let target = |n: u64| if n == 0 { LOCK + 24 } else { entry_address(n) };
            let count = links.len() as u64;
            for (index, &(next, prev)) in links.iter().enumerate() {
                image.entry(index as u64 + 1, 1, target(next), target(prev));
            }
            image.lock(LOCK, 0x102, 3, target(links[0].0), target(links[0].1));
            for queue in find_in(&image, count).queues {
                let mut tasks: Vec<_> = queue.entries.iter().map(|entry| entry.task).collect();
                tasks.sort_unstable();
                tasks.dedup();
                prop_assert_eq!(tasks.len(), queue.entries.len());
                prop_assert!(queue.word.has_waiters);
            }
        }
    }
}
