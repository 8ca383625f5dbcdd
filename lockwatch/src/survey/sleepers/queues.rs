//! The wait queue, completion or bit that a task is queued on.
//!
//! Its entry lies on the task's own stack and names the task. Whether it is the live one,
//! and no left-over of an earlier wait, its neighbours in the list tell: both point at it.

use rustc_hash::FxHashMap;

use crate::{
    kernel::{
        arch::is_kernel_address,
        memory::{KernelMemory, MemoryError, half_word, word},
        symbols::Symbols,
        wait_queues::{KeyLayout, SimpleLayout, WaitLayout, Wake, are_flags, wake_of},
    },
    sleeper::QueueKind,
    survey::look::Look,
};

/// Entries of tasks that are not asked for, and entries that lie on no stack, that are
/// read on the way to one head.
const OTHERS_MAX: usize = 64;

/// What a task is queued on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Queued {
    /// What kind of thing.
    pub(super) kind: QueueKind,
    /// Where; of a bit, its byte.
    pub(super) address: u64,
    /// Which bit of the word; 0 for what is none.
    pub(super) bit: u32,
}

/// Reads wait queues.
pub(super) struct Queues<'a> {
    /// The look.
    pub(super) look: &'a Look,
    /// How they are made.
    pub(super) layout: &'a WaitLayout,
    /// The kernel's symbols.
    pub(super) symbols: &'a Symbols,
    /// Kernel memory.
    pub(super) memory: &'a mut dyn KernelMemory,
}

/// What looks like an entry.
#[derive(Clone, Copy)]
struct Entry {
    /// Index into [`Look::tasks`].
    task: usize,
    /// Where its links lie, and what they are.
    links: u64,
    next: u64,
    prev: u64,
    sort: Sort,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sort {
    /// A `wait_queue_entry` that stands for its queue.
    Queue,
    /// One that stands for this.
    Key(Queued),
    /// A `swait_queue`.
    Simple,
}

impl Queues<'_> {
    /// What each of these tasks is queued on, by its index. What only one task can wait
    /// for, because it lies on a stack, is left out.
    ///
    /// # Errors
    /// When kernel memory cannot be read at all.
    pub(super) fn of_tasks(
        &mut self,
        tasks: &[usize],
    ) -> Result<FxHashMap<usize, Queued>, MemoryError> {
        let mut entries = Vec::new();
        for &task in tasks {
            self.on_stack(task, &mut entries);
        }
        let neighbours: Vec<(u64, usize)> = entries
            .iter()
            .flat_map(|entry: &Entry| [(entry.next.wrapping_add(8), 8), (entry.prev, 8)])
            .collect();
        let read = self.memory.read_batch(&neighbours)?;
        let mut back = read.chunks_exact(2);
        entries.retain(|entry| {
            let points_back = |bytes: &Option<Vec<u8>>| {
                bytes.as_deref().map(|bytes| word(bytes, 0)) == Some(entry.links)
            };
            back.next().is_some_and(|both| both.iter().all(points_back))
        });
        // The innermost one is what it sleeps for.
        entries.dedup_by_key(|entry| entry.task);
        let next = entries
            .iter()
            .map(|entry| (entry.links, entry.next))
            .collect();
        let mut heads = Heads {
            next,
            known: FxHashMap::default(),
        };
        let mut found = FxHashMap::default();
        for entry in &entries {
            let queued = match entry.sort {
                Sort::Key(queued) => Some(queued),
                Sort::Queue | Sort::Simple => match self.head(entry, &mut heads)? {
                    Some(head) => self.queued(head, entry.sort)?,
                    None => None,
                },
            };
            if let Some(queued) = queued.filter(|queued| !self.look.in_a_stack(queued.address)) {
                found.insert(entry.task, queued);
            }
        }
        Ok(found)
    }

    /// The entries that name this task on its own stack, innermost first.
    fn on_stack(&self, index: usize, entries: &mut Vec<Entry>) {
        let task = &self.look.tasks[index];
        let words = self.look.words(task);
        let is_link = |link: u64| is_kernel_address(link) && link.is_multiple_of(8);
        let layout = self.layout.entry;
        for at in (0..words.len()).filter(|&at| words[at] == task.record.task) {
            let entry = |start: usize, links: usize, sort: Sort| {
                let links = start + links / 8;
                let (next, prev) = (*words.get(links)?, *words.get(links + 1)?);
                let address = task.word_address(links);
                (is_link(next) && is_link(prev) && next != address).then_some(Entry {
                    task: index,
                    links: address,
                    next,
                    prev,
                    sort,
                })
            };
            let queue = || {
                let start = at.checked_sub(layout.task / 8)?;
                let wake = *words.get(start + layout.wake / 8)?;
                if !are_flags(words[start + layout.flags / 8]) {
                    return None;
                }
                let sort = self.sort(words, start, wake_of(self.symbols, wake)?)?;
                entry(start, layout.links, sort)
            };
            let simple = || {
                let simple = self.layout.simple?;
                let start = at.checked_sub(simple.task / 8)?;
                entry(start, simple.links, Sort::Simple)
            };
            entries.extend(queue().or_else(simple));
        }
    }

