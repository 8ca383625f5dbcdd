//! Chains: whom, in the end, everybody waits for.
//!
//! A chain follows lock → holder → the lock that the holder waits for → its holder … to
//! a task that waits for no lock: the root. It goes on through daemons: a holder that waits
//! for a FUSE server's answer waits for the thread that serves it. One chain is made per
//! root; it knows every lock behind that root. Tasks that wait for each other in a circle
//! have no root: the circle becomes a chain of its own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    daemon::{ConnectionAddr, Daemon, DaemonThread},
    lock::{Holder, Lock, LockAddr, Waiter},
    task::{Stuck, TaskKey, TaskName},
};

/// One link of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A task that holds the lock before it and waits for the lock after it.
    Task(TaskName),
    /// A lock that the task before it waits for and the task after it holds.
    Lock(LockAddr),
    /// A thread that serves the task before it and waits for the lock after it.
    Daemon(TaskName),
}

/// One root and what waits behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The task everything else waits for; in a cycle, its member with the lowest tid.
    pub root: TaskName,
    /// From the lock or daemon farthest away to the root. A cycle begins and ends with the
    /// root.
    pub path: Vec<Step>,
    /// Distinct tasks that wait for the root, directly or through others.
    /// In a cycle its members are among them.
    pub blocked_tasks: u32,
    /// Why the root does not go on.
    pub stuck: Stuck,
    /// The tasks on `path` wait for each other.
    pub cycle: bool,
    /// For each lock or daemon behind the root, its holder on the shortest way there.
    holders: BTreeMap<Node, TaskName>,
    /// For each task on such a way, what it waits for.
    waits: BTreeMap<TaskKey, Node>,
}

impl Chain {
    /// The locks behind the root.
    pub fn locks(&self) -> impl Iterator<Item = LockAddr> {
        self.holders.keys().filter_map(|node| match node {
            Node::Lock(address) => Some(*address),
            Node::Daemon(_) => None,
        })
    }

    /// The shortest way from this lock to the root: its holder, the lock that one waits
    /// for, …, the root. None if the lock is not behind this root.
    pub fn route(&self, lock: LockAddr) -> Option<Vec<Step>> {
        self.route_from(Node::Lock(lock))
    }

    /// The same chain for another root, which keeps the same nodes.
    fn with_root(&self, root: Keeper<'_>) -> Self {
        let mut chain = self.clone();
        for holder in chain.holders.values_mut() {
            if holder.key == self.root.key {
                holder.clone_from(root.task);
            }
        }
        if let Some(Step::Task(last) | Step::Daemon(last)) = chain.path.last_mut() {
            last.clone_from(root.task);
        }
        chain.root = root.task.clone();
        chain.stuck = root.stuck.clone();
        chain
    }

    fn route_from(&self, node: Node) -> Option<Vec<Step>> {
        let mut route = Vec::new();
        let mut at = node;
        // No way is longer than every node once.
        for _ in 0..self.holders.len() {
            let holder = self.holders.get(&at)?;
            route.push(at.held_by(holder));
            if holder.key == self.root.key {
                return Some(route);
            }
            at = *self.waits.get(&holder.key)?;
            if let Node::Lock(address) = at {
                route.push(Step::Lock(address));
            }
        }
        None
    }
}

/// The chains among these locks and daemons, the one with most blocked tasks first.
///
/// Only holders and servers that are `likely` or `certain` count: a lock without one is in
/// no chain. The order of `locks` and `daemons` makes no difference.
pub fn chains(locks: &[Lock], daemons: &[Daemon]) -> Vec<Chain> {
    let edges = Edges::new(locks, daemons);
    let mut chains: Vec<Chain> = edges.roots();
    chains.extend(edges.cycles());
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
    holder.confidence.carries_weight()
}

/// The waiters that do not have the lock yet.
fn blocked(lock: &Lock) -> impl Iterator<Item = &Waiter> {
    lock.waiters.iter().filter(|waiter| !waiter.granted)
}

/// What tasks wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Node {
    Lock(LockAddr),
    Daemon(ConnectionAddr),
}

impl Node {
    /// The task that holds or serves it, as a link of a path.
    fn held_by(self, task: &TaskName) -> Step {
        match self {
            Self::Lock(_) => Step::Task(task.clone()),
            Self::Daemon(_) => Step::Daemon(task.clone()),
        }
    }
}

