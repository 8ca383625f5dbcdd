//! The graph of tasks and locks, kept up to date from the stream and from surveys.

use std::{mem, sync::Arc};

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    graph::stall::{Facts, Stall, StallId},
    lock::{Holder, LockAddr, LockKind, LockMode},
    stream::{Event, Scan, Wait, WaitId},
    survey::Survey,
    task::{Nanos, TaskKey},
};

/// Ends that are remembered, so that a reading taken before them does not bring
/// their waits back; more than the ring buffer holds.
const CLOSED_MAX: usize = 1 << 16;

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
    locks: FxHashMap<LockAddr, Node>,
    /// Waits that have ended since the last reconciliation, and before, oldest last.
    closed: [FxHashSet<WaitId>; 3],
    /// When the last complete reading was taken, and the one before.
    read_at_ns: [u64; 2],
    next_stall: u64,
}

#[derive(Debug, Default)]
struct Node {
    waits: FxHashMap<TaskKey, Wait>,
    facts: Option<Facts>,
    /// `CLOCK_MONOTONIC` ns at which a queued task was last seen getting the lock, in any
    /// mode and for write; 0 if none was.
    acquired_ns: u64,
    written_ns: u64,
    stall: Option<Stall>,
    is_announced: bool,
}

impl Node {
    /// The longest wait, if it is past the threshold.
    fn oldest_past(&self, threshold: Nanos, now_ns: u64) -> Option<&Wait> {
        self.waits
            .values()
            .filter(|wait| Nanos::between(wait.since_ns, now_ns) >= threshold)
            .min_by_key(|wait| (wait.since_ns, wait.task.key))
    }
}

impl WaitGraph {
    /// An empty graph; waits of `threshold` and longer are stalls.
    pub fn new(threshold: Nanos) -> Self {
        Self {
            threshold,
            locks: FxHashMap::default(),
            closed: Default::default(),
            read_at_ns: [0; 2],
            next_stall: 1,
        }
    }

    /// Takes in one event. Events may come twice, late, or not at all.
    pub fn apply(&mut self, event: Event) {
        // What two readings have not shown, or have shown to be over, is no news.
        let is_old = |at_ns| at_ns < self.read_at_ns[1];
        match event {
            Event::WaitBegin(wait) => {
                if !is_old(wait.since_ns) {
                    self.open(wait);
                }
            }
            Event::WaitEnd {
                wait,
                at_ns,
                acquired,
            } => {
                let id = wait.id();
                if self.is_closed(&id) || is_old(at_ns) && !self.is_open(&id) {
                    return;
                }
                if let Some(node) = self.locks.get_mut(&wait.lock) {
                    node.ended(&wait, at_ns, acquired);
                }
                self.close(&wait, at_ns, true);
                self.remember_closed(id);
            }
        }
    }

    /// Makes the waits those of a reading of the kernel's own state. Call it after
    /// the events that were there when the reading had ended have been applied.
    pub fn reconcile_waits(&mut self, scan: &Scan) {
        if scan.complete {
            let present: FxHashSet<WaitId> = scan.waits.iter().map(Wait::id).collect();
            let mut gone: Vec<Wait> = self
                .waits()
                .filter(|wait| wait.since_ns < scan.at_ns && !present.contains(&wait.id()))
                .cloned()
                .collect();
            gone.sort_unstable_by_key(order);
            for wait in gone {
                self.lose(&wait, scan.at_ns);
                self.remember_closed(wait.id());
            }
            self.read_at_ns = [scan.at_ns, self.read_at_ns[0]];
        }
        let mut waits: Vec<&Wait> = scan.waits.iter().collect();
        waits.sort_unstable_by_key(|wait| order(wait));
        for wait in waits {
            self.open(wait.clone());
        }
        // An end can be applied before a reading is taken that still shows the wait,
        // or come after one that does not: each is remembered for two readings more.
        self.forget_oldest_closed();
    }

