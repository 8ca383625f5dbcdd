//! Waiters of rt_mutexes: the kernel itself says what a task waits for
//! (`task->pi_blocked_on`), and the lock's tree of waiters says in which order.
//!
//! On PREEMPT_RT rwsems and mutexes are made of rt_mutexes; which of them one is, its
//! waiters' functions tell.

use std::collections::BTreeMap;

use rustc_hash::{FxHashMap, FxHashSet};

use super::{Entry, Queue, Queues};
use crate::{
    kernel::{
        arch::is_kernel_address,
        locks::{
            LockLayouts, PiLayout, RT_MUTEX_ASKS, RT_MUTEX_ITSELF_ASKS, RT_RWSEM_ASKS,
            RT_SPINLOCK_ASKS, RtRwsemLayout, WordLayout, is_pi_futex,
        },
        memory::{KernelMemory, MemoryError, word},
    },
    lock::{LockAddr, LockKind, LockMode},
    survey::{asking::Asking, functions::Functions, look::Look},
};

/// A tree that is being changed is read again this often.
const ATTEMPTS: usize = 8;
/// Most waiters of one lock that are read.
const WAITERS_MAX: usize = 100_000;
/// Deepest tree: twice the height that so many waiters need.
const DEPTH_MAX: usize = 40;

/// Finds and verifies the queue of every rt_mutex.
///
/// # Errors
/// When kernel memory cannot be read at all.
pub(in crate::survey) fn find(
    look: &Look,
    locks: &LockLayouts,
    functions: &mut Functions<'_>,
    memory: &mut dyn KernelMemory,
) -> Result<Queues, MemoryError> {
    let mut found = Queues::default();
    let Some(layout) = &locks.pi else {
        return Ok(found);
    };
    for (rt_mutex, tasks) in groups(look, layout, memory)? {
        let asked = asked_of(look, functions, &tasks, locks.rt_rwsem.is_some());
        let read = Read {
            look,
            layout,
            rwsem: locks.rt_rwsem.as_ref().filter(|_| asked == Asked::Rwsem),
            rt_mutex,
        };
        let mut outcome = Outcome::Changed;
        for _ in 0..ATTEMPTS {
            outcome = read.once(&tasks, functions, memory)?;
            if !matches!(outcome, Outcome::Changed) {
                break;
            }
        }
        match outcome {
            Outcome::Queue(mut queue) => {
                queue.kind = match asked {
                    Asked::Rwsem => LockKind::Rwsem,
                    Asked::Mutex => LockKind::Mutex,
                    Asked::RtMutex | Asked::Spinlock => LockKind::RtMutex,
                };
                queue.is_spinlock = asked == Asked::Spinlock;
                found.queues.push(*queue);
            }
            Outcome::Gone => {}
            Outcome::Changed => found.unsettled += 1,
        }
    }
    Ok(found)
}

/// The tasks that wait for each rt_mutex. What the task says is checked against what it
/// points at: a waiter on that task's own stack, of that task.
fn groups(
    look: &Look,
    layout: &PiLayout,
    memory: &mut dyn KernelMemory,
) -> Result<BTreeMap<u64, Vec<usize>>, MemoryError> {
    let waiting: Vec<usize> = (0..look.tasks.len())
        .filter(|&index| {
            let record = &look.tasks[index].record;
            (record.stack_base..record.stack_base + look.thread_size())
                .contains(&record.pi_blocked_on)
        })
        .collect();
    let waiter = |&index: &usize| (look.tasks[index].record.pi_blocked_on, layout.waiter_size);
    let reads: Vec<(u64, usize)> = waiting.iter().map(waiter).collect();
    let mut groups: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (index, bytes) in waiting.into_iter().zip(memory.read_batch(&reads)?) {
        let Some(bytes) = bytes else { continue };
        let lock = word(&bytes, layout.waiter_lock);
        let is_own = word(&bytes, layout.waiter_task) == look.tasks[index].record.task;
        if is_own && is_kernel_address(lock) && !look.in_a_stack(lock) {
            groups.entry(lock).or_default().push(index);
        }
    }
    Ok(groups)
}

