//! The reports of surveys, each made once: several stalls and findings may be in one.

use std::sync::Arc;

use crate::{
    detect::{Detectors, Thresholds},
    graph::Facts,
    report::{Host, Report},
    survey::Survey,
};

/// Makes reports of surveys.
#[derive(Debug)]
pub(super) struct Reports {
    host: Host,
    thresholds: Thresholds,
    detectors: Detectors,
    last: Option<(Arc<Survey>, Arc<Report>)>,
}

impl Reports {
    pub(super) fn new(thresholds: Thresholds, detectors: Detectors) -> Self {
        Self {
            host: Host::this(),
            thresholds,
            detectors,
            last: None,
        }
    }

    /// The report of this survey.
    pub(super) fn of(&mut self, survey: &Arc<Survey>) -> Arc<Report> {
        if let Some((of, report)) = &self.last
            && Arc::ptr_eq(of, survey)
        {
            return Arc::clone(report);
        }
        let report = Report::from_survey(survey, &self.host, self.thresholds, &self.detectors);
        let report = Arc::new(report);
        self.last = Some((Arc::clone(survey), Arc::clone(&report)));
        report
    }

    /// Whether the survey has found a deadlock that the lock's waiters wait for.
    pub(super) fn is_deadlocked(&mut self, facts: &Facts) -> bool {
        let report = self.of(facts.survey());
        let address = facts.lock().address;
        let mut locks = report.locks.iter();
        locks
            .find(|lock| lock.at == address)
            .is_some_and(|lock| report.deadlocks_on(lock).next().is_some())
    }

    /// True if something may hang in this survey that is about no lock alone: worth a report.
    pub(super) fn may_hang(&self, survey: &Survey) -> bool {
        let threshold = self.thresholds.hung_task;
        !survey.lockups.is_empty() || survey.sleepers.iter().any(|it| it.hangs(threshold))
    }
}
