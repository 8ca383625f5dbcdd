//! The domain's lockups as the contract's.

use std::cmp::Reverse;

use super::{lock_id, stack_index};
use crate::{
    detect::{self, Subject},
    graph::{
        chain::Chain,
        locked_cpu::{blocked_tasks, held},
    },
    lock::Stacks,
    lockup,
    report::{
        Lockup, Task,
        lockup::{Context, Sharer, Spin, Starved},
    },
    survey::Survey,
};

/// The lockups of a survey, the worst first: those that most tasks wait behind, then the
/// longest.
pub(super) fn lockups(
    survey: &Survey,
    chains: &[Chain],
    findings: &[detect::Finding],
) -> Vec<Lockup> {
    let mut lockups: Vec<Lockup> = survey
        .lockups
        .iter()
        .map(|lockup| Lockup {
            holds: held(&survey.locks, lockup)
                .iter()
                .map(|(lock, _)| lock_id(lock.address))
                .collect(),
            blocked_tasks: blocked_tasks(chains, lockup),
            second_opinion: findings
                .iter()
                .filter(|finding| finding.subject == Some(Subject::Cpu(lockup.cpu)))
                .find_map(|finding| finding.second_opinion.clone()),
            ..Lockup::new(lockup, &survey.stacks)
        })
        .collect();
    lockups.sort_by_key(|it| (Reverse(it.blocked_tasks), Reverse(it.lasted_ns), it.cpu));
    lockups
}

impl Lockup {
    /// What follows from the lockup alone.
    fn new(lockup: &lockup::Lockup, stacks: &Stacks) -> Self {
        let lockup::Lockup {
            cpu,
            kind,
            lasted,
            task,
            context,
            is_task_interrupted,
            program,
            profile,
            samples,
            returns,
            starved,
            sharers,
            unknown,
        } = lockup;
        let spin = |spin: &lockup::Spin| {
            Some(Spin {
                stack: stack_index(spin.stack, stacks)?,
                count: spin.count,
            })
        };
        Self {
            cpu: *cpu,
            kind: *kind,
            lasted_ns: *lasted,
            task: task.as_ref().map(Task::from),
            context: Context::from(context),
            interrupted: *is_task_interrupted,
            program: program.clone(),
            profile: profile.iter().filter_map(spin).collect(),
            samples: *samples,
            returns: returns.and_then(|id| stack_index(id, stacks)),
            starved: starved.iter().map(Starved::from).collect(),
            sharers: sharers.iter().map(Sharer::from).collect(),
            holds: Vec::new(),
            blocked_tasks: 0,
            unknown: unknown.clone(),
            second_opinion: None,
        }
    }
}

impl From<&lockup::Context> for Context {
    fn from(context: &lockup::Context) -> Self {
        match context {
            lockup::Context::Task => Self::Task,
            lockup::Context::Softirq {
                vector,
                callback,
                callbacks,
            } => Self::Softirq {
                vector: vector.clone(),
                callback: callback.clone(),
                callbacks: *callbacks,
            },
            lockup::Context::Interrupt { handler } => Self::Interrupt {
                handler: handler.clone(),
            },
            lockup::Context::Unknown => Self::Unknown,
        }
    }
}

impl From<&lockup::Starved> for Starved {
    fn from(starved: &lockup::Starved) -> Self {
        let lockup::Starved { task, since } = starved;
        Self {
            tid: task.key.tid,
            comm: task.comm.to_string(),
            since_ns: *since,
        }
    }
}

impl From<&lockup::Sharer> for Sharer {
    fn from(sharer: &lockup::Sharer) -> Self {
        let lockup::Sharer {
            task,
            cpu,
            address,
            sharer_waits,
        } = sharer;
        Self {
            tid: task.key.tid,
            comm: task.comm.to_string(),
            cpu: *cpu,
            address: format!("{address:#x}"),
            waits: *sharer_waits,
        }
    }
}
