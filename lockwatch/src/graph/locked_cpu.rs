//! What waits behind a CPU that does not go on.

use super::chain::Chain;
use crate::{
    lock::{Holder, Lock},
    lockup::Lockup,
};

/// The locks that the task on the CPU has and others wait for, by holders that are `likely`
/// at least.
pub fn held<'a>(locks: &'a [Lock], lockup: &Lockup) -> Vec<(&'a Lock, &'a Holder)> {
    let Some(task) = &lockup.task else {
        return Vec::new();
    };
    let is_task =
        |holder: &&Holder| holder.task.key == task.key && holder.confidence.carries_weight();
    locks
        .iter()
        .filter(|lock| lock.waiters.iter().any(|waiter| !waiter.granted))
        .filter_map(|lock| Some((lock, lock.holders.iter().find(is_task)?)))
        .collect()
}

/// Distinct tasks that wait for locks of the task on the CPU, directly or through others.
pub fn blocked_tasks(chains: &[Chain], lockup: &Lockup) -> u32 {
    let Some(task) = &lockup.task else {
        return 0;
    };
    let mut chains = chains.iter();
    // It runs, so that it waits for nothing: it is the root of a chain, or in none.
    let chain = chains.find(|chain| !chain.cycle && chain.root.key == task.key);
    chain.map_or(0, |chain| chain.blocked_tasks)
}
