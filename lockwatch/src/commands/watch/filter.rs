//! Which stalls are asked for.

use crate::{
    cli::WatchArgs,
    graph::{Facts, Stall},
    lock::{Lock, LockAddr, LockClass},
    report::{self, Finding},
    survey::Survey,
    task::{TaskName, Tgid},
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

    /// True if this finding about tasks or a CPU is asked for: one of its tasks, and one of
    /// its locks.
    pub(super) fn matches_finding(&self, finding: &Finding, survey: &Survey) -> bool {
        let lock_of = |id: &String| {
            let mut locks = survey.locks.iter();
            locks.find(|lock| report::lock_id(lock.address) == *id)
        };
        let locks: Vec<&Lock> = finding.locks.iter().filter_map(lock_of).collect();
        let is_on = |matches: &dyn Fn(&Lock) -> bool| locks.iter().any(|lock| matches(lock));
        let by_lock = self.locks.is_empty()
            || is_on(&|lock| {
                any(&self.locks, |wanted| {
                    matches_lock(wanted, lock.address, &lock.name)
                })
            });
        let by_class = self.classes.is_empty()
            || is_on(&|lock| any(&self.classes, |wanted| *wanted == lock.class.to_string()));
        let sleepers = survey.sleepers.iter().map(|sleeper| &sleeper.task);
        let on_cpus = survey
            .lockups
            .iter()
            .filter_map(|lockup| lockup.task.as_ref());
        let waiters = locks.iter().flat_map(|lock| &lock.waiters);
        let holders = locks.iter().flat_map(|lock| &lock.holders);
        let mut tasks = sleepers
            .chain(on_cpus)
            .filter(|task| finding.tasks.contains(&task.key.tid))
            .chain(waiters.map(|waiter| &waiter.task))
            .chain(holders.map(|holder| &holder.task));
        let by_task = self.pids.is_empty() && self.comms.is_empty();
        by_lock && by_class && (by_task || tasks.any(|task| self.has(task)))
    }

    fn has(&self, task: &TaskName) -> bool {
        any(&self.pids, |&pid| {
            task.tgid == pid || task.key.tid.0 == pid.0
        }) && any(&self.comms, |comm| *comm == task.comm)
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
