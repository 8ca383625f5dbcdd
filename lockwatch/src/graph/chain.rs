//! Chains: whom, in the end, everybody waits for.
//!
//! A chain follows lock → holder → the lock that the holder waits for → its holder … to
//! a task that waits for no lock: the root. One chain is made per root; it knows every
//! lock behind that root. Tasks that wait for each other in a circle have no root: the
//! circle becomes a chain of its own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    lock::{Confidence, Holder, Lock, LockAddr, Waiter},
    task::{Stuck, TaskKey, TaskName},
};

/// One link of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A task that holds the lock before it and waits for the lock after it.
    Task(TaskName),
    /// A lock that the task before it waits for and the task after it holds.
    Lock(LockAddr),
}

/// One root and what waits behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The task everything else waits for; in a cycle, its member with the lowest tid.
    pub root: TaskName,
    /// From the lock farthest away to the root. A cycle begins and ends with the root.
    pub path: Vec<Step>,
    /// Distinct tasks that wait for the root, directly or through others.
    /// In a cycle its members are among them.
    pub blocked_tasks: u32,
    /// Why the root does not go on.
    pub stuck: Stuck,
    /// The tasks on `path` wait for each other.
    pub cycle: bool,
    /// For each lock behind the root, its holder on the shortest way there.
    holders: BTreeMap<LockAddr, TaskName>,
    /// For each task on such a way, the lock it waits for.
    waits: BTreeMap<TaskKey, LockAddr>,
}

impl Chain {
    /// The locks behind the root.
    pub fn locks(&self) -> impl Iterator<Item = LockAddr> {
        self.holders.keys().copied()
    }

    /// The shortest way from this lock to the root: its holder, the lock that one waits
    /// for, …, the root. None if the lock is not behind this root.
    pub fn route(&self, lock: LockAddr) -> Option<Vec<Step>> {
        let mut route = Vec::new();
        let mut at = lock;
        // No way is longer than every lock once.
        for _ in 0..self.holders.len() {
            let holder = self.holders.get(&at)?;
            route.push(Step::Task(holder.clone()));
            if holder.key == self.root.key {
                return Some(route);
            }
            at = *self.waits.get(&holder.key)?;
            route.push(Step::Lock(at));
        }
        None
    }
}

/// The chains among these locks, the one with most blocked tasks first.
///
/// Only holders that are `likely` or `certain` count: a lock without one is in no chain.
/// The order of `locks` makes no difference.
pub fn chains(locks: &[Lock]) -> Vec<Chain> {
    let edges = Edges::new(locks);
    let mut chains: Vec<Chain> = edges
        .held
        .keys()
        .filter(|&task| !edges.waits.contains_key(task))
        .filter_map(|&root| edges.chain(root))
        .chain(edges.cycles())
        .collect();
    chains.sort_by(|a, b| {
        b.blocked_tasks
            .cmp(&a.blocked_tasks)
            .then_with(|| b.cycle.cmp(&a.cycle))
            .then_with(|| a.root.key.cmp(&b.root.key))
    });
    chains
}

/// True if this holder's name carries enough evidence to follow it.
fn is_known(holder: &Holder) -> bool {
    holder.confidence >= Confidence::Likely
}

/// The waiters that do not have the lock yet.
fn blocked(lock: &Lock) -> impl Iterator<Item = &Waiter> {
    lock.waiters.iter().filter(|waiter| !waiter.granted)
}

/// Who holds and who waits for what, by index into `locks`.
struct Edges<'a> {
    locks: Vec<&'a Lock>,
    held: BTreeMap<TaskKey, Vec<(usize, &'a Holder)>>,
    waits: BTreeMap<TaskKey, Vec<usize>>,
}

/// Everything that waits for one task.
struct Reach {
    /// For each lock, who holds it on the shortest way to the task.
    holders: BTreeMap<usize, TaskKey>,
    /// For each waiting task, the lock it waits for on that way.
    waits: BTreeMap<TaskKey, usize>,
    /// The lock at the end of the longest of these ways.
    farthest: Option<usize>,
}

impl<'a> Edges<'a> {
    fn new(locks: &'a [Lock]) -> Self {
        let mut sorted: Vec<&Lock> = locks.iter().collect();
        sorted.sort_by_key(|lock| lock.address);
        sorted.dedup_by_key(|lock| lock.address);
        let mut held: BTreeMap<TaskKey, Vec<(usize, &Holder)>> = BTreeMap::new();
        let mut waits: BTreeMap<TaskKey, Vec<usize>> = BTreeMap::new();
        for (index, lock) in sorted.iter().enumerate() {
            for holder in lock.holders.iter().filter(|holder| is_known(holder)) {
                held.entry(holder.task.key)
                    .or_default()
                    .push((index, holder));
            }
            for waiter in blocked(lock) {
                waits.entry(waiter.task.key).or_default().push(index);
            }
        }
        Self {
            locks: sorted,
            held,
            waits,
        }
    }

