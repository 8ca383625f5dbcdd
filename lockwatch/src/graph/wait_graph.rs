//! The graph of tasks and locks, kept up to date from the stream and from surveys.

mod closed;
mod places;

use std::{collections::BTreeMap, mem, sync::Arc};

use self::{
    closed::Closed,
    places::{Node, Nodes, Place, Waits},
};
use crate::{
    graph::stall::{Facts, Stall, StallId},
    lock::{Holder, LockAddr, LockKind, LockMode},
    stream::{Event, Scan, Wait},
    survey::Survey,
    task::{Nanos, TaskKey},
};

/// What became of a stall.
#[derive(Clone, Debug)]
pub enum Change {
    /// A wait has crossed the threshold.
    Began(StallId),
    /// No wait past the threshold is left.
    Ended(Box<Stall>),
}

/// Tasks and locks; who waits for what since when, and who holds it as the last
/// survey of that lock found and no event since has shown to be over.
///
/// A lock is known while somebody waits for it. When the last wait goes, all that
/// was known of the address goes, too: the next lock there may be another one.
#[derive(Debug)]
pub struct WaitGraph {
    threshold: Nanos,
    locks: Nodes,
    waits: Waits,
    /// Where the stalls are that stand.
    stalled: BTreeMap<StallId, Place>,
    closed: Closed,
    /// When the last complete reading was taken, and the one before.
    read_at_ns: [u64; 2],
    next_stall: u64,
    scratch: Scratch,
}

/// Room for what one call needs and the next can use again.
#[derive(Debug, Default)]
struct Scratch {
    waits: Vec<Wait>,
    past: Vec<Past>,
}

/// A wait past the threshold.
#[derive(Clone, Copy, Debug)]
struct Past {
    node: Place,
    since_ns: u64,
    task: TaskKey,
    lock: LockAddr,
    kind: LockKind,
}

impl WaitGraph {
    /// An empty graph; waits of `threshold` and longer are stalls.
    pub fn new(threshold: Nanos) -> Self {
        Self {
            threshold,
            locks: Nodes::default(),
            waits: Waits::default(),
            stalled: BTreeMap::new(),
            closed: Closed::default(),
            read_at_ns: [0; 2],
            next_stall: 1,
            scratch: Scratch::default(),
        }
    }

    /// Takes in one event. Events may come twice, late, or not at all.
    pub fn apply(&mut self, event: &Event) {
        // What two readings have not shown, or have shown to be over, is no news.
        let is_old = |at_ns| at_ns < self.read_at_ns[1];
        match event {
            Event::WaitBegin(wait) => {
                if !is_old(wait.since_ns) {
                    self.open(wait);
                }
            }
            &Event::WaitEnd {
                ref wait,
                at_ns,
                acquired,
            } => {
                let id = wait.id();
                // One that is open was not closed before.
                let is_open = self.waits.place_of(&id).is_some();
                if !is_open && (is_old(at_ns) || self.closed.contains(&id)) {
                    return;
                }
                if let Some(node) = self.locks.get_mut(wait.lock) {
                    node.ended(wait, at_ns, acquired);
                }
                self.close(wait, at_ns, true);
                self.closed.remember(id);
            }
        }
    }

    /// Makes the waits those of a reading of the kernel's own state. Call it after
    /// the events that were there when the reading had ended have been applied.
    pub fn reconcile_waits(&mut self, scan: &Scan) {
        let mut some = mem::take(&mut self.scratch.waits);
        self.waits.begin_reading();
        // Here already, and seen; what is not here yet comes in once all that is over is out.
        let waits = scan.waits.iter();
        let mut fresh: Vec<&Wait> = waits.filter(|wait| !self.waits.see(&wait.id())).collect();
        if scan.complete {
            let unseen = self.waits.unseen();
            let gone = unseen.filter(|wait| wait.since_ns < scan.at_ns);
            some.extend(gone.cloned());
            some.sort_unstable_by_key(order);
            for wait in some.drain(..) {
                self.lose(&wait, scan.at_ns);
                self.closed.remember(wait.id());
            }
            self.read_at_ns = [scan.at_ns, self.read_at_ns[0]];
        }
        fresh.sort_unstable_by_key(|wait| order(wait));
        for wait in fresh {
            self.open(wait);
        }
        self.scratch.waits = some;
        // An end can be applied before a reading is taken that still shows the wait,
        // or come after one that does not: each is remembered for two readings more.
        self.closed.forget_oldest();
    }

