//! Hanging tasks and CPUs of a recording: each with the last survey that shows it.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    detect::{Detector as _, Detectors, HardLockup, HungTask, SoftLockup, Subject, Thresholds},
    report::{Host, Report},
    survey::Survey,
};

/// More are counted, not kept.
const KEPT_MAX: usize = 1_000;
/// Of which so many, the first, with the survey that shows them: surveys are big.
const EXPLAINED_MAX: usize = 10;

/// Tasks or a CPU that hung during the recording.
#[derive(Clone, Debug)]
pub struct Hang {
    /// Name of the detector.
    pub detector: String,
    /// What it is about.
    pub subject: Subject,
    /// What was last said of it.
    pub sentence: String,
    /// `CLOCK_MONOTONIC` ns of the first survey that shows it.
    pub first_ns: u64,
    /// The same of the last.
    pub last_ns: u64,
    /// The last survey that shows it; of the first hangs only.
    pub survey: Option<Arc<Survey>>,
}

/// Tasks and CPUs that hang, by the surveys of a recording.
#[derive(Debug)]
pub struct Hangs {
    thresholds: Thresholds,
    detectors: Detectors,
    /// In the order of their beginning.
    pub found: Vec<Hang>,
    /// All of them, those that are not kept among them.
    pub count: u64,
    /// Those that stand, by their index in `found` where they are kept.
    standing: BTreeMap<(String, Subject), Option<usize>>,
}

impl Hangs {
    /// Of these detectors, those that know what hangs.
    pub(super) fn new(thresholds: Thresholds, detectors: &Detectors) -> Self {
        let names = [HungTask.name(), SoftLockup.name(), HardLockup.name()];
        Self {
            thresholds,
            detectors: detectors.among(&names),
            found: Vec::new(),
            count: 0,
            standing: BTreeMap::new(),
        }
    }

    /// Takes in the next survey.
    pub(super) fn take(&mut self, survey: &Arc<Survey>, host: &Host) {
        if survey.sleepers.is_empty() && survey.lockups.is_empty() && self.standing.is_empty() {
            return;
        }
        let report = Report::from_survey(survey, host, self.thresholds, &self.detectors);
        let mut standing = BTreeMap::new();
        for finding in report.findings {
            let Some(subject) = finding.subject else {
                continue;
            };
            let key = (finding.detector, subject);
            let index = self.standing.remove(&key).unwrap_or_else(|| {
                self.count += 1;
                (self.found.len() < KEPT_MAX).then(|| {
                    self.found.push(Hang {
                        detector: key.0.clone(),
                        subject: key.1.clone(),
                        sentence: String::new(),
                        first_ns: survey.taken_at_ns,
                        last_ns: survey.taken_at_ns,
                        survey: None,
                    });
                    self.found.len() - 1
                })
            });
            if let Some(index) = index {
                let hang = &mut self.found[index];
                hang.sentence = finding.sentence;
                hang.last_ns = survey.taken_at_ns;
                hang.survey = (index < EXPLAINED_MAX).then(|| Arc::clone(survey));
            }
            standing.insert(key, index);
        }
        if !survey.can_tell_ends() {
            standing.append(&mut self.standing);
        }
        self.standing = standing;
    }
}
