//! From entries to queues: which hang together, on which lock, in which order.

use rustc_hash::{FxBuildHasher, FxHashMap, FxHashSet};

use super::{
    Queue,
    entry::{Entry, linked_entry, parse_entry, start_of},
};
use crate::{
    kernel::{
        arch::is_kernel_address,
        locks::{LockLayout, QueueLink},
        memory::{KernelMemory, MemoryError, half_word, word},
    },
    lock::LockAddr,
    survey::look::Look,
};

/// A queue of a thousand is read in a fraction of a millisecond; one whose waiters come
/// and go all the time is caught between two changes after a few attempts.
const ATTEMPTS: usize = 8;

/// Waiters of a ring whose stacks are asked for the lock.
const RING_ASKED: usize = 4;

/// Longest queue that is followed.
const QUEUE_MAX: u32 = 100_000;

/// Entries that hang together, as the look saw them.
pub(super) struct Group {
    /// The address that is no entry: the list's head. `None` where entries form a ring.
    head: Option<u64>,
    members: Vec<Entry>,
}

/// Which entries hang together. Each is followed back by `prev`, which does not change
/// when others join behind; entries of tasks that the look did not recognise (running
/// ones) are read from memory.
pub(super) fn groups(
    look: &Look,
    layout: &LockLayout,
    entries: Vec<Entry>,
    memory: &mut dyn KernelMemory,
) -> Result<Vec<Group>, MemoryError> {
    let mut known: FxHashMap<u64, Entry> = entries
        .iter()
        .map(|entry| (entry.address, *entry))
        .collect();
    let mut group_of: FxHashMap<u64, usize> =
        FxHashMap::with_capacity_and_hasher(entries.len(), FxBuildHasher);
    let mut by_head: FxHashMap<u64, usize> = FxHashMap::default();
    let mut groups: Vec<Group> = Vec::new();
    let mut path: Vec<Entry> = Vec::new();
    let mut on_path = FxHashSet::default();
    for entry in entries {
        let mut at = entry;
        let group = loop {
            if let Some(&group) = group_of.get(&at.address) {
                break group;
            }
            if !on_path.insert(at.address) || path.len() >= QUEUE_MAX as usize {
                groups.push(Group {
                    head: None,
                    members: Vec::new(),
                });
                break groups.len() - 1;
            }
            path.push(at);
            match linked_entry(look, layout, at.prev, &mut known, memory)? {
                Some(previous) => at = previous,
                None => {
                    break *by_head.entry(at.prev).or_insert_with(|| {
                        groups.push(Group {
                            head: Some(at.prev),
                            members: Vec::new(),
                        });
                        groups.len() - 1
                    });
                }
            }
        };
        for member in path.drain(..) {
            // One by one: to clear a large table for each entry would take the square of time.
            on_path.remove(&member.address);
            group_of.insert(member.address, group);
            groups[group].members.push(member);
        }
    }
    Ok(groups)
}

/// The locks that a group can hang on: one by its head; else whatever its first
/// entries' stacks point at, for the slow path keeps the lock's address.
fn lock_candidates(look: &Look, link: QueueLink, group: &Group) -> Vec<u64> {
    match (link, group.head) {
        // A head on a stack is the private list of a task that wakes others.
        (QueueLink::Head(offset), Some(head)) if !look.in_a_stack(head) => {
            vec![head.wrapping_sub(offset as u64)]
        }
        (QueueLink::First(_), None) => {
            let asked = group.members.iter().take(RING_ASKED);
            let mut words: Vec<u64> = asked
                .flat_map(|entry| look.scheduler_words(&look.tasks[entry.task]))
                .copied()
                .filter(|&word| {
                    is_kernel_address(word) && word.is_multiple_of(8) && !look.in_a_stack(word)
                })
                .collect();
            words.sort_unstable();
            words.dedup();
            words
        }
        _ => Vec::new(),
    }
}

/// The queue that a group is, read again until it is consistent in itself, whoever has
/// joined or left meanwhile; `None` if it is not (or no longer) a queue, or changes
/// faster than it can be read.
pub(super) fn settle(
    look: &Look,
    layout: &LockLayout,
    group: &Group,
    memory: &mut dyn KernelMemory,
) -> Result<Option<Queue>, MemoryError> {
    let candidates = lock_candidates(look, layout.queue, group);
    if candidates.is_empty() {
        return Ok(None);
    }
    for _ in 0..ATTEMPTS {
        if let Some(queue) = settle_once(look, layout, group, &candidates, memory)? {
            return Ok(Some(queue));
        }
    }
    Ok(None)
}