/// What a task asked for when it came to wait for an rt_mutex.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Rwsem,
    Mutex,
    RtMutex,
    Spinlock,
}

/// By the functions of those who wait; the first that tells counts for all.
fn asked_of(look: &Look, functions: &mut Functions<'_>, tasks: &[usize], is_rt: bool) -> Asked {
    /// `TASK_RTLOCK_WAIT` (include/linux/sched.h 5.15+): asleep for a spinlock.
    const RTLOCK_WAIT: u32 = 0x1000;
    if !is_rt {
        return Asked::RtMutex;
    }
    for &index in tasks {
        if look.tasks[index].record.state & RTLOCK_WAIT != 0 {
            return Asked::Spinlock;
        }
        if let Some((asked, _)) = asker(look, functions, index) {
            return asked;
        }
    }
    // What is left are calls that became jumps; a mutex is by far the likeliest.
    Asked::Mutex
}

/// The outermost function on this stack that asks for a lock.
fn asker<'k>(look: &Look, functions: &mut Functions<'k>, index: usize) -> Option<(Asked, &'k str)> {
    let task = &look.tasks[index];
    let asking = Asking::of(functions, look, task)?;
    let caller = task.frames.get(asking.own_frames);
    if let Some(caller) = caller.map(|caller| functions.stem(caller.return_address))
        && is_pi_futex(caller)
    {
        return Some((Asked::RtMutex, caller));
    }
    asking.functions(functions).find_map(|(stem, _)| {
        let asked = match stem {
            _ if RT_RWSEM_ASKS.contains(&stem) => Asked::Rwsem,
            _ if RT_MUTEX_ASKS.contains(&stem) => Asked::Mutex,
            _ if RT_SPINLOCK_ASKS.contains(&stem) => Asked::Spinlock,
            _ if RT_MUTEX_ITSELF_ASKS.contains(&stem) => Asked::RtMutex,
            _ => return None,
        };
        Some((asked, stem))
    })
}

enum Outcome {
    Queue(Box<Queue>),
    /// Nobody of those waits any more.
    Gone,
    /// It changed while it was read.
    Changed,
}

/// One rt_mutex to be read.
struct Read<'a> {
    look: &'a Look,
    layout: &'a PiLayout,
    /// The rwsem it is a part of, if it is.
    rwsem: Option<&'a RtRwsemLayout>,
    rt_mutex: u64,
}