    /// Takes in what a survey says of the locks that somebody waits for. Returns the
    /// stalls that have a holder who was not known before.
    pub fn reconcile_survey(&mut self, survey: &Arc<Survey>) -> Vec<StallId> {
        let mut with_new_holder = Vec::new();
        for (index, lock) in survey.locks.iter().enumerate() {
            let Some(node) = self.locks.get_mut(&lock.address) else {
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
        let Some(node) = self.locks.get_mut(&wait.lock) else {
            return;
        };
        node.waits.remove(&wait.task.key);
        if let Some(stall) = &mut node.stall {
            stall.blocked.remove(&wait.task.key);
            if stall.blocked.is_empty() {
                node.stall = None;
                node.is_announced = false;
            }
        }
        if node.waits.is_empty() && node.stall.is_none() {
            self.locks.remove(&wait.lock);
        }
        self.remember_closed(wait.id());
    }

    /// Which stalls began, which ended, as far as is known at `now_ns`: the time of the
    /// last reading, or of the last event where every event arrives.
    pub fn advance(&mut self, now_ns: u64) -> Vec<Change> {
        let mut changes = Vec::new();
        let threshold = self.threshold;
        self.begin_stalls(now_ns);
        self.locks.retain(|_, node| {
            let oldest = node.oldest_past(threshold, now_ns);
            if let Some(since_ns) = oldest.map(|wait| wait.since_ns)
                && let Some(stall) = &mut node.stall
            {
                stall.began_ns = stall.began_ns.min(since_ns);
                if !mem::replace(&mut node.is_announced, true) {
                    changes.push(Change::Began(stall.id));
                }
            } else if let Some(stall) = node.stall.take() {
                node.is_announced = false;
                // Shorter only if its wait was over long before we knew: then it was none.
                if stall.length() >= threshold {
                    changes.push(Change::Ended(Box::new(stall.ended())));
                }
            }
            !node.waits.is_empty()
        });
        changes.sort_by_key(Change::id);
        changes
    }

    /// Makes the stalls that are due at `now_ns`, numbered in the order of their begins:
    /// the same waits make the same stalls.
    fn begin_stalls(&mut self, now_ns: u64) {
        let mut due: Vec<(u64, LockAddr, LockKind)> = self
            .locks
            .iter()
            .filter(|(_, node)| node.stall.is_none())
            .filter_map(|(&address, node)| {
                let oldest = node.oldest_past(self.threshold, now_ns)?;
                Some((oldest.since_ns, address, oldest.kind))
            })
            .collect();
        due.sort_by_key(|&(since_ns, address, _)| (since_ns, address));
        for (since_ns, address, kind) in due {
            if let Some(node) = self.locks.get_mut(&address) {
                let next = &mut self.next_stall;
                node.stall = Some(new_stall(next, address, &node.waits, kind, since_ns));
            }
        }
    }

    /// The stalls that stand, in the order in which they were found.
    pub fn stalls(&self) -> Vec<&Stall> {
        let mut stalls: Vec<&Stall> = self
            .locks
            .values()
            .filter_map(|node| node.stall.as_ref())
            .collect();
        stalls.sort_by_key(|stall| stall.id);
        stalls
    }

    /// A stall that stands.
    pub fn stall(&self, id: StallId) -> Option<&Stall> {
        self.locks
            .values()
            .filter_map(|node| node.stall.as_ref())
            .find(|stall| stall.id == id)
    }

    /// Every wait that is open, in no particular order.
    pub fn waits(&self) -> impl Iterator<Item = &Wait> {
        self.locks.values().flat_map(|node| node.waits.values())
    }

    /// The open waits for one lock, the longest first.
    pub fn waits_for(&self, lock: LockAddr) -> Vec<&Wait> {
        let mut waits: Vec<&Wait> = self
            .locks
            .get(&lock)
            .into_iter()
            .flat_map(|node| node.waits.values())
            .collect();
        waits.sort_by_key(|wait| (wait.since_ns, wait.task.key));
        waits
    }

    /// What the last survey found about a lock that somebody waits for.
    pub fn facts(&self, lock: LockAddr) -> Option<&Facts> {
        self.locks.get(&lock)?.facts.as_ref()
    }

    /// Who holds a lock that somebody waits for, as the last survey of it found and nothing
    /// since has shown to be over: once a queued task got it for write, nobody else has it,
    /// and once one got it at all, no earlier writer does.
    pub fn held_by(&self, lock: LockAddr) -> impl Iterator<Item = &Holder> {
        self.locks.get(&lock).into_iter().flat_map(|node| {
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

    fn is_open(&self, id: &WaitId) -> bool {
        self.locks
            .get(&id.lock)
            .and_then(|node| node.waits.get(&id.task))
            .is_some_and(|wait| wait.since_ns == id.since_ns)
    }

    fn is_closed(&self, id: &WaitId) -> bool {
        self.closed.iter().any(|closed| closed.contains(id))
    }

    fn remember_closed(&mut self, id: WaitId) {
        if self.closed[0].len() >= CLOSED_MAX {
            self.forget_oldest_closed();
        }
        self.closed[0].insert(id);
    }

    fn forget_oldest_closed(&mut self) {
        self.closed.rotate_right(1);
        self.closed[0].clear();
    }

    fn open(&mut self, wait: Wait) {
        if self.is_closed(&wait.id()) {
            return;
        }
        let known = self
            .locks
            .get(&wait.lock)
            .and_then(|node| node.waits.get(&wait.task.key));
        if let Some(known) = known {
            if known.since_ns >= wait.since_ns {
                return;
            }
            // A task has one wait on a lock at a time: the older one is over.
            let known = known.clone();
            self.lose(&known, wait.since_ns);
        }
        let node = self.locks.entry(wait.lock).or_default();
        if let Some(stall) = &mut node.stall {
            stall.block(&wait);
        }
        node.waits.insert(wait.task.key, wait);
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
        let node = self.locks.entry(wait.lock).or_default();
        if Nanos::between(wait.since_ns, at_ns) >= self.threshold {
            // It may have become a stall and ended between two looks at the clock.
            let stall = node.stall.get_or_insert_with(|| {
                new_stall(
                    &mut self.next_stall,
                    wait.lock,
                    &node.waits,
                    wait.kind,
                    wait.since_ns,
                )
            });
            stall.block(wait);
            stall.end_wait(wait.since_ns, at_ns, exact);
        }
        self.remove(wait);
    }

    fn remove(&mut self, wait: &Wait) {
        let Some(node) = self.locks.get_mut(&wait.lock) else {
            return;
        };
        // A late end must not take a newer wait of the same task away.
        if let Some(known) = node.waits.get(&wait.task.key)
            && known.since_ns <= wait.since_ns
        {
            node.waits.remove(&wait.task.key);
        }
        if node.waits.is_empty() && node.stall.is_none() {
            self.locks.remove(&wait.lock);
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

fn new_stall(
    next: &mut u64,
    lock: LockAddr,
    waits: &FxHashMap<TaskKey, Wait>,
    kind: LockKind,
    began_ns: u64,
) -> Stall {
    let id = StallId(*next);
    *next += 1;
    let mut stall = Stall::new(id, lock, kind, began_ns);
    for wait in waits.values() {
        stall.block(wait);
    }
    stall
}

#[cfg(test)]
mod tests;