/// A task that keeps others waiting.
#[derive(Clone, Copy)]
struct Keeper<'a> {
    task: &'a TaskName,
    stuck: &'a Stuck,
}

/// Who keeps and who waits for what. Nodes by index: locks in the order of their
/// addresses, then daemons.
struct Edges<'a> {
    nodes: Vec<Node>,
    keepers: Vec<Vec<Keeper<'a>>>,
    waiters: Vec<Vec<TaskKey>>,
    held: BTreeMap<TaskKey, Vec<(usize, Keeper<'a>)>>,
    waits: BTreeMap<TaskKey, Vec<usize>>,
}

/// Everything that waits for one task.
struct Reach {
    /// For each node, who keeps it on the shortest way to the task.
    holders: BTreeMap<usize, TaskKey>,
    /// For each waiting task, the node it waits for on that way.
    waits: BTreeMap<TaskKey, usize>,
    /// The node at the end of the longest of these ways.
    farthest: Option<usize>,
}

impl<'a> Edges<'a> {
    fn new(locks: &'a [Lock], daemons: &'a [Daemon]) -> Self {
        let mut edges = Self {
            nodes: Vec::new(),
            keepers: Vec::new(),
            waiters: Vec::new(),
            held: BTreeMap::new(),
            waits: BTreeMap::new(),
        };
        let mut sorted: Vec<&Lock> = locks.iter().collect();
        sorted.sort_by_key(|lock| lock.address);
        sorted.dedup_by_key(|lock| lock.address);
        for lock in sorted {
            let holders = lock.holders.iter().filter(|holder| is_known(holder));
            edges.add(
                Node::Lock(lock.address),
                holders.map(|Holder { task, stuck, .. }| Keeper { task, stuck }),
                blocked(lock).map(|waiter| waiter.task.key),
            );
        }
        let mut sorted: Vec<&Daemon> = daemons.iter().collect();
        sorted.sort_by_key(|daemon| daemon.connection);
        sorted.dedup_by_key(|daemon| daemon.connection);
        // Where it is not known which thread has the requests, the chain ends with the client.
        sorted.retain(|daemon| daemon.serving().next().is_some());
        for daemon in sorted {
            edges.add(
                Node::Daemon(daemon.connection),
                daemon
                    .serving()
                    .map(|DaemonThread { task, stuck, .. }| Keeper { task, stuck }),
                daemon.clients.iter().map(|client| client.task.key),
            );
        }
        edges
    }

    fn add(
        &mut self,
        node: Node,
        keepers: impl Iterator<Item = Keeper<'a>>,
        waiters: impl Iterator<Item = TaskKey>,
    ) {
        let index = self.nodes.len();
        self.nodes.push(node);
        self.keepers.push(keepers.collect());
        self.waiters.push(waiters.collect());
        for &keeper in &self.keepers[index] {
            let held = self.held.entry(keeper.task.key).or_default();
            held.push((index, keeper));
        }
        for &waiter in &self.waiters[index] {
            self.waits.entry(waiter).or_default().push(index);
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
                let waiters = &self.waiters[index];
                for &key in waiters {
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
                if !waiters.is_empty()
                    && farthest.is_none_or(|(far, many, _)| (depth, waiters.len()) > (far, many))
                {
                    farthest = Some((depth, waiters.len(), index));
                }
            }
        }
        Reach {
            holders,
            waits,
            farthest: farthest.map(|(_, _, index)| index),
        }
    }

    /// The chains of all roots. What waits behind those that keep the same nodes, as the
    /// readers of a lock do, is the same: it is found once.
    fn roots(&self) -> Vec<Chain> {
        let mut known: BTreeMap<Vec<usize>, Option<Chain>> = BTreeMap::new();
        let mut chains = Vec::new();
        for (root, held) in &self.held {
            let Some((_, keeper)) = held.first().filter(|_| !self.waits.contains_key(root)) else {
                continue;
            };
            let nodes = held.iter().map(|&(index, _)| index).collect();
            let like = known.entry(nodes).or_insert_with(|| self.chain(*root));
            chains.extend(like.as_ref().map(|chain| chain.with_root(*keeper)));
        }
        chains
    }

