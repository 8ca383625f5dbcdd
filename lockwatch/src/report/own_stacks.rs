//! Parts of a report that are told alone, each with the stacks that it refers to.

use rustc_hash::FxHashMap;

use super::{Daemon, Hung, Lock, Lockup, Report};

/// The stacks that some parts of a report refer to, numbered anew in the order in which they
/// do.
#[derive(Debug)]
pub struct OwnStacks<'a> {
    all: &'a [Vec<String>],
    table: Vec<&'a [String]>,
    /// Places in the table, by index among all.
    places: FxHashMap<u32, u32>,
}

impl<'a> OwnStacks<'a> {
    /// Of this report, none yet.
    pub fn of(report: &'a Report) -> Self {
        Self {
            all: &report.stacks,
            table: Vec::new(),
            places: FxHashMap::default(),
        }
    }

    /// This part of the report, with the new numbers; its stacks are in the table.
    #[must_use]
    pub fn with<T: HasStacks + Clone>(&mut self, part: &T) -> T {
        let mut part = part.clone();
        part.for_each_stack(&mut |index| *index = self.place(*index));
        part
    }

    fn place(&mut self, index: u32) -> u32 {
        *self.places.entry(index).or_insert_with(|| {
            let stack = self.all.get(index as usize);
            self.table.push(stack.map_or(&[], Vec::as_slice));
            // No more than there are indexes.
            (self.table.len() - 1) as u32
        })
    }

    /// The stacks, by their new numbers.
    #[must_use]
    pub fn into_table(self) -> Vec<&'a [String]> {
        self.table
    }
}

/// A part of a report that refers to stacks by their index.
pub trait HasStacks {
    /// Hands out each such index.
    fn for_each_stack(&mut self, change: &mut dyn FnMut(&mut u32));
}

impl HasStacks for Lock {
    fn for_each_stack(&mut self, change: &mut dyn FnMut(&mut u32)) {
        let holders = self.holders.iter_mut().map(|it| &mut it.stack);
        let waiters = self.waiters.iter_mut().map(|it| &mut it.stack);
        let before = self.recent_holds.iter_mut().map(|it| &mut it.stack);
        let all = holders.chain(waiters).chain(before);
        all.flatten().for_each(change);
    }
}

impl HasStacks for Daemon {
    fn for_each_stack(&mut self, change: &mut dyn FnMut(&mut u32)) {
        let clients = self.clients.iter_mut().map(|it| &mut it.stack);
        let threads = self.threads.iter_mut().map(|it| &mut it.stack);
        clients.chain(threads).flatten().for_each(change);
    }
}

impl HasStacks for Hung {
    fn for_each_stack(&mut self, change: &mut dyn FnMut(&mut u32)) {
        let stacks = self.tasks.iter_mut().map(|it| &mut it.stack);
        stacks.flatten().for_each(change);
    }
}

impl HasStacks for Lockup {
    fn for_each_stack(&mut self, change: &mut dyn FnMut(&mut u32)) {
        let profile = self.profile.iter_mut().map(|it| &mut it.stack);
        profile.chain(&mut self.returns).for_each(change);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::example;

    /// The frames that its stacks name, in order.
    fn frames<T: HasStacks + Clone>(part: &T, stacks: &[impl AsRef<[String]>]) -> Vec<Vec<String>> {
        let mut frames = Vec::new();
        part.clone().for_each_stack(&mut |index| {
            frames.push(stacks[*index as usize].as_ref().to_vec());
        });
        frames
    }

    fn check<T: HasStacks + Clone>(report: &Report, part: &T) {
        let mut own = OwnStacks::of(report);
        let alone = own.with(part);
        let table = own.into_table();
        let told = frames(&alone, &table);
        assert_eq!(told, frames(part, &report.stacks));
        assert!(!told.is_empty());
        let distinct: std::collections::BTreeSet<_> = told.into_iter().collect();
        assert_eq!(table.len(), distinct.len(), "each once, and no others");
    }

    #[test]
    fn a_part_alone_has_the_same_stacks_as_in_the_report() {
        let report = example::report(&example::several_locks(), 1);
        report.locks.iter().for_each(|lock| check(&report, lock));
        let report = example::report(&example::daemon_in_its_own_directory(), 1);
        check(&report, &report.daemons[0]);
        let report = example::report(&example::hung_without_locks(), 1);
        report.hung.iter().for_each(|hung| check(&report, hung));
        for survey in [example::piled_up_timers(), example::hard_lockup()] {
            let report = example::report(&survey, 1);
            check(&report, &report.lockups[0]);
        }
    }

    #[test]
    fn parts_told_together_share_a_table() {
        let report = example::report(&example::daemon_in_its_own_directory(), 1);
        let mut own = OwnStacks::of(&report);
        let lock = own.with(&report.locks[0]);
        let daemon = own.with(&report.daemons[0]);
        let table = own.into_table();
        assert_eq!(
            frames(&lock, &table),
            frames(&report.locks[0], &report.stacks)
        );
        assert_eq!(
            frames(&daemon, &table),
            frames(&report.daemons[0], &report.stacks)
        );
    }
}