impl Read<'_> {
    fn once(
        &self,
        tasks: &[usize],
        functions: &mut Functions<'_>,
        memory: &mut dyn KernelMemory,
    ) -> Result<Outcome, MemoryError> {
        let (lock, size, layout) = match self.rwsem {
            Some(rwsem) => (
                self.rt_mutex.wrapping_sub(rwsem.rtmutex as u64),
                rwsem.size,
                rwsem.word,
            ),
            None => (
                self.rt_mutex,
                self.layout.size,
                WordLayout::RtMutex {
                    owner: self.layout.owner,
                },
            ),
        };
        let Some(bytes) = memory.read(lock, size)? else {
            return Ok(Outcome::Gone);
        };
        let root = word(&bytes, (self.rt_mutex - lock) as usize + self.layout.root);
        let Some(order) = self.walk(root, memory)? else {
            return Ok(Outcome::Changed);
        };
        // Whoever still waits must be in the tree.
        let reads: Vec<(u64, usize)> = tasks
            .iter()
            .map(|&index| {
                let waiter = self.look.tasks[index].record.pi_blocked_on;
                (waiter, self.layout.waiter_size)
            })
            .collect();
        let known: FxHashSet<(u64, u64)> = order.iter().copied().collect();
        for (&index, bytes) in tasks.iter().zip(memory.read_batch(&reads)?) {
            let record = &self.look.tasks[index].record;
            let still = bytes.is_some_and(|bytes| self.is_waiter(&bytes, record.task));
            if still && !known.contains(&(record.pi_blocked_on, record.task)) {
                return Ok(Outcome::Changed);
            }
        }
        let mut entries = Vec::with_capacity(order.len());
        for (place, &(address, task)) in order.iter().enumerate() {
            let known = self
                .look
                .task_at(task)
                .filter(|&index| self.look.tasks[index].record.pi_blocked_on == address);
            // Tasks that have come since the look take their places, but are left out.
            let Some(index) = known else { continue };
            entries.push(Entry {
                task: index,
                address,
                mode: self.mode(functions, index),
                timeout: None,
                position: u32::try_from(place + 1).unwrap_or(u32::MAX),
                next: 0,
                prev: 0,
            });
        }
        if entries.is_empty() {
            return Ok(Outcome::Gone);
        }
        let mut queue = Queue {
            lock: LockAddr(lock),
            kind: LockKind::RtMutex,
            is_spinlock: false,
            by_priority: true,
            word: layout.decode(&bytes, true),
            entries,
            granted: Vec::new(),
            spinners: Vec::new(),
        };
        queue.put_drainer_first(self.look);
        Ok(Outcome::Queue(Box::new(queue)))
    }

    fn mode(&self, functions: &mut Functions<'_>, index: usize) -> LockMode {
        let reads = self.rwsem.is_some()
            && asker(self.look, functions, index).is_some_and(|(_, asker)| asker.contains("read"));
        if reads {
            LockMode::Read
        } else {
            LockMode::Write
        }
    }

    fn is_waiter(&self, bytes: &[u8], task: u64) -> bool {
        word(bytes, self.layout.waiter_task) == task
            && word(bytes, self.layout.waiter_lock) == self.rt_mutex
    }

    /// The waiters of the tree, with their tasks, in its order: by priority, then first
    /// come, first served. `None` if the tree is not one, or not of this lock.
    fn walk(
        &self,
        root: u64,
        memory: &mut dyn KernelMemory,
    ) -> Result<Option<Vec<(u64, u64)>>, MemoryError> {
        let mut nodes: FxHashMap<u64, Vec<u8>> = FxHashMap::default();
        let mut level: Vec<u64> = Vec::from_iter((root != 0).then_some(root));
        for _ in 0..DEPTH_MAX {
            if level.is_empty() {
                return Ok(Some(self.in_order(root, &nodes)));
            }
            let waiter = |&node: &u64| {
                (
                    node.wrapping_sub(self.layout.waiter_node as u64),
                    self.layout.waiter_size,
                )
            };
            let reads: Vec<(u64, usize)> = level.iter().map(waiter).collect();
            let read = memory.read_batch(&reads)?;
            let mut below = Vec::new();
            for (node, bytes) in level.into_iter().zip(read) {
                let Some(bytes) = bytes.filter(|_| is_kernel_address(node)) else {
                    return Ok(None);
                };
                let is_own = self.rt_mutex == word(&bytes, self.layout.waiter_lock);
                below.extend(self.children(&bytes).into_iter().filter(|&node| node != 0));
                if !is_own || nodes.len() >= WAITERS_MAX || nodes.insert(node, bytes).is_some() {
                    return Ok(None);
                }
            }
            level = below;
        }
        Ok(None)
    }

    /// Left and right of the waiter with these bytes.
    fn children(&self, bytes: &[u8]) -> [u64; 2] {
        let node = self.layout.waiter_node;
        [self.layout.node_left, self.layout.node_right].map(|child| word(bytes, node + child))
    }

    fn in_order(&self, root: u64, nodes: &FxHashMap<u64, Vec<u8>>) -> Vec<(u64, u64)> {
        let mut order = Vec::with_capacity(nodes.len());
        let mut path = Vec::new();
        let mut at = root;
        while at != 0 || !path.is_empty() {
            if let Some(bytes) = nodes.get(&at) {
                path.push((at, bytes));
                at = self.children(bytes)[0];
            } else if let Some((node, bytes)) = path.pop() {
                let waiter = node.wrapping_sub(self.layout.waiter_node as u64);
                order.push((waiter, word(bytes, self.layout.waiter_task)));
                at = self.children(bytes)[1];
            } else {
                break;
            }
        }
        order
    }
}

#[cfg(test)]
mod tests;