    /// The chain of a root; none if nobody waits for a lock behind it: that a daemon has
    /// clients is no trouble with locks.
    fn chain(&self, root: TaskKey) -> Option<Chain> {
        let reach = self.reach(root);
        let from = self.nodes[reach.farthest?];
        let mut chain = self.assemble(root, &reach)?;
        chain.locks().next()?;
        chain.path = match from {
            Node::Lock(address) => vec![Step::Lock(address)],
            Node::Daemon(_) => Vec::new(),
        };
        chain.path.extend(chain.route_from(from)?);
        Some(chain)
    }

    /// One chain for every group of tasks that wait for each other: the strongly connected
    /// components of the graph.
    fn cycles(&self) -> Vec<Chain> {
        let mut cycles = Vec::new();
        let mut done: BTreeSet<TaskKey> = BTreeSet::new();
        for task in self.without_end() {
            if done.contains(&task) {
                continue;
            }
            let reach = self.reach(task);
            if !reach.waits.contains_key(&task) {
                continue;
            }
            // The component: what waits for the task and what the task waits for.
            done.extend(
                self.ahead(task)
                    .into_iter()
                    .filter(|key| reach.waits.contains_key(key)),
            );
            let Some(mut chain) = self.assemble(task, &reach) else {
                continue;
            };
            let circle = self.waits[&task]
                .iter()
                .map(|&index| self.nodes[index])
                .filter_map(|node| Some((node, chain.route_from(node)?)))
                .min_by_key(|(_, route)| route.len());
            if let Some((node, route)) = circle {
                chain.cycle = true;
                // It begins as it ends: with the root, as holder or as server.
                chain.path = route.last().into_iter().cloned().collect();
                if let Node::Lock(address) = node {
                    chain.path.push(Step::Lock(address));
                }
                chain.path.extend(route);
                cycles.push(chain);
            }
        }
        cycles
    }

    /// Tasks whose waiting ends nowhere: those in circles, and those that keep others
    /// waiting behind one. Most graphs have none, and that is found in one pass.
    fn without_end(&self) -> BTreeSet<TaskKey> {
        let both = |key: &&TaskKey| self.held.contains_key(key);
        let mut left: BTreeSet<TaskKey> = self.waits.keys().filter(both).copied().collect();
        // How many of those left each waits for.
        let mut awaited: BTreeMap<TaskKey, usize> = BTreeMap::new();
        for &task in &left {
            let keepers = self.waits[&task].iter().flat_map(|&at| &self.keepers[at]);
            let count = keepers.filter(|it| left.contains(&it.task.key)).count();
            awaited.insert(task, count);
        }
        let mut ends: Vec<TaskKey> = awaited
            .iter()
            .filter(|&(_, &count)| count == 0)
            .map(|(&task, _)| task)
            .collect();
        while let Some(task) = ends.pop() {
            left.remove(&task);
            for (index, _) in &self.held[&task] {
                for waiter in &self.waiters[*index] {
                    if let Some(count) = awaited.get_mut(waiter)
                        && *count > 0
                    {
                        *count -= 1;
                        if *count == 0 {
                            ends.push(*waiter);
                        }
                    }
                }
            }
        }
        left
    }

    /// The tasks that this one waits for, directly or through others.
    fn ahead(&self, task: TaskKey) -> BTreeSet<TaskKey> {
        let mut ahead = BTreeSet::new();
        let mut stack = vec![task];
        while let Some(task) = stack.pop() {
            for &index in self.waits.get(&task).map_or(&[][..], Vec::as_slice) {
                for keeper in &self.keepers[index] {
                    if ahead.insert(keeper.task.key) {
                        stack.push(keeper.task.key);
                    }
                }
            }
        }
        ahead
    }

    fn assemble(&self, root: TaskKey, reach: &Reach) -> Option<Chain> {
        let (_, keeper) = self.held.get(&root)?.first()?;
        let name = |key: &TaskKey| {
            let held = self.held.get(key)?.first()?;
            Some(held.1.task.clone())
        };
        Some(Chain {
            root: keeper.task.clone(),
            path: Vec::new(),
            blocked_tasks: u32::try_from(reach.waits.len()).unwrap_or(u32::MAX),
            stuck: keeper.stuck.clone(),
            cycle: false,
            holders: reach
                .holders
                .iter()
                .filter_map(|(&index, key)| Some((self.nodes[index], name(key)?)))
                .collect(),
            waits: reach
                .waits
                .iter()
                .filter(|(key, _)| self.held.contains_key(key))
                .map(|(&key, &index)| (key, self.nodes[index]))
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests;
