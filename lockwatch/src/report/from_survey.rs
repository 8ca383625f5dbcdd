//! From a survey to a report: chains, detectors, and the domain's types as the
//! contract's.

use std::{cmp::Reverse, collections::BTreeMap};

use super::{
    BlockDevice, CONTRACT, Chain, Client, Coverage, Daemon, DaemonThread, Evidence, Finding,
    Holder, Host, Lock, Next, Object, Report, Source, Step, Stuck, Task, Waiter, text, ways_out,
};
use crate::{
    daemon,
    detect::{self, Detectors, Scene},
    figures::Count,
    graph::chain::{self, Chain as GraphChain},
    lock::{self, LockAddr, LockObject, StackId, Stacks},
    survey::Survey,
    task::{self, Nanos, TaskName},
};

impl Report {
    /// The report of one survey. Waits of `threshold` and longer are stalls, and
    /// `detectors` are asked.
    pub fn from_survey(
        survey: &Survey,
        host: &Host,
        threshold: Nanos,
        detectors: &Detectors,
    ) -> Self {
        let chains = chain::chains(&survey.locks, &survey.daemons);
        let findings = detectors.check(&Scene::new(survey, &chains, threshold));
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
            chains: chains
                .into_iter()
                .map(|chain| Chain::new(chain, &survey.locks))
                .collect(),
            findings: findings.into_iter().map(Finding::from).collect(),
            threshold,
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

fn lock_id(address: LockAddr) -> String {
    format!("lock@{:x}", address.0)
}

fn stack_index(id: StackId, stacks: &Stacks) -> Option<u32> {
    (!stacks.frames(id).is_empty()).then_some(id.0)
}

impl Lock {
    fn new(lock: &lock::Lock, stacks: &Stacks, in_chains: Vec<usize>) -> Self {
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
            first_was_overtaken: _,
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
            next: None,
            ways_out: Vec::new(),
            by_priority: *by_priority,
            at: *address,
            in_chains,
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
            device: stuck.device.as_ref().map(|device| BlockDevice {
                name: device.name.clone(),
                in_flight: device.in_flight,
            }),
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

impl Daemon {
    fn new(daemon: &daemon::Daemon, stacks: &Stacks) -> Self {
        let daemon::Daemon {
            connection: _,
            number,
            name,
            clients,
            threads,
        } = daemon;
        Self {
            connection: *number,
            name: name.clone(),
            clients: clients.iter().map(|it| Client::new(it, stacks)).collect(),
            threads: threads
                .iter()
                .map(|it| DaemonThread::new(it, stacks))
                .collect(),
        }
    }
}

impl Client {
    fn new(client: &daemon::Client, stacks: &Stacks) -> Self {
        let daemon::Client {
            task,
            wait,
            is_sent,
            killable,
            stood: _,
            stack,
        } = client;
        Self {
            tid: task.key.tid,
            tgid: task.tgid,
            comm: task.comm.clone(),
            wait_ns: *wait,
            is_sent: *is_sent,
            killable: *killable,
            stack: stack_index(*stack, stacks),
        }
    }
}

impl DaemonThread {
    fn new(thread: &daemon::DaemonThread, stacks: &Stacks) -> Self {
        let daemon::DaemonThread {
            task,
            serves,
            evidence,
            state,
            stuck,
            stood: _,
            stack,
        } = thread;
        Self {
            tid: task.key.tid,
            tgid: task.tgid,
            comm: task.comm.clone(),
            serves: *serves,
            evidence: *evidence,
            state: state.letter(),
            stuck: stuck.into(),
            stack: stack_index(*stack, stacks),
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
        } = finding;
        Self {
            detector: detector.to_owned(),
            severity,
            sentence,
            locks: locks.into_iter().map(lock_id).collect(),
            tasks,
            path: path.iter().map(Step::from).collect(),
            evidence,
        }
    }
}
