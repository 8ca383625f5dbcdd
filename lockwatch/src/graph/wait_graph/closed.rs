//! Waits that are over, for as long as something may still tell of them.

use rustc_hash::FxHashSet;

use crate::stream::WaitId;

/// So many are remembered of each time; more than the ring buffer holds.
const CLOSED_MAX: usize = 1 << 16;

/// Waits that have ended since the last reconciliation, and before, oldest last: so that a
/// reading taken before an end does not bring its wait back.
#[derive(Debug, Default)]
pub(super) struct Closed {
    sets: [FxHashSet<WaitId>; 3],
    /// The latest begin of all that were ever remembered: what begins after it is none of
    /// them, and that is nearly every wait.
    latest_ns: u64,
}

impl Closed {
    pub(super) fn contains(&self, id: &WaitId) -> bool {
        id.since_ns <= self.latest_ns && self.sets.iter().any(|set| set.contains(id))
    }

    pub(super) fn remember(&mut self, id: WaitId) {
        if self.sets[0].len() >= CLOSED_MAX {
            self.forget_oldest();
        }
        self.latest_ns = self.latest_ns.max(id.since_ns);
        self.sets[0].insert(id);
    }

    /// Those that have been remembered the longest are forgotten.
    pub(super) fn forget_oldest(&mut self) {
        self.sets.rotate_right(1);
        self.sets[0].clear();
    }
}