    /// Takes in what a survey says of the locks that somebody waits for. Returns the
    /// stalls that have a holder who was not known before.
    pub fn reconcile_survey(&mut self, survey: &Arc<Survey>) -> Vec<StallId> {
        let mut with_new_holder = Vec::new();
        for (index, lock) in survey.locks.iter().enumerate() {
            let Some(node) = self.locks.get_mut(lock.address) else {
                continue;
            };
            let facts = Facts::new(survey, index);
            if let Some(stall) = &mut node.stall
                && stall.learn(facts.clone())
            {
                with_new_holder.push(stall.id);
            }
            node.facts = Some(facts);
        }
        with_new_holder
    }

    /// Takes out a wait that never was, and a stall that was made of it alone.
    pub fn refute(&mut self, wait: &Wait) {
        let Some(at_node) = self.locks.place(wait.lock) else {
            return;
        };
        if let Some(place) = self.waits.place(wait.lock, wait.task.key) {
            self.waits.remove(place, &mut self.locks);
        }
        let node = self.locks.at_mut(at_node);
        if let Some(stall) = &mut node.stall {
            stall.blocked.remove(&wait.task.key);
            if stall.blocked.is_empty() {
                self.stalled.remove(&stall.id);
                node.stall = None;
                node.is_announced = false;
            }
        }
        self.locks.forget_if_idle(at_node);
        self.closed.remember(wait.id());
    }

    /// Which stalls began, which ended, as far as is known at `now_ns`: the time of the
    /// last reading, or of the last event where every event arrives.
    pub fn advance(&mut self, now_ns: u64) -> Vec<Change> {
        let mut past = mem::take(&mut self.scratch.past);
        self.find_past(now_ns, &mut past);
        self.begin_stalls(&past);
        let mut changes = Vec::new();
        for oldest in &past {
            let node = self.locks.at_mut(oldest.node);
            if let Some(stall) = &mut node.stall {
                stall.began_ns = stall.began_ns.min(oldest.since_ns);
                if !mem::replace(&mut node.is_announced, true) {
                    changes.push(Change::Began(stall.id));
                }
            }
        }
        let (locks, threshold) = (&mut self.locks, self.threshold);
        self.stalled.retain(|_, &mut at_node| {
            let stands = past.binary_search_by_key(&at_node, |oldest| oldest.node);
            if stands.is_ok() {
                return true;
            }
            let node = locks.at_mut(at_node);
            node.is_announced = false;
            // Shorter only if its wait was over long before we knew: then it was none.
            if let Some(stall) = node.stall.take()
                && stall.length() >= threshold
            {
                changes.push(Change::Ended(stall.ended()));
            }
            locks.forget_if_idle(at_node);
            false
        });
        changes.sort_by_key(Change::id);
        past.clear();
        self.scratch.past = past;
        changes
    }

    /// The longest wait for each lock, where it is past the threshold, by the lock's place.
    fn find_past(&self, now_ns: u64, past: &mut Vec<Past>) {
        for (wait, node) in self.waits.iter() {
            if Nanos::between(wait.since_ns, now_ns) >= self.threshold {
                past.push(Past {
                    node,
                    since_ns: wait.since_ns,
                    task: wait.task.key,
                    lock: wait.lock,
                    kind: wait.kind,
                });
            }
        }
        past.sort_unstable_by_key(|wait| (wait.node, wait.since_ns, wait.task));
        past.dedup_by_key(|wait| wait.node);
    }

    /// Makes the stalls that are due, numbered in the order of their begins: the same waits
    /// make the same stalls.
    fn begin_stalls(&mut self, past: &[Past]) {
        let is_new = |oldest: &&Past| self.locks.at(oldest.node).stall.is_none();
        let mut due: Vec<Past> = past.iter().filter(is_new).copied().collect();
        due.sort_by_key(|oldest| (oldest.since_ns, oldest.lock));
        for oldest in due {
            self.begin_stall(oldest.node, oldest.kind, oldest.since_ns);
        }
    }

    fn begin_stall(&mut self, at_node: Place, kind: LockKind, began_ns: u64) {
        let id = StallId(self.next_stall);
        self.next_stall += 1;
        let node = self.locks.at_mut(at_node);
        let mut stall = Box::new(Stall::new(id, node.lock, kind, began_ns));
        for &place in &node.waits {
            stall.block(self.waits.at(place));
        }
        node.stall = Some(stall);
        self.stalled.insert(id, at_node);
    }

    /// The stalls that stand, in the order in which they were found.
    pub fn stalls(&self) -> Vec<&Stall> {
        let places = self.stalled.values();
        places
            .filter_map(|&place| self.locks.at(place).stall.as_deref())
            .collect()
    }

    /// A stall that stands.
    pub fn stall(&self, id: StallId) -> Option<&Stall> {
        let &place = self.stalled.get(&id)?;
        self.locks.at(place).stall.as_deref()
    }

