//! Waits of which the programs see the begin or the end alone: surveys tell the rest.

use std::collections::BTreeMap;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    lock::{LockAddr, LockKind},
    stream::{Scan, Stream, UnseenEnds, Wait},
    task::TaskKey,
};

/// Waits that a survey found and that no program had seen begin, entered among those of
/// the programs so that they stand with them, and end where a program sees that.
#[derive(Debug, Default)]
pub(super) struct Seeds(BTreeMap<(TaskKey, LockAddr), Seed>);

#[derive(Debug)]
struct Seed {
    wait: Wait,
    /// A survey has seen it since it was entered.
    is_confirmed: bool,
}

impl Seeds {
    /// Enters waits that began before the programs were attached, or did not fit. True if
    /// there are new ones: one that ended between the survey and this wants one more look.
    pub(super) fn enter(&mut self, stream: &mut Stream, waits: &[Wait]) -> bool {
        let known = self.0.len();
        for wait in waits {
            let key = place(wait);
            if !self.0.contains_key(&key) && stream.seed(wait) {
                let seed = Seed {
                    wait: wait.clone(),
                    is_confirmed: false,
                };
                self.0.insert(key, seed);
            }
        }
        self.0.len() > known
    }

    /// Takes out those that this survey, taken after they were entered, does not see: each
    /// has ended, or was over before it was entered and has never stood. Returns the latter.
    #[must_use]
    pub(super) fn check(&mut self, stream: &mut Stream, waits: &[Wait]) -> Vec<Wait> {
        let mut refuted = Vec::new();
        let standing: FxHashSet<(TaskKey, LockAddr)> = waits.iter().map(place).collect();
        let ends_are_seen = stream.unseen_ends() == UnseenEnds::None;
        self.0.retain(|key, seed| {
            let stands = standing.contains(key);
            let was_over = ends_are_seen && !seed.is_confirmed;
            if !stands && stream.take_out(&seed.wait) && was_over {
                refuted.push(seed.wait.clone());
            }
            seed.is_confirmed = stands;
            stands
        });
        refuted
    }

    /// True while there are some whose ends no program sees: surveys have to go on.
    pub(super) fn end_unseen(&self, ends: UnseenEnds) -> bool {
        // A wait for a VMA has no tracepoint (6.4 to 7.3).
        let is_unseen =
            |seed: &Seed| ends != UnseenEnds::None || seed.wait.kind == LockKind::VmaLock;
        self.0.values().any(is_unseen)
    }
}

/// A task has one wait on a lock at a time.
fn place(wait: &Wait) -> (TaskKey, LockAddr) {
    (wait.task.key, wait.lock)
}

/// Where programs see waits begin and none sees them end: takes out of theirs those that
/// this survey does not see, and dates by theirs those that it does.
pub(super) fn settle(stream: &mut Stream, survey: &mut Scan) {
    let mut seen: FxHashMap<(TaskKey, LockAddr), usize> = FxHashMap::default();
    for (index, wait) in survey.waits.iter().enumerate() {
        seen.entry(place(wait)).or_insert(index);
    }
    for begun in stream.scan().waits {
        match seen.get(&place(&begun)) {
            Some(&index) => survey.waits[index].since_ns = begun.since_ns,
            None if begun.since_ns < survey.at_ns => {
                stream.take_out(&begun);
            }
            None => {}
        }
    }
}
