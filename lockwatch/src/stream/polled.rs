//! Waits as surveys show them: for a kernel without the tracepoints, and for waits
//! that began before the programs were attached.

use rustc_hash::FxHashMap;

use crate::{
    lock::{LockAddr, Waiter},
    stream::{Scan, Wait},
    survey::Survey,
    task::{TaskKey, Tgid},
};

/// Two readings of when a wait began that differ by more are two waits. A survey
/// tells it from the queue entry, in jiffies of up to 10 ms.
const SAME_WAIT_NS: u64 = 30_000_000;

/// The waits of successive surveys, each with one begin for as long as it stands.
#[derive(Debug, Default)]
pub struct PolledWaits {
    /// The process whose waits are left out: our own, where it is the host's.
    except: Option<Tgid>,
    since_ns: FxHashMap<(TaskKey, LockAddr), u64>,
}

impl PolledWaits {
    /// Without the waits of the process that reads them, for surveys of its own host.
    pub fn of_others() -> Self {
        Self {
            except: Some(Tgid(std::process::id())),
            ..Self::default()
        }
    }

    /// The waits of this survey.
    pub fn read(&mut self, survey: &Survey) -> Scan {
        let mut since_ns = FxHashMap::default();
        let mut waits = Vec::new();
        for lock in &survey.locks {
            let others = |waiter: &&Waiter| Some(waiter.task.tgid) != self.except;
            for waiter in lock.waiters.iter().filter(others) {
                let id = (waiter.task.key, lock.address);
                let measured = survey.taken_at_ns.saturating_sub(waiter.wait.0);
                let since = match self.since_ns.get(&id) {
                    Some(&known) if known.abs_diff(measured) <= SAME_WAIT_NS => known,
                    _ => measured,
                };
                since_ns.insert(id, since);
                waits.push(Wait {
                    task: waiter.task.clone(),
                    lock: lock.address,
                    kind: lock.kind,
                    mode: waiter.mode,
                    since_ns: since,
                });
            }
        }
        self.since_ns = since_ns;
        Scan {
            // What began during the survey may be missing from it.
            at_ns: survey.taken_at_ns.saturating_sub(survey.duration.0),
            waits,
            complete: true,
        }
    }
}