    /// What an entry stands for that begins at this word.
    fn sort(&self, words: &[u64], start: usize, wake: Wake) -> Option<Sort> {
        let key = |layout: KeyLayout| {
            let start = start.checked_sub(layout.entry / 8)?;
            let address = *words.get(start + layout.word / 8)?;
            let bit = *words.get(start + layout.bit / 8)? as u32;
            is_kernel_address(address).then_some((address, bit))
        };
        let bit = |layout: KeyLayout| {
            let (address, bit) = key(layout)?;
            (bit < 64).then(|| Queued {
                kind: QueueKind::Bit,
                address: address + u64::from(bit / 8),
                bit,
            })
        };
        Some(match wake {
            Wake::Queue => Sort::Queue,
            Wake::Bit => Sort::Key(bit(self.layout.bit?)?),
            Wake::Page => Sort::Key(bit(self.layout.page?)?),
            Wake::Variable => {
                let (address, _) = key(self.layout.bit?)?;
                Sort::Key(Queued {
                    kind: QueueKind::WaitQueue,
                    address,
                    bit: 0,
                })
            }
        })
    }

    /// The node in the list of this entry that is no entry.
    fn head(&mut self, entry: &Entry, heads: &mut Heads) -> Result<Option<u64>, MemoryError> {
        let mut path = vec![entry.links];
        let mut at = entry.next;
        let mut others = 0;
        let head = loop {
            if let Some(&known) = heads.known.get(&at) {
                break known;
            }
            // It went round without one, or through more than there are.
            if at == entry.links || path.len() > heads.next.len() + OTHERS_MAX {
                break None;
            }
            let next = match heads.next.get(&at) {
                Some(&next) => Some(next),
                None if others == OTHERS_MAX => break None,
                None => {
                    others += 1;
                    self.next_of(at, entry.sort)?
                }
            };
            match next {
                Some(next) => {
                    path.push(at);
                    at = next;
                }
                None => break Some(at),
            }
        };
        heads
            .known
            .extend(path.into_iter().map(|node| (node, head)));
        Ok(head)
    }

    /// What follows this node, if it is an entry.
    fn next_of(&mut self, node: u64, sort: Sort) -> Result<Option<u64>, MemoryError> {
        let (links, task, size) = match (sort, self.layout.simple) {
            (
                Sort::Simple,
                Some(SimpleLayout {
                    links, task, size, ..
                }),
            ) => (links, task, size),
            _ => {
                let entry = self.layout.entry;
                (entry.links, entry.task, entry.size)
            }
        };
        let start = node.wrapping_sub(links as u64);
        let Some(bytes) = self.memory.read(start, size)? else {
            return Ok(None);
        };
        let is_of_task = self.look.task_at(word(&bytes, task)).is_some_and(|index| {
            let base = self.look.tasks[index].record.stack_base;
            (base..base + self.look.thread_size()).contains(&node)
        });
        // One that polls: it lies on no stack.
        let polls = || {
            sort == Sort::Queue
                && wake_of(self.symbols, word(&bytes, self.layout.entry.wake)).is_some()
        };
        Ok((is_of_task || polls()).then(|| word(&bytes, links)))
    }

    /// What has this head.
    fn queued(&mut self, head: u64, sort: Sort) -> Result<Option<Queued>, MemoryError> {
        let (Sort::Simple, Some(simple)) = (sort, self.layout.simple) else {
            return Ok(Some(Queued {
                kind: QueueKind::WaitQueue,
                address: head.wrapping_sub(self.layout.head),
                bit: 0,
            }));
        };
        if let Some((list, done)) = simple.completion {
            let address = head.wrapping_sub(list);
            let read = self.memory.read(address.wrapping_add(done), 4)?;
            // Nobody waits for one that is done.
            if read.is_some_and(|bytes| half_word(&bytes, 0) == 0) {
                return Ok(Some(Queued {
                    kind: QueueKind::Completion,
                    address,
                    bit: 0,
                }));
            }
        }
        Ok(Some(Queued {
            kind: QueueKind::WaitQueue,
            address: head.wrapping_sub(simple.head),
            bit: 0,
        }))
    }
}

/// Lists as far as they are known.
struct Heads {
    /// What follows each verified entry.
    next: FxHashMap<u64, u64>,
    /// The heads of the lists of nodes; `None` where none was found.
    known: FxHashMap<u64, Option<u64>>,
}
