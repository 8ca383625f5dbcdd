//! Readings of the open waits as what changed from one to the next: several a second, most
//! of them equal.

use rustc_hash::{FxHashMap, FxHashSet};
use serde::{Deserialize, Serialize};

use crate::stream::{Scan, Wait, WaitId};

/// Waits that a recording may have open at a time: as many as Linux can have tasks
/// (`PID_MAX_LIMIT`) would be four times as many and is nonsense.
const WAITS_MAX: usize = 1 << 20;

/// A reading, told from the one before.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ScanChange {
    at_ns: u64,
    complete: bool,
    /// Not in the reading before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    came: Vec<Wait>,
    /// Not in this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    went: Vec<WaitId>,
}

/// The last reading.
#[derive(Debug, Default)]
pub(super) struct Scans(FxHashMap<WaitId, Wait>);

impl Scans {
    /// What is to be written for this reading.
    pub(super) fn change_to(&mut self, scan: &Scan) -> ScanChange {
        let present: FxHashSet<WaitId> = scan.waits.iter().map(Wait::id).collect();
        let mut went: Vec<WaitId> = self
            .0
            .keys()
            .filter(|id| !present.contains(id))
            .copied()
            .collect();
        // The same recording twice is the same bytes.
        went.sort_by_key(|id| (id.since_ns, id.task, id.lock));
        for id in &went {
            self.0.remove(id);
        }
        let is_new = |wait: &&Wait| self.0.get(&wait.id()) != Some(wait);
        let came: Vec<Wait> = scan.waits.iter().filter(is_new).cloned().collect();
        for wait in &came {
            self.0.insert(wait.id(), wait.clone());
        }
        ScanChange {
            at_ns: scan.at_ns,
            complete: scan.complete,
            came,
            went,
        }
    }

    /// The reading that was written so.
    pub(super) fn scan_of(&mut self, change: ScanChange) -> Result<Scan, String> {
        for id in &change.went {
            self.0.remove(id);
        }
        for wait in change.came {
            self.0.insert(wait.id(), wait);
        }
        if self.0.len() > WAITS_MAX {
            return Err(format!("more than {WAITS_MAX} waits at a time"));
        }
        let mut waits: Vec<Wait> = self.0.values().cloned().collect();
        waits.sort_by_key(|wait| (wait.since_ns, wait.task.key, wait.lock));
        Ok(Scan {
            at_ns: change.at_ns,
            waits,
            complete: change.complete,
        })
    }
}
