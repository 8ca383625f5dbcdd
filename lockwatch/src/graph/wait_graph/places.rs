//! Where a graph keeps its waits and locks: each at a place with a number. A place that
//! became free is taken again, so that an event finds what it needs by one look-up and
//! asks for no memory.

use std::mem;

use rustc_hash::FxHashMap;

use crate::{
    graph::stall::{Facts, Stall},
    lock::LockAddr,
    stream::{Wait, WaitId},
    task::TaskKey,
};

/// Number of a place.
pub(super) type Place = u32;

/// A lock that somebody waits for, or did during its stall.
#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) lock: LockAddr,
    /// Places of its open waits, in no particular order.
    pub(super) waits: Vec<Place>,
    pub(super) facts: Option<Facts>,
    /// `CLOCK_MONOTONIC` ns at which a queued task was last seen getting the lock, in any
    /// mode and for write; 0 if none was.
    pub(super) acquired_ns: u64,
    pub(super) written_ns: u64,
    pub(super) stall: Option<Box<Stall>>,
    pub(super) is_announced: bool,
}

/// The locks, by address.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    at: FxHashMap<LockAddr, Place>,
    nodes: Vec<Node>,
    free: Vec<Place>,
}

impl Nodes {
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.at.is_empty()
    }

    pub(super) fn place(&self, lock: LockAddr) -> Option<Place> {
        self.at.get(&lock).copied()
    }

    pub(super) fn get(&self, lock: LockAddr) -> Option<&Node> {
        self.place(lock).map(|place| self.at(place))
    }

    pub(super) fn get_mut(&mut self, lock: LockAddr) -> Option<&mut Node> {
        self.place(lock).map(|place| self.at_mut(place))
    }

    pub(super) fn at(&self, place: Place) -> &Node {
        &self.nodes[place as usize]
    }

    pub(super) fn at_mut(&mut self, place: Place) -> &mut Node {
        &mut self.nodes[place as usize]
    }

    /// The place of this lock; a new one if nothing is known of it.
    pub(super) fn place_or_new(&mut self, lock: LockAddr) -> Place {
        let (nodes, free) = (&mut self.nodes, &mut self.free);
        *self.at.entry(lock).or_insert_with(|| {
            let place = free.pop().unwrap_or_else(|| {
                nodes.push(Node::default());
                (nodes.len() - 1) as Place
            });
            nodes[place as usize].lock = lock;
            place
        })
    }

    /// Forgets a lock that nobody waits for and that has no stall. The next one at its
    /// address may be another lock.
    pub(super) fn forget_if_idle(&mut self, place: Place) {
        let node = &mut self.nodes[place as usize];
        if !node.waits.is_empty() || node.stall.is_some() {
            return;
        }
        self.at.remove(&node.lock);
        self.free.push(place);
        *node = Node {
            waits: mem::take(&mut node.waits),
            ..Node::default()
        };
    }
}

/// The open waits, by task and lock: a task has one on a lock at a time.
#[derive(Debug, Default)]
pub(super) struct Waits {
    at: FxHashMap<(LockAddr, TaskKey), Place>,
    slots: Vec<Slot>,
    free: Vec<Place>,
    /// Number of the reading that goes on, or of the last one.
    reading: u64,
}

#[derive(Debug)]
struct Slot {
    wait: Wait,
    /// Place of its lock; `None`: this slot is free.
    node: Option<Place>,
    /// Where in [`Node::waits`].
    index: u32,
    /// The last reading that has shown it.
    seen: u64,
}

impl Waits {
    /// The place of this task's wait on this lock, whenever it began.
    pub(super) fn place(&self, lock: LockAddr, task: TaskKey) -> Option<Place> {
        self.at.get(&(lock, task)).copied()
    }

    /// The place of this very wait.
    pub(super) fn place_of(&self, id: &WaitId) -> Option<Place> {
        let place = self.place(id.lock, id.task)?;
        (self.at(place).since_ns == id.since_ns).then_some(place)
    }

    pub(super) fn at(&self, place: Place) -> &Wait {
        &self.slots[place as usize].wait
    }

    /// All of them, each with the place of its lock.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Wait, Place)> {
        let slots = self.slots.iter();
        slots.filter_map(|slot| Some((&slot.wait, slot.node?)))
    }

    /// Adds a wait of a task that has none on this lock.
    pub(super) fn add(&mut self, wait: &Wait, at_node: Place, node: &mut Node) {
        let slot = Slot {
            wait: wait.clone(),
            node: Some(at_node),
            index: node.waits.len() as u32,
            seen: 0,
        };
        let place = match self.free.pop() {
            Some(place) => {
                self.slots[place as usize] = slot;
                place
            }
            None => {
                self.slots.push(slot);
                (self.slots.len() - 1) as Place
            }
        };
        node.waits.push(place);
        self.at.insert((wait.lock, wait.task.key), place);
    }

    /// Takes one out; the place of its lock.
    pub(super) fn remove(&mut self, place: Place, nodes: &mut Nodes) -> Option<Place> {
        let slot = &mut self.slots[place as usize];
        let at_node = slot.node.take()?;
        let index = slot.index as usize;
        self.at.remove(&(slot.wait.lock, slot.wait.task.key));
        self.free.push(place);
        let waits = &mut nodes.at_mut(at_node).waits;
        waits.swap_remove(index);
        if let Some(&moved) = waits.get(index) {
            self.slots[moved as usize].index = index as u32;
        }
        Some(at_node)
    }

    /// A reading of all open waits begins.
    pub(super) fn begin_reading(&mut self) {
        self.reading += 1;
    }

    /// The reading shows this wait; false if it is not here.
    pub(super) fn see(&mut self, id: &WaitId) -> bool {
        let place = self.place_of(id);
        if let Some(place) = place {
            self.slots[place as usize].seen = self.reading;
        }
        place.is_some()
    }

    /// Those that the reading has not shown.
    pub(super) fn unseen(&self) -> impl Iterator<Item = &Wait> {
        let slots = self.slots.iter();
        let unseen = slots.filter(|slot| slot.node.is_some() && slot.seen != self.reading);
        unseen.map(|slot| &slot.wait)
    }
}
