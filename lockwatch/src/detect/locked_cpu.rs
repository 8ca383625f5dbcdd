//! What soft and hard lockups have in common: who is on the CPU, what it keeps from others,
//! and who is ready to run there.

use super::{Finding, Scene, Severity, Subject, second_opinion::of_lockup};
use crate::{
    figures::Count,
    graph::locked_cpu::{blocked_tasks, held},
    lock::{Holder, Lock, LockMode},
    lockup::{Context, Lockup, LockupKind},
    task::{Nanos, Tid},
};

/// A CPU that does not go on.
pub(super) struct LockedCpu<'a> {
    pub(super) scene: &'a Scene<'a>,
    pub(super) lockup: &'a Lockup,
}

impl<'a> LockedCpu<'a> {
    /// Those of a kind that have lasted for the threshold or longer; none without one.
    pub(super) fn all(
        scene: &'a Scene<'a>,
        kind: LockupKind,
        threshold: Option<Nanos>,
    ) -> impl Iterator<Item = Self> {
        let lockups = scene.lockups.iter();
        lockups
            .filter(move |lockup| {
                lockup.kind == kind && threshold.is_some_and(|it| lockup.lasted >= it)
            })
            .map(move |lockup| Self { scene, lockup })
    }

    /// The finding that begins with these words.
    pub(super) fn finding(&self, detector: &'static str, what: String) -> Finding {
        let held = held(self.scene.locks, self.lockup);
        let mut parts = vec![what];
        parts.extend(self.holds(&held));
        let starved = self.lockup.starved.len();
        if starved > 0 {
            let starved = Count::of(starved).nouns("task is", "tasks are");
            parts.push(format!("{starved} ready to run there"));
        }
        let task = self.lockup.task.iter().map(|task| task.key.tid);
        let starved = self.lockup.starved.iter().map(|it| it.task.key.tid);
        let tasks: Vec<Tid> = task.chain(starved).collect();
        Finding {
            detector,
            severity: Severity::Critical,
            sentence: parts.join("; "),
            locks: held.iter().map(|(lock, _)| lock.address).collect(),
            tasks,
            subject: Some(Subject::Cpu(self.lockup.cpu)),
            second_opinion: of_lockup(self.scene, self.lockup),
            ..Finding::EMPTY
        }
    }

    /// `it holds mmap_lock of java[900] (write, certain), 5 tasks wait for it`
    fn holds(&self, held: &[(&Lock, &Holder)]) -> Option<String> {
        let (lock, holder) = held.first()?;
        let who = match &self.lockup.task {
            Some(task) if self.lockup.is_task_interrupted => task.to_string(),
            _ => "it".to_owned(),
        };
        let mode = match holder.mode {
            _ if !lock.kind.has_readers() => "",
            LockMode::Read => "read, ",
            LockMode::Write => "write, ",
        };
        let sure = holder.confidence.word();
        let others = match held.len() {
            1 => String::new(),
            more => format!(" and {} more", Count::of(more - 1).nouns("lock", "locks")),
        };
        let blocked = Count::from(blocked_tasks(self.scene.chains, self.lockup));
        let blocked = blocked.nouns("task waits", "tasks wait");
        Some(format!(
            "{who} holds {} ({mode}{sure}){others}, {blocked} behind that",
            lock.name
        ))
    }

    /// The task, or what the CPU has where it has none.
    pub(super) fn task(&self) -> String {
        match &self.lockup.task {
            Some(task) => task.to_string(),
            None => "its idle task".to_owned(),
        }
    }

    /// `, on top of cat[77], which is only interrupted`
    pub(super) fn on_top_of(&self) -> String {
        match &self.lockup.task {
            Some(task) if self.lockup.is_task_interrupted => {
                format!(", on top of {task}, which is only interrupted")
            }
            Some(task) => format!(", in {task}"),
            None => ", on top of its idle task".to_owned(),
        }
    }

    /// The innermost place that all samples have in common.
    pub(super) fn within(&self) -> Option<String> {
        let common = self.lockup.common(self.scene.stacks);
        self.lockup
            .program
            .clone()
            .or_else(|| Some((*common.first()?).to_owned()))
    }

    /// `piled-up timer callbacks, 7 different ones, most often tcp_write_timer`
    pub(super) fn piled_up(&self) -> Option<String> {
        let Context::Softirq {
            vector,
            callback: Some(callback),
            callbacks: callbacks @ 2..,
        } = &self.lockup.context
        else {
            return None;
        };
        let what = match vector.as_deref() {
            Some("TIMER") => "piled-up timer callbacks",
            _ => "callbacks",
        };
        let many = Count::from(*callbacks);
        Some(format!(
            "{what}, {many} different ones, most often {callback}"
        ))
    }
}
