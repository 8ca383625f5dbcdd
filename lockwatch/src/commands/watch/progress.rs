//! What has been said of a standing stall, and when to look and speak again.

use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    commands::watch::holders::WatchedHolder,
    graph::Stall,
    lock::LockKind,
    task::{Nanos, TaskKey},
};

/// First pause between surveys of one stall; doubled while nothing changes.
const SURVEY_PAUSE_MIN: Nanos = Nanos(1_000_000_000);
const SURVEY_PAUSE_MAX: Nanos = Nanos(8_000_000_000);
/// A stall whose lock no survey has found by then, or in so many looks, is reported
/// without its holder.
const UNSURVEYED: Nanos = Nanos(3_000_000_000);
const UNSURVEYED_LOOKS: u32 = 2;

/// Why a stall is reported now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Reason {
    /// It has crossed the threshold.
    Crossed,
    /// It has a holder that was not known before.
    NewHolder,
    /// Its waiters turn out to wait for each other, or for tasks that do.
    Deadlock,
    /// It still stands, twice as long as when it was last reported.
    Stands,
}

/// The standing stall's own history of reports.
#[derive(Debug)]
pub(super) struct Progress {
    crossed_at_ns: u64,
    survey_due_ns: u64,
    survey_pause: Nanos,
    surveys: u32,
    /// Age of the stall at the next report without news.
    next_report: Option<Nanos>,
    holders: Vec<TaskKey>,
    /// The last survey that found its lock has found a deadlock behind it.
    pub(super) is_deadlocked: bool,
    is_deadlock_told: bool,
    pub(super) watched: Vec<WatchedHolder>,
}

impl Progress {
    /// A stall that has just crossed the threshold.
    pub(super) fn new(now_ns: u64) -> Self {
        Self {
            crossed_at_ns: now_ns,
            survey_due_ns: now_ns,
            survey_pause: SURVEY_PAUSE_MIN,
            surveys: 0,
            next_report: None,
            holders: Vec::new(),
            is_deadlocked: false,
            is_deadlock_told: false,
            watched: Vec::new(),
        }
    }

    /// True if it has been reported.
    pub(super) fn is_reported(&self) -> bool {
        self.next_report.is_some()
    }

    /// True if a survey should look at it: in its turn, or for the next report.
    pub(super) fn needs_survey(&self, stall: &Stall, now_ns: u64) -> bool {
        let report_due = self
            .next_report
            .is_some_and(|next_report| stall.age(now_ns) >= next_report);
        now_ns >= self.survey_due_ns || report_due && stall.facts.is_some()
    }

    /// A survey has looked, whether it found the lock or not.
    pub(super) fn surveyed(&mut self, now_ns: u64) {
        self.surveys += 1;
        self.survey_due_ns = now_ns + self.survey_pause.0;
        self.survey_pause = Nanos(self.survey_pause.0 * 2).min(SURVEY_PAUSE_MAX);
    }

    /// Whether to report it now. `is_surveyed`: the survey that has just ended found
    /// its lock; `no_survey`: none can be had.
    pub(super) fn due(
        &self,
        stall: &Stall,
        is_surveyed: bool,
        no_survey: bool,
        now_ns: u64,
    ) -> Option<Reason> {
        let Some(next_report) = self.next_report else {
            let looks = if stall.kind == LockKind::Rwsem {
                UNSURVEYED_LOOKS
            } else {
                1 // Surveys look at rwsems only.
            };
            let in_vain =
                self.surveys >= looks || Nanos::between(self.crossed_at_ns, now_ns) >= UNSURVEYED;
            return (is_surveyed || no_survey || in_vain).then_some(Reason::Crossed);
        };
        if is_surveyed && self.is_deadlocked && !self.is_deadlock_told {
            Some(Reason::Deadlock)
        } else if is_surveyed && current_holders(stall).any(|key| !self.holders.contains(&key)) {
            Some(Reason::NewHolder)
        } else {
            // With fresh facts where surveys find it, on time where they do not.
            let is_due = stall.age(now_ns) >= next_report;
            (is_due && (is_surveyed || no_survey || stall.facts.is_none()))
                .then_some(Reason::Stands)
        }
    }

