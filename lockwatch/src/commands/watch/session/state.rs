//! What is exported of a session.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
};

use rustc_hash::{FxHashMap, FxHashSet};

use super::Session;
use crate::{
    clock::now_ns,
    commands::cost,
    detect::{Detector as _, HardLockup, HungTask, SoftLockup},
    export::{Hang, Root, Stalls, State},
    graph::{Facts, Stall},
    latency::Snapshot,
    lock::{Lock, LockAddr},
    report::Report,
    survey::Survey,
    task::TaskKey,
};

impl Session {
    /// All that is exported, as it is now.
    ///
    /// # Errors
    /// When the counts cannot be read, or what has ended meanwhile cannot be written.
    pub(in crate::commands) fn state(&mut self) -> io::Result<State> {
        self.read_waits()?;
        let latency = match &self.counts {
            Some(counts) => counts.snapshot()?,
            None => Snapshot::default(),
        };
        Ok(State {
            at: jiff::Timestamp::now(),
            since: self.since,
            latency,
            stalls: self.stalls(),
            blocked_tasks: self.blocked_tasks(),
            roots: self.roots(),
            hangs: self.hangs(),
            lost: self.lost.by_kind().to_vec(),
            cost: cost::now(),
        })
    }

    /// The stalls that stand and are asked for.
    fn standing(&self) -> impl Iterator<Item = &Stall> {
        let stalls = self.graph.stalls().into_iter();
        stalls.filter(|stall| self.filter.matches(stall))
    }

    fn stalls(&self) -> Stalls {
        let now_ns = now_ns();
        let ages = self.standing().map(|stall| stall.age(now_ns));
        let longest_standing = ages.max().unwrap_or_default();
        Stalls {
            threshold: self.threshold,
            // One that has just crossed the threshold may yet be refuted: a total must not go
            // back.
            total: self.stall_count,
            standing: self.standing().count() as u64,
            longest_standing,
            longest: self.longest.max(longest_standing),
        }
    }

    fn blocked_tasks(&self) -> u64 {
        let waiting = self
            .standing()
            .flat_map(|stall| self.graph.waits_for(stall.lock));
        let tasks: FxHashSet<TaskKey> = waiting.map(|wait| wait.task.key).collect();
        tasks.len() as u64
    }

    /// What the stalls that stand lead back to, by the last survey of each.
    fn roots(&mut self) -> Vec<Root> {
        let mut surveys: BTreeMap<u64, (Arc<Survey>, BTreeSet<LockAddr>)> = BTreeMap::new();
        for stall in self.standing() {
            if let Some(survey) = stall.facts.as_ref().map(Facts::survey) {
                let of_survey = surveys
                    .entry(survey.taken_at_ns)
                    .or_insert_with(|| (Arc::clone(survey), BTreeSet::new()));
                of_survey.1.insert(stall.lock);
            }
        }
        let mut roots = Vec::new();
        for (survey, stalled) in surveys.into_values() {
            roots.extend(roots_of(&survey, &self.reports.of(&survey), &stalled));
        }
        roots.sort_by_key(|root: &Root| Reverse(root.blocked_tasks));
        roots
    }

    fn hangs(&self) -> Vec<Hang> {
        let detectors = [HungTask.name(), SoftLockup.name(), HardLockup.name()];
        let hang = |detector| {
            let (total, standing) = self.hangs.findings.count_of(detector);
            Hang {
                detector,
                total,
                standing,
            }
        };
        detectors.map(hang).to_vec()
    }
}

/// The ends of the chains that go through one of these locks.
fn roots_of(survey: &Survey, report: &Report, stalled: &BTreeSet<LockAddr>) -> Vec<Root> {
    // There may be thousands of both: none may be searched for.
    let locks = survey.locks.iter().map(|lock| (lock.address, lock));
    let locks: FxHashMap<LockAddr, &Lock> = locks.collect();
    let mut roots = Vec::new();
    for chain in &report.chains {
        if !chain.graph.locks().any(|lock| stalled.contains(&lock)) {
            continue;
        }
        let last = chain.graph.locks().last();
        if let Some(lock) = last.and_then(|last| locks.get(&last)) {
            roots.push(Root {
                class: lock.class.clone(),
                comm: chain.root.comm.clone(),
                stuck: chain.stuck.class.word().to_owned(),
                blocked_tasks: chain.blocked_tasks.into(),
            });
        }
    }
    roots
}