/// Reads the candidates and the entries again, and follows the queue from the lock.
fn settle_once(
    look: &Look,
    layout: &LockLayout,
    group: &Group,
    candidates: &[u64],
    memory: &mut dyn KernelMemory,
) -> Result<Option<Queue>, MemoryError> {
    let mut reads: Vec<(u64, usize)> = candidates.iter().map(|&lock| (lock, layout.size)).collect();
    reads.extend(
        group
            .members
            .iter()
            .map(|entry| (start_of(layout, entry.address), layout.entry.size)),
    );
    let mut locks = Vec::with_capacity(candidates.len());
    let mut entries = FxHashMap::default();
    entries.reserve(group.members.len());
    let (mut asked, mut members) = (candidates.iter(), group.members.iter());
    memory.read_each(&reads, &mut |bytes| {
        if let Some(&lock) = asked.next() {
            locks.push((lock, bytes.map(<[u8]>::to_vec)));
        } else if let (Some(then), Some(bytes)) = (members.next(), bytes)
            && let Some(now) = parse_entry(look, layout, then.address, bytes)
        {
            entries.insert(now.address, now);
        }
    })?;
    for (lock, bytes) in locks {
        let Some(bytes) = bytes else { continue };
        let (first, end) = match layout.queue {
            QueueLink::Head(offset) => (word(&bytes, offset), lock + offset as u64),
            QueueLink::First(offset) => {
                let first = word(&bytes, offset);
                (first, first)
            }
        };
        // Any word can be a lock's address as long as nothing is read behind it.
        if matches!(layout.queue, QueueLink::First(_)) && !entries.contains_key(&first) {
            continue;
        }
        let decoded = layout.word.decode(&bytes, true);
        let queue = follow(look, layout, (first, end), &mut entries, memory)?;
        if let (Some(entries), true) = (queue, decoded.has_waiters) {
            return Ok(Some(Queue {
                lock: LockAddr(lock),
                kind: layout.kind,
                is_spinlock: false,
                by_priority: false,
                word: decoded,
                entries,
                granted: Vec::new(),
                spinners: Vec::new(),
            }));
        }
    }
    Ok(None)
}

/// The entries from `first` until a link leads to `end`; `None` if the links, forth and
/// back, do not close. Tasks that have come since the look take their places in the
/// queue, but are left out.
fn follow(
    look: &Look,
    layout: &LockLayout,
    (first, end): (u64, u64),
    entries: &mut FxHashMap<u64, Entry>,
    memory: &mut dyn KernelMemory,
) -> Result<Option<Vec<Entry>>, MemoryError> {
    let mut queue: Vec<Entry> = Vec::with_capacity(entries.len());
    let mut first_prev = None;
    let mut previous = None;
    let mut next = first;
    let mut position = 0;
    while position == 0 || next != end {
        position += 1;
        let at = next;
        let known = linked_entry(look, layout, at, entries, memory)?;
        let links = match known {
            Some(entry) => Some((entry.next, entry.prev)),
            None => newcomer(look, layout, at, memory)?,
        };
        let Some((forth, back)) = links else {
            return Ok(None);
        };
        if previous.is_some_and(|previous| back != previous) || position > QUEUE_MAX {
            return Ok(None);
        }
        queue.extend(known.map(|entry| Entry { position, ..entry }));
        first_prev.get_or_insert(back);
        previous = Some(at);
        next = forth;
    }
    // A list's first entry points back to the head, a ring's to the last entry.
    let back = match layout.queue {
        QueueLink::Head(_) => Some(end),
        QueueLink::First(_) => previous,
    };
    Ok((first_prev == back && !queue.is_empty()).then_some(queue))
}

/// The links, forth and back, of an entry whose task was not there when the look was
/// taken: it lies on the stack of the task it names.
fn newcomer(
    look: &Look,
    layout: &LockLayout,
    address: u64,
    memory: &mut dyn KernelMemory,
) -> Result<Option<(u64, u64)>, MemoryError> {
    if !is_kernel_address(address) {
        return Ok(None);
    }
    let entry = &layout.entry;
    let Some(bytes) = memory.read(start_of(layout, address), entry.size)? else {
        return Ok(None);
    };
    let task = word(&bytes, entry.task);
    let mode = entry.mode.decode(half_word(&bytes, entry.mode.offset()));
    if !is_kernel_address(task) || mode.is_none() {
        return Ok(None);
    }
    let stack = memory
        .read_u64(task.wrapping_add(entry.task_stack))?
        .unwrap_or(0);
    let is_own = (stack..stack.saturating_add(look.thread_size())).contains(&address);
    Ok(is_own.then(|| (word(&bytes, entry.links), word(&bytes, entry.links + 8))))
}
