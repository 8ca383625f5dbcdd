//! From a survey to a report: chains, detectors, and the domain's types as the
//! contract's.

mod daemons;
mod hung;
mod locks;
mod lockups;

use std::{cmp::Reverse, collections::BTreeMap};

use super::{
    CONTRACT, Chain, Coverage, Daemon, Finding, Host, Lock, Next, Report, Source, Step, Stuck,
    Task, text, ways_out,
};
use crate::{
    daemon,
    detect::{self, Detectors, Scene, Thresholds},
    figures::Count,
    graph::chain::{self, Chain as GraphChain},
    lock::{self, LockAddr, StackId, Stacks},
    survey::Survey,
    task::TaskName,
};

impl Report {
    /// The report of one survey. Past the `thresholds` something counts, and
    /// `detectors` are asked.
    pub fn from_survey(
        survey: &Survey,
        host: &Host,
        thresholds: Thresholds,
        detectors: &Detectors,
    ) -> Self {
        let chains = chain::chains(&survey.locks, &survey.daemons);
        let findings = detectors.check(&Scene::new(survey, &chains, thresholds));
        let mut in_chains: BTreeMap<LockAddr, Vec<usize>> = BTreeMap::new();
        for (index, chain) in chains.iter().enumerate() {
            for address in chain.locks() {
                in_chains.entry(address).or_default().push(index);
            }
        }
        let mut locks: Vec<&lock::Lock> = survey.locks.iter().collect();
        locks.sort_by_cached_key(|lock| {
            let of_it = in_chains.get(&lock.address).into_iter().flatten();
            let of_it: Vec<&GraphChain> = of_it.map(|&index| &chains[index]).collect();
            rank(lock, &of_it)
        });
        let mut daemons: Vec<&daemon::Daemon> = survey.daemons.iter().collect();
        daemons.sort_by_key(|daemon| (Reverse(daemon.clients.len()), daemon.connection));
        let mut report = Self {
            schema: CONTRACT,
            lockwatch: env!("CARGO_PKG_VERSION"),
            taken_at: survey.taken_at,
            duration_ns: survey.duration,
            host: host.clone(),
            coverage: Coverage {
                source: Source::Survey,
                looks: Some(survey.looks),
                tasks: survey.task_count,
                degraded: survey.degraded.clone(),
                lost: None,
            },
            stacks: survey.stacks.iter().map(<[String]>::to_vec).collect(),
            locks: locks
                .iter()
                .map(|lock| {
                    let in_chains = in_chains.get(&lock.address).cloned();
                    Lock::new(lock, &survey.stacks, in_chains.unwrap_or_default())
                })
                .collect(),
            daemons: daemons
                .into_iter()
                .map(|daemon| Daemon::new(daemon, &survey.stacks))
                .collect(),
            hung: hung::groups(survey, thresholds.hung_task, &findings),
            lockups: lockups::lockups(survey, &chains, &findings),
            chains: chains
                .into_iter()
                .map(|chain| Chain::new(chain, &survey.locks))
                .collect(),
            findings: findings.into_iter().map(Finding::from).collect(),
            threshold: thresholds.wait,
            hung_threshold: thresholds.hung_task,
        };
        // These follow from everything else.
        let awaited = ways_out::Awaited::new(&survey.daemons);
        let outlooks: Vec<_> = report
            .locks
            .iter()
            .zip(locks)
            .map(|(at, lock)| {
                let ways_out = ways_out::of(&report, &awaited, at);
                (Next::of(&report, at, lock), ways_out)
            })
            .collect();
        for (lock, (next, ways_out)) in report.locks.iter_mut().zip(outlooks) {
            lock.next = next;
            lock.ways_out = ways_out;
        }
        report
    }
}

/// Sorts locks: those of the chain that blocks most tasks first, from its root outwards;
/// a lock in no chain counts by its own queue.
fn rank(lock: &lock::Lock, chains: &[&GraphChain]) -> impl Ord + use<> {
    let direct = lock.waiters.iter().filter(|waiter| !waiter.granted).count();
    let (blocked, distance) = chains
        .iter()
        .filter_map(|chain| {
            let route = chain.route(lock.address)?;
            Some((chain.blocked_tasks as usize, Reverse(route.len())))
        })
        .max()
        .unwrap_or((direct, Reverse(0)));
    (
        Reverse(blocked),
        distance.0,
        Reverse(direct),
        Reverse(lock.oldest_wait()),
        lock.address,
    )
}

pub(crate) fn lock_id(address: LockAddr) -> String {
    format!("lock@{:x}", address.0)
}

fn stack_index(id: StackId, stacks: &Stacks) -> Option<u32> {
    (!stacks.frames(id).is_empty()).then_some(id.0)
}

impl From<&TaskName> for Task {
    fn from(task: &TaskName) -> Self {
        Self {
            tid: task.key.tid,
            comm: task.comm.to_string(),
        }
    }
}

impl From<&chain::Step> for Step {
    fn from(step: &chain::Step) -> Self {
        match step {
            chain::Step::Task(task) => Self::Task(task.key.tid),
            chain::Step::Lock(address) => Self::Lock(lock_id(*address)),
            chain::Step::Daemon(task) => Self::Daemon(task.key.tid),
        }
    }
}

impl Chain {
    fn new(chain: GraphChain, locks: &[lock::Lock]) -> Self {
        Self {
            root: Task::from(&chain.root),
            blocked_tasks: chain.blocked_tasks,
            path: chain.path.iter().map(Step::from).collect(),
            cycle: chain.cycle,
            stuck: Stuck::from(&chain.stuck),
            sentence: sentence(&chain, locks),
            graph: chain,
        }
    }
}

/// A chain in words.
fn sentence(chain: &GraphChain, locks: &[lock::Lock]) -> String {
    let blocked = Count::from(chain.blocked_tasks).nouns("task", "tasks");
    if chain.cycle {
        let names: Vec<String> = chain
            .path
            .iter()
            .map(|step| match step {
                chain::Step::Task(task) => task.to_string(),
                chain::Step::Daemon(task) => format!("daemon {task}"),
                chain::Step::Lock(address) => locks
                    .iter()
                    .find(|lock| lock.address == *address)
                    .map_or_else(|| lock_id(*address), |lock| lock.name.clone()),
            })
            .collect();
        return format!(
            "tasks that wait for each other block {blocked}: {}",
            names.join(" ← ")
        );
    }
    format!(
        "{} blocks {blocked}: {}",
        chain.root,
        text::stuck_words(chain.stuck.class)
    )
}

impl From<detect::Finding> for Finding {
    fn from(finding: detect::Finding) -> Self {
        let detect::Finding {
            detector,
            severity,
            sentence,
            locks,
            tasks,
            path,
            evidence,
            subject,
            second_opinion,
        } = finding;
        Self {
            detector: detector.to_owned(),
            severity,
            sentence,
            locks: locks.into_iter().map(lock_id).collect(),
            tasks,
            path: path.iter().map(Step::from).collect(),
            evidence,
            second_opinion,
            subject,
        }
    }
}
