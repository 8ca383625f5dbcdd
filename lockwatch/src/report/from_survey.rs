//! From a survey to a report: chains, detectors, and the domain's types as the
//! contract's.

use std::cmp::Reverse;

use super::{
    CONTRACT, Chain, Coverage, Evidence, Finding, Holder, Host, Lock, Object, Report, Source, Step,
    Stuck, Task, Waiter, text,
};
use crate::{
    detect::{self, Scene},
    figures::Count,
    graph::chain::{self, Chain as GraphChain},
    lock::{self, LockAddr, LockObject, StackId, Stacks},
    survey::Survey,
    task::{self, Nanos, TaskName},
};

impl Report {
    /// The report of one survey. Waits of `threshold` and longer are stalls.
    pub fn from_survey(survey: &Survey, host: &Host, threshold: Nanos) -> Self {
        let chains = chain::chains(&survey.locks);
        let findings = detect::check(&Scene {
            locks: &survey.locks,
            chains: &chains,
            threshold,
        });
        let mut locks: Vec<&lock::Lock> = survey.locks.iter().collect();
        locks.sort_by_cached_key(|lock| rank(lock, &chains));
        Self {
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
                .into_iter()
                .map(|lock| Lock::new(lock, &survey.stacks))
                .collect(),
            chains: chains
                .into_iter()
                .map(|chain| Chain::new(chain, &survey.locks))
                .collect(),
            findings: findings.into_iter().map(Finding::from).collect(),
            threshold,
        }
    }
}

/// Sorts locks: those of the chain that blocks most tasks first, from its root outwards;
/// a lock in no chain counts by its own queue.
fn rank(lock: &lock::Lock, chains: &[GraphChain]) -> impl Ord + use<> {
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

fn lock_id(address: LockAddr) -> String {
    format!("lock@{:x}", address.0)
}

fn stack_index(id: StackId, stacks: &Stacks) -> Option<u32> {
    (!stacks.frames(id).is_empty()).then_some(id.0)
}

impl Lock {
    fn new(lock: &lock::Lock, stacks: &Stacks) -> Self {
        let count_text = lock.count_text();
        // Named one by one, so that a new field of the domain is not forgotten here.
        let lock::Lock {
            address,
            kind,
            class,
            name,
            object,
            state,
            reader_count,
            count: _,
            count_is_signed: _,
            owner,
            holders,
            waiters,
            spinners,
            by_priority,
            note,
        } = lock;
        Self {
            id: lock_id(*address),
            address: address.to_string(),
            kind: *kind,
            class: class.to_string(),
            name: name.clone(),
            object: object.as_ref().map(Object::from),
            state: *state,
            reader_count: *reader_count,
            count: count_text,
            owner: format!("{owner:#x}"),
            holders: holders.iter().map(|h| Holder::new(h, stacks)).collect(),
            waiters: waiters.iter().map(|w| Waiter::new(w, stacks)).collect(),
            spinners: spinners.clone(),
            note: note.clone(),
            by_priority: *by_priority,
            at: *address,
        }
    }
}

impl From<&LockObject> for Object {
    fn from(object: &LockObject) -> Self {
        match object {
            LockObject::Mm { mm: _, owner } => Self::Mm {
                tgid: owner.as_ref().map(|(tgid, _)| *tgid),
                comm: owner.as_ref().map(|(_, comm)| comm.clone()),
            },
            LockObject::Vma { start, end, owner } => Self::Vma {
                tgid: owner.as_ref().map(|(tgid, _)| *tgid),
                comm: owner.as_ref().map(|(_, comm)| comm.clone()),
                start: format!("{start:#x}"),
                end: format!("{end:#x}"),
            },
            LockObject::Inode {
                inode: _,
                fstype,
                sb,
                ino,
                path,
            } => Self::Inode {
                fstype: fstype.clone(),
                sb: sb.clone(),
                ino: *ino,
                path: path.clone(),
            },
            LockObject::SuperBlock {
                super_block: _,
                fstype,
                id,
                mount: _,
            } => Self::SuperBlock {
                fstype: fstype.clone(),
                id: id.clone(),
            },
            LockObject::Symbol(symbol) => Self::Symbol(symbol.clone()),
        }
    }
}

impl Holder {
    fn new(holder: &lock::Holder, stacks: &Stacks) -> Self {
        let lock::Holder {
            task,
            mode,
            confidence,
            evidence,
            stood: _,
            cgroup,
            throttled: _,
            state,
            stuck,
            held,
            held_is_lower_bound,
            stack,
        } = holder;
        Self {
            tid: task.key.tid,
            tgid: task.tgid,
            comm: task.comm.clone(),
            cgroup: cgroup.clone(),
            mode: *mode,
            confidence: *confidence,
            evidence: evidence
                .iter()
                .map(|evidence| Evidence {
                    kind: evidence.kind,
                    frame: evidence.frame.clone(),
                    value: evidence.value.clone(),
                })
                .collect(),
            state: state.letter(),
            stuck: stuck.into(),
            held_ns: *held,
            held_is_lower_bound: held.map(|_| *held_is_lower_bound),
            stack: stack_index(*stack, stacks),
        }
    }
}

impl From<&task::Stuck> for Stuck {
    fn from(stuck: &task::Stuck) -> Self {
        Self {
            class: stuck.class,
            frame: stuck.frame.clone(),
            since_ns: stuck.since,
        }
    }
}

impl Waiter {
    fn new(waiter: &lock::Waiter, stacks: &Stacks) -> Self {
        let lock::Waiter {
            task,
            position,
            mode,
            wait,
            wait_source,
            killable,
            granted,
            state: _,
            caller,
            stack,
        } = waiter;
        Self {
            position: *position,
            tid: task.key.tid,
            tgid: task.tgid,
            comm: task.comm.clone(),
            cgroup: None,
            mode: *mode,
            wait_ns: *wait,
            wait_source: *wait_source,
            killable: *killable,
            granted: *granted,
            stack: stack_index(*stack, stacks),
            caller: caller.clone(),
        }
    }
}

impl From<&TaskName> for Task {
    fn from(task: &TaskName) -> Self {
        Self {
            tid: task.key.tid,
            comm: task.comm.clone(),
        }
    }
}

impl From<&chain::Step> for Step {
    fn from(step: &chain::Step) -> Self {
        match step {
            chain::Step::Task(task) => Self::Task(task.key.tid),
            chain::Step::Lock(address) => Self::Lock(lock_id(*address)),
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
        } = finding;
        Self {
            detector: detector.to_owned(),
            severity,
            sentence,
            locks: locks.into_iter().map(lock_id).collect(),
            tasks,
            path: Vec::new(),
        }
    }
}
