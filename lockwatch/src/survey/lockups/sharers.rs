//! Tasks on other CPUs that may wait for the same spinlock as a locked CPU, or hold it.
//!
//! A spinlock names nobody. But whoever waits for one has its address near the frames that
//! wait, and whoever holds it came to it by the same address. Both run, so that neither
//! stack has frames that are known: a word that both have is a hint, never more.

use rustc_hash::FxHashSet;

use super::{Cpus, is_on_same_run};
use crate::{
    kernel::{
        arch::{is_image_address, is_kernel_address},
        spin_frames::waits_for_spinlock,
    },
    lockup::Sharer,
    survey::{
        functions::Functions,
        look::{Look, TaskLook},
    },
};

/// Words on either side of a frame that waits among which the address of its lock is looked
/// for: the registers that it and its caller have saved.
pub(super) const NEAR: usize = 24;

/// A word that so many tasks on CPUs have, if all of them do, belongs to no two of them.
const COMMON: usize = 3;

impl Cpus<'_> {
    /// The tasks that were on other CPUs in both looks and may share a spinlock with this one.
    pub(super) fn sharers(&self, locked: &TaskLook, functions: &mut Functions<'_>) -> Vec<Sharer> {
        let own = std::process::id();
        let running: Vec<&TaskLook> = self
            .last
            .tasks
            .iter()
            .filter(|task| task.record.on_cpu != 0 && task.name.tgid.0 != own)
            .collect();
        let stood = |now: &TaskLook| {
            // One look alone cannot tell who stands.
            self.earlier(now)
                .is_some_and(|then| is_on_same_run(then, now))
        };
        let words: Vec<FxHashSet<u64>> = running
            .iter()
            .map(|task| self.last.words(task).iter().copied().collect())
            .collect();
        let is_common =
            |word: u64| running.len() >= COMMON && words.iter().all(|words| words.contains(&word));
        let Some(at) = running
            .iter()
            .position(|task| task.name.key == locked.name.key)
        else {
            return Vec::new();
        };
        // Once: there may be many words to ask about, and very many tasks.
        let of_tasks: FxHashSet<u64> = (self.last.tasks.iter())
            .flat_map(|task| [task.record.mm, task.record.files])
            .collect();
        let awaited = self.near_waits(locked, &of_tasks, functions);
        let mut sharers = Vec::new();
        for (other, task) in running.iter().enumerate() {
            if other == at || task.record.cpu == locked.record.cpu || !stood(task) {
                continue;
            }
            let of_other = self.near_waits(task, &of_tasks, functions);
            let shared = |near: &[u64], words: &FxHashSet<u64>| {
                let mut near = near.iter().copied();
                near.find(|word| words.contains(word) && !is_common(*word))
            };
            let found = match shared(&of_other, &words[at]) {
                Some(address) => Some((address, true)),
                None => shared(&awaited, &words[other]).map(|address| (address, false)),
            };
            sharers.extend(found.map(|(address, sharer_waits)| Sharer {
                task: task.name.clone(),
                cpu: task.record.cpu,
                address,
                sharer_waits,
            }));
        }
        sharers
    }

    /// The words that could be addresses of spinlocks, near frames that wait for one; the
    /// nearest first.
    fn near_waits(
        &self,
        task: &TaskLook,
        of_tasks: &FxHashSet<u64>,
        functions: &mut Functions<'_>,
    ) -> Vec<u64> {
        let words = self.last.words(task);
        let mut near = Vec::new();
        for (at, &word) in words.iter().enumerate() {
            if !is_image_address(word) || !waits_for_spinlock(functions.stem(word)) {
                continue;
            }
            for distance in 1..=NEAR {
                let places = [at.checked_sub(distance), at.checked_add(distance)];
                let found = places.into_iter().flatten().filter_map(|at| words.get(at));
                near.extend(
                    found.filter(|&&word| is_lock_like(self.last, word, of_tasks, functions)),
                );
            }
        }
        near
    }
}

/// Whether a word can be the address of a spinlock: in no stack, no task, no address space
/// and no code; of the kernel's image, what a symbol names. `of_tasks`: the address spaces and
/// tables of open files.
fn is_lock_like(
    look: &Look,
    word: u64,
    of_tasks: &FxHashSet<u64>,
    functions: &Functions<'_>,
) -> bool {
    is_kernel_address(word)
        && word.is_multiple_of(4)
        && !look.in_a_stack(word)
        && (!is_image_address(word) || functions.is_data(word))
        && look.task_at(word).is_none()
        && !of_tasks.contains(&word)
}
