//! The domain's sleepers as the contract's hanging tasks.

use rustc_hash::FxHashMap;

use super::{lock_id, stack_index};
use crate::{
    daemon::{ConnectionAddr, Daemon},
    detect::{Finding, Subject, awaited_name},
    lock::{LockAddr, Stacks},
    report::{Awaits, Hung, HungTask, ways_out},
    sleeper::{Awaited, Hanging, Queue, Sleeper, hanging},
    survey::Survey,
    task::Nanos,
};

/// The tasks of a survey that hang past the threshold; none without one. `findings` are
/// those of the report, in its order.
pub(super) fn groups(survey: &Survey, threshold: Option<Nanos>, findings: &[Finding]) -> Vec<Hung> {
    let Some(threshold) = threshold else {
        return Vec::new();
    };
    let groups = hanging(&survey.sleepers, threshold);
    if groups.is_empty() {
        return Vec::new();
    }
    let locks: FxHashMap<LockAddr, &str> = (survey.locks.iter())
        .map(|lock| (lock.address, lock.name.as_str()))
        .collect();
    let daemons: FxHashMap<ConnectionAddr, &Daemon> = (survey.daemons.iter())
        .map(|daemon| (daemon.connection, daemon))
        .collect();
    let subjects = findings.iter().enumerate();
    let told: FxHashMap<&Awaited, usize> = subjects
        .filter_map(|(index, finding)| match &finding.subject {
            Some(Subject::Awaited(awaited)) => Some((awaited, index)),
            _ => None,
        })
        .collect();
    groups
        .iter()
        .map(|group| {
            let daemon = match group.awaits {
                Awaited::Fuse(connection) => daemons.get(connection).copied(),
                _ => None,
            };
            let name = match group.awaits {
                Awaited::Lock(address) => locks.get(address).copied(),
                _ => daemon.map(|daemon| daemon.name.as_str()),
            };
            Hung {
                finding: told.get(group.awaits).copied(),
                ..hung(group, name, daemon, &survey.stacks)
            }
        })
        .collect()
}

fn hung(group: &Hanging<'_>, name: Option<&str>, daemon: Option<&Daemon>, stacks: &Stacks) -> Hung {
    let tasks: Vec<HungTask> = (group.sleepers.iter())
        .map(|sleeper| HungTask::new(sleeper, stacks))
        .collect();
    Hung {
        awaits: awaits(group.awaits, daemon),
        name: awaited_name(group.awaits, name),
        stuck: (&group.sleepers[0].stuck).into(),
        ways_out: match group.awaits {
            Awaited::Lock(_) => Vec::new(),
            _ => ways_out::of_hung(daemon, &tasks),
        },
        tasks,
        awaited: group.awaits.clone(),
        finding: None,
    }
}

impl HungTask {
    fn new(sleeper: &Sleeper, stacks: &Stacks) -> Self {
        let Sleeper {
            task,
            killable,
            io_wait,
            asleep,
            awaits: _,
            stuck: _,
            stack,
        } = sleeper;
        Self {
            tid: task.key.tid,
            tgid: task.tgid,
            comm: task.comm.to_string(),
            killable: *killable,
            io_wait: *io_wait,
            asleep_ns: *asleep,
            stack: stack_index(*stack, stacks),
        }
    }
}

fn awaits(awaited: &Awaited, daemon: Option<&Daemon>) -> Awaits {
    let known = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    match awaited {
        Awaited::Lock(address) => Awaits::Lock(lock_id(*address)),
        Awaited::Device(name) => Awaits::Device(name.clone()),
        Awaited::Fuse(_) => Awaits::Fuse {
            connection: daemon.and_then(|daemon| daemon.number),
        },
        Awaited::Server { fstype, name } => Awaits::Server {
            fstype: fstype.clone(),
            name: known(name),
        },
        Awaited::Queue(Queue {
            kind,
            address,
            bit: _,
            function,
        }) => Awaits::Queue {
            kind: *kind,
            address: format!("{address:#x}"),
            function: known(function),
        },
        Awaited::Function(function) => Awaits::Unknown {
            function: known(function),
        },
        Awaited::Unknown => Awaits::Unknown { function: None },
    }
}
