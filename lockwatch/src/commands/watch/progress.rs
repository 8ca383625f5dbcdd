//! What has been said of a standing stall, and when to look and speak again.

use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    graph::Stall,
    lock::Confidence,
    stream::Times,
    task::{Nanos, TaskKey, TaskName},
};

/// First pause between surveys of one stall; doubled while nothing changes.
const SURVEY_PAUSE_MIN: Nanos = Nanos(1_000_000_000);
const SURVEY_PAUSE_MAX: Nanos = Nanos(8_000_000_000);
/// A stall whose lock no survey has found by then is reported without its holder.
const UNSURVEYED: Nanos = Nanos(3_000_000_000);

/// Why a stall is reported now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Reason {
    /// It has crossed the threshold.
    Crossed,
    /// It has a holder that was not known before.
    NewHolder,
    /// It still stands, twice as long as when it was last reported.
    Stands,
}

/// A holder whose times are kept for this stall.
#[derive(Clone, Debug)]
pub(super) struct WatchedHolder {
    pub(super) task: TaskName,
    /// Its times when the stall began to keep them.
    pub(super) before: Times,
}

/// The standing stall's own history of reports.
#[derive(Debug)]
pub(super) struct Progress {
    crossed_at_ns: u64,
    survey_due_ns: u64,
    survey_pause: Nanos,
    /// Age of the stall at the next report without news.
    next_report: Option<Nanos>,
    holders: Vec<TaskKey>,
    pub(super) watched: Vec<WatchedHolder>,
}

impl Progress {
    /// A stall that has just crossed the threshold.
    pub(super) fn new(now_ns: u64) -> Self {
        Self {
            crossed_at_ns: now_ns,
            survey_due_ns: now_ns,
            survey_pause: SURVEY_PAUSE_MIN,
            next_report: None,
            holders: Vec::new(),
            watched: Vec::new(),
        }
    }

    /// True if it has been reported.
    pub(super) fn is_reported(&self) -> bool {
        self.next_report.is_some()
    }

    /// True if a survey should look at it.
    pub(super) fn needs_survey(&self, now_ns: u64) -> bool {
        now_ns >= self.survey_due_ns
    }

    /// A survey has looked, whether it found the lock or not.
    pub(super) fn surveyed(&mut self, now_ns: u64) {
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
            let waited = Nanos::between(self.crossed_at_ns, now_ns) >= UNSURVEYED;
            return (is_surveyed || no_survey || waited).then_some(Reason::Crossed);
        };
        if is_surveyed && current_holders(stall).any(|key| !self.holders.contains(&key)) {
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
        .filter(|holder| holder.confidence >= Confidence::Likely)
        .map(|holder| holder.task.key)
}