    /// Every wait that is open, in no particular order.
    pub fn waits(&self) -> impl Iterator<Item = &Wait> {
        self.waits.iter().map(|(wait, _)| wait)
    }

    /// The open waits for one lock, the longest first.
    pub fn waits_for(&self, lock: LockAddr) -> Vec<&Wait> {
        let node = self.locks.get(lock).into_iter();
        let places = node.flat_map(|node| &node.waits);
        let mut waits: Vec<&Wait> = places.map(|&place| self.waits.at(place)).collect();
        waits.sort_by_key(|wait| (wait.since_ns, wait.task.key));
        waits
    }

    /// What the last survey found about a lock that somebody waits for.
    pub fn facts(&self, lock: LockAddr) -> Option<&Facts> {
        self.locks.get(lock)?.facts.as_ref()
    }

    /// Who holds a lock that somebody waits for, as the last survey of it found and nothing
    /// since has shown to be over: once a queued task got it for write, nobody else has it,
    /// and once one got it at all, no earlier writer does.
    pub fn held_by(&self, lock: LockAddr) -> impl Iterator<Item = &Holder> {
        self.locks.get(lock).into_iter().flat_map(|node| {
            let facts = node.facts.iter();
            facts.flat_map(move |facts| {
                let seen_ns = facts.survey().taken_at_ns;
                let stands = move |holder: &&Holder| {
                    node.written_ns <= seen_ns
                        && (holder.mode == LockMode::Read || node.acquired_ns <= seen_ns)
                };
                facts.lock().holders.iter().filter(stands)
            })
        })
    }

    fn open(&mut self, wait: &Wait) {
        if self.closed.contains(&wait.id()) {
            return;
        }
        if let Some(place) = self.waits.place(wait.lock, wait.task.key) {
            let known = self.waits.at(place).clone();
            if known.since_ns >= wait.since_ns {
                return;
            }
            // A task has one wait on a lock at a time: the older one is over.
            self.lose(&known, wait.since_ns);
        }
        let at_node = self.locks.place_or_new(wait.lock);
        let node = self.locks.at_mut(at_node);
        if let Some(stall) = &mut node.stall {
            stall.block(wait);
        }
        self.waits.add(wait, at_node, node);
    }

    /// Ends a wait whose end was not told, at `at_ns` at the latest. It counts as past
    /// the threshold only if the last reading proved that: ends of shorter waits are
    /// not sent, and nobody is to be accused of what might not have been.
    fn lose(&mut self, wait: &Wait, at_ns: u64) {
        if Nanos::between(wait.since_ns, self.read_at_ns[0]) >= self.threshold {
            self.close(wait, at_ns, false);
        } else {
            self.remove(wait);
        }
    }

    /// Ends a wait, whether its begin was seen or not, at `at_ns` or, if not
    /// `exact`, before.
    fn close(&mut self, wait: &Wait, at_ns: u64, exact: bool) {
        if Nanos::between(wait.since_ns, at_ns) >= self.threshold {
            let at_node = self.locks.place_or_new(wait.lock);
            // It may have become a stall and ended between two looks at the clock.
            if self.locks.at(at_node).stall.is_none() {
                self.begin_stall(at_node, wait.kind, wait.since_ns);
            }
            if let Some(stall) = &mut self.locks.at_mut(at_node).stall {
                stall.block(wait);
                stall.end_wait(wait.since_ns, at_ns, exact);
            }
        }
        self.remove(wait);
    }

    fn remove(&mut self, wait: &Wait) {
        // A late end must not take a newer wait of the same task away.
        if let Some(place) = self.waits.place(wait.lock, wait.task.key)
            && self.waits.at(place).since_ns <= wait.since_ns
            && let Some(at_node) = self.waits.remove(place, &mut self.locks)
        {
            self.locks.forget_if_idle(at_node);
        }
    }
}

/// The order in which waits of one reading are taken in: whom a stall has blocked must not
/// depend on the order of a hash table.
fn order(wait: &Wait) -> (u64, TaskKey, LockAddr) {
    (wait.since_ns, wait.task.key, wait.lock)
}

impl Node {
    /// A wait for the lock was seen ending.
    fn ended(&mut self, wait: &Wait, at_ns: u64, acquired: bool) {
        if acquired {
            self.acquired_ns = self.acquired_ns.max(at_ns);
            if wait.mode == LockMode::Write {
                self.written_ns = self.written_ns.max(at_ns);
            }
        }
        if let Some(stall) = &mut self.stall {
            stall.check_forecast(wait.task.key, at_ns, acquired);
        }
    }
}

impl Change {
    fn id(&self) -> StallId {
        match self {
            Self::Began(id) => *id,
            Self::Ended(stall) => stall.id,
        }
    }
}

#[cfg(test)]
mod tests;