    /// Goes outwards from a task, breadth first, so that ways are shortest.
    fn reach(&self, root: TaskKey) -> Reach {
        let mut holders = BTreeMap::new();
        let mut waits = BTreeMap::new();
        let mut farthest: Option<(usize, usize, usize)> = None;
        let mut queue = VecDeque::from([(root, 0_usize)]);
        while let Some((task, depth)) = queue.pop_front() {
            for &(index, _) in self.held.get(&task).map_or(&[][..], Vec::as_slice) {
                if holders.contains_key(&index) {
                    continue;
                }
                let mut waiters = 0;
                for waiter in blocked(self.locks[index]) {
                    waiters += 1;
                    let key = waiter.task.key;
                    if waits.contains_key(&key) {
                        continue;
                    }
                    waits.insert(key, index);
                    if key != root {
                        queue.push_back((key, depth + 1));
                    }
                }
                holders.insert(index, task);
                // Of equally long ways the one with more waiters at its end, then the
                // lower address (met first).
                if waiters > 0
                    && farthest.is_none_or(|(far, many, _)| (depth, waiters) > (far, many))
                {
                    farthest = Some((depth, waiters, index));
                }
            }
        }
        Reach {
            holders,
            waits,
            farthest: farthest.map(|(_, _, index)| index),
        }
    }

    /// The chain of a root; none if nobody waits for it.
    fn chain(&self, root: TaskKey) -> Option<Chain> {
        let reach = self.reach(root);
        let from = self.locks[reach.farthest?].address;
        let mut chain = self.assemble(root, &reach)?;
        chain.path = vec![Step::Lock(from)];
        chain.path.extend(chain.route(from)?);
        Some(chain)
    }

    /// One chain for every group of tasks that wait for each other.
    fn cycles(&self) -> Vec<Chain> {
        let mut cycles = Vec::new();
        let mut done: BTreeSet<TaskKey> = BTreeSet::new();
        for (&task, locks) in &self.waits {
            if done.contains(&task) || !self.held.contains_key(&task) {
                continue;
            }
            let reach = self.reach(task);
            if !reach.waits.contains_key(&task) {
                continue;
            }
            // The group: what waits for the task and what the task waits for.
            done.extend(
                self.ahead(task)
                    .into_iter()
                    .filter(|key| reach.waits.contains_key(key)),
            );
            let Some(mut chain) = self.assemble(task, &reach) else {
                continue;
            };
            let circle = locks
                .iter()
                .map(|&index| self.locks[index].address)
                .filter_map(|address| Some((address, chain.route(address)?)))
                .min_by_key(|(_, route)| route.len());
            if let Some((address, route)) = circle {
                chain.cycle = true;
                chain.path = vec![Step::Task(chain.root.clone()), Step::Lock(address)];
                chain.path.extend(route);
                cycles.push(chain);
            }
        }
        cycles
    }

    /// The tasks that this one waits for, directly or through others.
    fn ahead(&self, task: TaskKey) -> BTreeSet<TaskKey> {
        let mut ahead = BTreeSet::new();
        let mut stack = vec![task];
        while let Some(task) = stack.pop() {
            for &index in self.waits.get(&task).map_or(&[][..], Vec::as_slice) {
                for holder in self.locks[index].holders.iter().filter(|h| is_known(h)) {
                    if ahead.insert(holder.task.key) {
                        stack.push(holder.task.key);
                    }
                }
            }
        }
        ahead
    }

    fn assemble(&self, root: TaskKey, reach: &Reach) -> Option<Chain> {
        let (_, holder) = self.held.get(&root)?.first()?;
        let name = |key: &TaskKey| {
            let held = self.held.get(key)?.first()?;
            Some(held.1.task.clone())
        };
        Some(Chain {
            root: holder.task.clone(),
            path: Vec::new(),
            blocked_tasks: u32::try_from(reach.waits.len()).unwrap_or(u32::MAX),
            stuck: holder.stuck.clone(),
            cycle: false,
            holders: reach
                .holders
                .iter()
                .filter_map(|(&index, key)| Some((self.locks[index].address, name(key)?)))
                .collect(),
            waits: reach
                .waits
                .iter()
                .filter(|(key, _)| self.held.contains_key(key))
                .map(|(&key, &index)| (key, self.locks[index].address))
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests;