    /// It has been reported.
    pub(super) fn reported(&mut self, stall: &Stall, reason: Reason, now_ns: u64) {
        self.next_report = Some(Nanos(stall.age(now_ns).0.saturating_mul(2)));
        self.is_deadlock_told |= self.is_deadlocked;
        for key in current_holders(stall) {
            if !self.holders.contains(&key) {
                self.holders.push(key);
            }
        }
        if reason == Reason::NewHolder {
            self.survey_pause = SURVEY_PAUSE_MIN;
        }
    }
}

/// Holders in the last survey whom we would name.
fn current_holders(stall: &Stall) -> impl Iterator<Item = TaskKey> {
    stall
        .facts
        .iter()
        .flat_map(|facts| &facts.lock().holders)
        .filter(|holder| holder.confidence.carries_weight())
        .map(|holder| holder.task.key)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        graph::WaitGraph,
        lock::{Confidence, LockMode},
        report::example,
        stream::{Event, Wait},
        survey::Survey,
    };

    const SEC: u64 = 1_000_000_000;

    /// A graph in which the first lock of this survey has stalled since time 0.
    fn stalled(survey: &Arc<Survey>) -> WaitGraph {
        let mut graph = WaitGraph::new(Nanos(SEC));
        let lock = &survey.locks[0];
        graph.apply(&Event::WaitBegin(Wait {
            task: lock.waiters[0].task.clone(),
            lock: lock.address,
            kind: lock.kind,
            mode: LockMode::Write,
            since_ns: 0,
        }));
        graph.advance(SEC);
        graph
    }

    #[test]
    fn a_stall_is_reported_once_surveyed_then_at_twice_its_age() {
        let survey = Arc::new(example::incident());
        let mut graph = stalled(&survey);
        let mut progress = Progress::new(SEC);
        let stall = graph.stalls()[0].clone();
        assert!(progress.needs_survey(&stall, SEC));
        assert_eq!(progress.due(&stall, false, false, SEC), None);

        graph.reconcile_survey(&survey);
        let stall = graph.stalls()[0].clone();
        progress.surveyed(SEC);
        let reason = progress.due(&stall, true, false, SEC);
        assert_eq!(reason, Some(Reason::Crossed));
        progress.reported(&stall, Reason::Crossed, SEC);

        assert!(!progress.needs_survey(&stall, SEC + SEC / 2));
        assert_eq!(progress.due(&stall, true, false, SEC + SEC / 2), None);
        assert!(progress.needs_survey(&stall, 2 * SEC));
        let reason = progress.due(&stall, true, false, 2 * SEC);
        assert_eq!(reason, Some(Reason::Stands));
        progress.reported(&stall, Reason::Stands, 2 * SEC);
        assert_eq!(progress.due(&stall, true, false, 3 * SEC), None);
    }

    #[test]
    fn a_new_holder_is_news_a_possible_one_is_not() {
        let mut survey = example::incident();
        let mut graph = stalled(&Arc::new(survey.clone()));
        let mut progress = Progress::new(SEC);
        graph.reconcile_survey(&Arc::new(survey.clone()));
        progress.reported(graph.stalls()[0], Reason::Crossed, SEC);

        let holder = &mut survey.locks[0].holders[0];
        holder.task.key.tid.0 += 1;
        holder.confidence = Confidence::Possible;
        graph.reconcile_survey(&Arc::new(survey.clone()));
        assert_eq!(progress.due(graph.stalls()[0], true, false, SEC + 1), None);

        survey.locks[0].holders[0].confidence = Confidence::Certain;
        graph.reconcile_survey(&Arc::new(survey));
        let reason = progress.due(graph.stalls()[0], true, false, SEC + 1);
        assert_eq!(reason, Some(Reason::NewHolder));
    }

    #[test]
    fn a_lock_that_no_survey_finds_is_reported_all_the_same() {
        let survey = Arc::new(example::incident());
        let graph = stalled(&survey);
        let mut progress = Progress::new(SEC);
        let stall = graph.stalls()[0];
        progress.surveyed(SEC);
        assert_eq!(progress.due(stall, false, false, 2 * SEC), None);
        let at_once = progress.due(stall, false, true, SEC);
        assert_eq!(at_once, Some(Reason::Crossed));
        let in_the_end = progress.due(stall, false, false, 4 * SEC);
        assert_eq!(in_the_end, Some(Reason::Crossed));
    }
}
