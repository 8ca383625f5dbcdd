//! Tasks that have been in uninterruptible sleep longer than the threshold, as the kernel's
//! own hung-task detector has it, but one finding for each thing that they wait for, and
//! with the reason.

use rustc_hash::FxHashMap;

use super::{Detector, Finding, Scene, Severity, Subject, second_opinion};
use crate::{
    daemon::{ConnectionAddr, Daemon},
    figures::{Count, Span},
    graph::chain::Chain,
    lock::{Lock, LockAddr},
    sleeper::{Awaited, Hanging, hanging},
    task::{Nanos, StuckClass, Tid},
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct HungTask;

impl Detector for HungTask {
    fn name(&self) -> &'static str {
        "hung-task"
    }

    fn check(&self, scene: &Scene<'_>) -> Vec<Finding> {
        let Some(threshold) = scene.thresholds.hung_task else {
            return Vec::new();
        };
        let groups = hanging(scene.sleepers, threshold);
        if groups.is_empty() {
            return Vec::new();
        }
        let index = Index::of(scene);
        groups
            .iter()
            .map(|group| {
                let tasks: Vec<Tid> = (group.sleepers.iter())
                    .map(|sleeper| sleeper.task.key.tid)
                    .collect();
                let lock = match group.awaits {
                    Awaited::Lock(address) => index.locks.get(address).copied(),
                    _ => None,
                };
                Finding {
                    detector: self.name(),
                    severity: Severity::Critical,
                    sentence: sentence(group, threshold, &index),
                    locks: lock.iter().map(|lock| lock.address).collect(),
                    second_opinion: second_opinion::of_hung_tasks(scene, &group.sleepers, lock),
                    tasks,
                    subject: Some(Subject::Awaited(group.awaits.clone())),
                    ..Finding::EMPTY
                }
            })
            .collect()
    }
}

/// What a scene has, by what one asks for.
struct Index<'a> {
    locks: FxHashMap<LockAddr, &'a Lock>,
    daemons: FxHashMap<ConnectionAddr, &'a Daemon>,
    /// For each lock the chain that blocks most tasks.
    chains: FxHashMap<LockAddr, &'a Chain>,
}

impl<'a> Index<'a> {
    fn of(scene: &Scene<'a>) -> Self {
        let mut chains = FxHashMap::default();
        for chain in scene.chains {
            for address in chain.locks() {
                chains.entry(address).or_insert(chain);
            }
        }
        Self {
            locks: scene.locks.iter().map(|it| (it.address, it)).collect(),
            daemons: scene.daemons.iter().map(|it| (it.connection, it)).collect(),
            chains,
        }
    }
}

/// `12 tasks hang in state D for 2m00s or longer, waiting for block device sda; cp[7] longest,
/// for 6m12s; 3 of them can be killed`
fn sentence(group: &Hanging<'_>, threshold: Nanos, index: &Index<'_>) -> String {
    let oldest = group.sleepers[0];
    let count = group.sleepers.len();
    let name = match group.awaits {
        Awaited::Lock(address) => index.locks.get(address).map(|lock| lock.name.as_str()),
        Awaited::Fuse(connection) => index.daemons.get(connection).map(|it| it.name.as_str()),
        _ => None,
    };
    let what = waiting_for(group.awaits, name);
    let mut words = if count == 1 {
        format!(
            "{} has hung in uninterruptible sleep (state D) for {}, {what}",
            oldest.task,
            Span(oldest.asleep)
        )
    } else {
        format!(
            "{} tasks have hung in uninterruptible sleep (state D) for {} or longer, {what}; {} \
             longest, for {}",
            Count::of(count),
            Span(threshold),
            oldest.task,
            Span(oldest.asleep)
        )
    };
    let of_them = |some: usize, all: &str, part: &str| match some {
        0 => String::new(),
        some if some == count => format!("; {all}"),
        some => format!("; {} of them {part}", Count::of(some)),
    };
    let killable = group.sleepers.iter().filter(|it| it.killable).count();
    let all = if count == 1 {
        "it can be killed"
    } else {
        "all can be killed"
    };
    words.push_str(&of_them(killable, all, "can be killed"));
    let io = group.sleepers.iter().filter(|it| it.io_wait).count();
    if io < count {
        words.push_str(&of_them(io, "", "count as waiting for I/O"));
    }
    words.push_str(&root(group.awaits, index));
    words
}

/// What stands at the end of the waiting.
fn root(awaits: &Awaited, index: &Index<'_>) -> String {
    match awaits {
        Awaited::Lock(address) => match (index.chains.get(address), index.locks.get(address)) {
            (Some(chain), _) if chain.cycle => {
                "; tasks wait there for each other: it does not end by itself".to_owned()
            }
            (Some(chain), _) => {
                format!(
                    "; the root is {}: {}",
                    chain.root,
                    chain.stuck.class.words()
                )
            }
            (None, Some(lock)) => match &lock.note {
                Some(note) => format!("; {note}"),
                None => "; who holds it is not known".to_owned(),
            },
            (None, None) => String::new(),
        },
        Awaited::Fuse(connection) => {
            let Some(daemon) = index.daemons.get(connection) else {
                return String::new();
            };
            let mut serving = daemon.serving();
            match (serving.next(), serving.next()) {
                (Some(thread), None) if thread.stuck.class == StuckClass::Unknown => {
                    format!("; {} serves it and has not answered", thread.task)
                }
                (Some(thread), None) => format!(
                    "; {} serves it: {}",
                    thread.task,
                    thread.stuck.class.words()
                ),
                _ if daemon.owes_while_idle() => {
                    "; its daemon waits for requests and has not answered".to_owned()
                }
                _ => String::new(),
            }
        }
        _ => String::new(),
    }
}

fn waiting_for(awaits: &Awaited, name: Option<&str>) -> String {
    match awaits {
        Awaited::Fuse(_) => format!("waiting for an answer of {}", awaited_name(awaits, name)),
        Awaited::Function(function) => {
            format!("in {function}; what that waits for is not known")
        }
        Awaited::Unknown => "and what for is not known".to_owned(),
        _ => format!("waiting for {}", awaited_name(awaits, name)),
    }
}

/// What is waited for, in words; `name` is that of the lock or the daemon.
pub fn awaited_name(awaits: &Awaited, name: Option<&str>) -> String {
    match awaits {
        Awaited::Lock(address) => name.map_or_else(|| address.to_string(), ToOwned::to_owned),
        Awaited::Fuse(_) => name.unwrap_or("a FUSE daemon").to_owned(),
        Awaited::Device(device) => format!("block device {device}"),
        Awaited::Server { fstype, name } if name.is_empty() => format!("a server of {fstype}"),
        Awaited::Server { fstype, name } => format!("{fstype} server {name}"),
        Awaited::Queue(queue) if queue.function.is_empty() => {
            format!("{} {:#x}", queue.kind, queue.address)
        }
        Awaited::Queue(queue) => {
            format!("{} {:#x} in {}", queue.kind, queue.address, queue.function)
        }
        Awaited::Function(function) => format!("a wait in {function}"),
        Awaited::Unknown => "something unknown".to_owned(),
    }
}
