//! Which stalls are asked for.

use rustc_hash::FxHashMap;

use crate::{
    cli::WatchArgs,
    graph::{Facts, Stall},
    lock::{Lock, LockAddr, LockClass},
    report::{Finding, lock_id},
    survey::Survey,
    task::{TaskName, Tgid, Tid},
};

/// Each list that is not empty must have a match.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    /// A waiter's or holder's thread or process.
    pub(super) pids: Vec<Tgid>,
    /// A waiter's or holder's name.
    pub(super) comms: Vec<String>,
    /// The lock's address, or part of its name.
    pub(super) locks: Vec<String>,
    /// The lock's class.
    pub(super) classes: Vec<String>,
}

impl From<&WatchArgs> for Filter {
    fn from(args: &WatchArgs) -> Self {
        Self {
            pids: args.pid.clone(),
            comms: args.comm.clone(),
            locks: args.lock.clone(),
            classes: args.class.clone(),
        }
    }
}

impl Filter {
    /// True if this stall is asked for, by what is known of it now.
    pub(super) fn matches(&self, stall: &Stall) -> bool {
        let lock = stall.facts.as_ref().map(Facts::lock);
        let name = lock.map_or("unknown", |lock| lock.name.as_str());
        let class = lock
            .map_or(&LockClass::Unknown, |lock| &lock.class)
            .to_string();
        self.matches_tasks(stall)
            && any(&self.locks, |wanted| matches_lock(wanted, stall.lock, name))
            && any(&self.classes, |wanted| *wanted == class)
    }

    /// Tells of findings of this survey about tasks or a CPU whether they are asked for: by
    /// one of the tasks, and one of the locks.
    pub(super) fn of_findings<'a>(&'a self, survey: &'a Survey) -> impl Fn(&Finding) -> bool + 'a {
        let is_empty = self.is_empty();
        // There may be thousands of findings: none may go through all locks or tasks.
        let mut locks: FxHashMap<String, &Lock> = FxHashMap::default();
        let mut tasks: FxHashMap<Tid, &TaskName> = FxHashMap::default();
        if !is_empty {
            locks.extend(survey.locks.iter().map(|it| (lock_id(it.address), it)));
            let sleepers = survey.sleepers.iter().map(|sleeper| &sleeper.task);
            let lockups = survey.lockups.iter();
            let on_cpus = lockups.filter_map(|lockup| lockup.task.as_ref());
            tasks.extend(sleepers.chain(on_cpus).map(|task| (task.key.tid, task)));
        }
        move |finding| is_empty || self.matches_finding(finding, &locks, &tasks)
    }

    fn is_empty(&self) -> bool {
        let Self {
            pids,
            comms,
            locks,
            classes,
        } = self;
        pids.is_empty() && comms.is_empty() && locks.is_empty() && classes.is_empty()
    }

    fn matches_finding(
        &self,
        finding: &Finding,
        locks: &FxHashMap<String, &Lock>,
        tasks: &FxHashMap<Tid, &TaskName>,
    ) -> bool {
        let locks: Vec<&Lock> = (finding.locks.iter())
            .filter_map(|id| locks.get(id).copied())
            .collect();
        let is_on = |matches: &dyn Fn(&Lock) -> bool| locks.iter().any(|lock| matches(lock));
        let by_lock = self.locks.is_empty()
            || is_on(&|lock| {
                any(&self.locks, |wanted| {
                    matches_lock(wanted, lock.address, &lock.name)
                })
            });
        let by_class = self.classes.is_empty()
            || is_on(&|lock| any(&self.classes, |wanted| *wanted == lock.class.to_string()));
        let waiters = locks.iter().flat_map(|lock| &lock.waiters);
        let holders = locks.iter().flat_map(|lock| &lock.holders);
        let mut tasks = (finding.tasks.iter())
            .filter_map(|tid| tasks.get(tid).copied())
            .chain(waiters.map(|waiter| &waiter.task))
            .chain(holders.map(|holder| &holder.task));
        let by_task = self.pids.is_empty() && self.comms.is_empty();
        by_lock && by_class && (by_task || tasks.any(|task| self.has(task)))
    }

    fn has(&self, task: &TaskName) -> bool {
        any(&self.pids, |&pid| {
            task.tgid == pid || task.key.tid.0 == pid.0
        }) && any(&self.comms, |comm| task.comm == **comm)
    }

    fn matches_tasks(&self, stall: &Stall) -> bool {
        let mut tasks = stall
            .blocked
            .values()
            .map(|wait| &wait.task)
            .chain(stall.holders.iter().map(|span| &span.holder.task));
        self.pids.is_empty() && self.comms.is_empty() || tasks.any(|task| self.has(task))
    }
}

fn any<T>(wanted: &[T], matches: impl Fn(&T) -> bool) -> bool {
    wanted.is_empty() || wanted.iter().any(matches)
}

fn matches_lock(wanted: &str, address: LockAddr, name: &str) -> bool {
    let by_address = wanted
        .strip_prefix("0x")
        .and_then(|digits| u64::from_str_radix(digits, 16).ok());
    by_address.map_or_else(|| name.contains(wanted), |wanted| wanted == address.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_named_by_address_or_by_part_of_its_name() {
        let address = LockAddr(0xffff_8880_0000_1000);
        assert!(matches_lock("0xffff888000001000", address, "unknown"));
        assert!(!matches_lock("0xffff888000001001", address, "unknown"));
        assert!(matches_lock(
            "filebeat",
            address,
            "mmap_lock of filebeat[4424]"
        ));
        assert!(!matches_lock(
            "nginx",
            address,
            "mmap_lock of filebeat[4424]"
        ));
    }
}
