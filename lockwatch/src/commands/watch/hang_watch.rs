//! Hanging tasks and CPUs: when to look for them, and what is told of them.

use std::collections::{BTreeMap, BTreeSet};

use super::cpus::Cpus;
use crate::{
    detect::{Detector as _, HardLockup, SoftLockup, Thresholds},
    lockup::{LockupKind, Suspect},
    report::over_time::{Ended, Findings},
    task::Nanos,
};

/// Hanging tasks are looked for so often within their threshold …
const LOOKS_PER_THRESHOLD: u64 = 8;
/// … but neither more nor less often than this.
const PAUSE_MIN: Nanos = Nanos(500_000_000);
const PAUSE_MAX: Nanos = Nanos(10_000_000_000);
/// A CPU that a survey did not confirm is not looked into again before this.
const DOUBT: Nanos = Nanos(1_000_000_000);

/// Watches for what hangs that is no lock.
#[derive(Debug)]
pub(super) struct HangWatch {
    /// `None`: nothing samples the CPUs.
    cpus: Option<Cpus>,
    /// The CPUs that seem to be locked up now.
    suspects: Vec<Suspect>,
    /// Up to when each CPU was known to be locked up last, by detector and number.
    until_ns: BTreeMap<(&'static str, u32), u64>,
    pub(super) findings: Findings,
    /// Pause between looks at all tasks; `None`: none is looked for.
    pause: Option<Nanos>,
    look_due_ns: u64,
    /// Until then no survey is asked for because of a CPU: the last one did not confirm it.
    doubted_until_ns: u64,
    /// The CPUs that the last survey was asked to look into.
    asked_about: Vec<Suspect>,
}

impl HangWatch {
    pub(super) fn new(thresholds: Thresholds, cpus: Option<Cpus>) -> Self {
        let pause =
            |threshold: Nanos| Nanos(threshold.0 / LOOKS_PER_THRESHOLD).clamp(PAUSE_MIN, PAUSE_MAX);
        Self {
            cpus,
            suspects: Vec::new(),
            until_ns: BTreeMap::new(),
            findings: Findings::default(),
            pause: thresholds.hung_task.map(pause),
            look_due_ns: 0,
            doubted_until_ns: 0,
            asked_about: Vec::new(),
        }
    }

    /// Looks at the CPUs. The findings that are over.
    pub(super) fn tick(&mut self) -> Vec<Ended> {
        let Some(suspects) = self.cpus.as_mut().and_then(Cpus::suspects) else {
            return Vec::new();
        };
        self.suspects = suspects;
        let locked_up: Vec<_> = self.suspects.iter().map(detector_and_cpu).collect();
        let known = self.suspects.iter().map(|suspect| suspect.until_ns);
        self.until_ns.extend(locked_up.iter().copied().zip(known));
        let until_ns = &self.until_ns;
        self.findings.end_cpus(&locked_up, |detector, cpu| {
            until_ns.get(&(detector, cpu)).copied().unwrap_or_default()
        })
    }

    /// The numbers of the CPUs that seem to be locked up.
    pub(super) fn locked_cpus(&self) -> BTreeSet<u32> {
        self.suspects.iter().map(|suspect| suspect.cpu).collect()
    }

    /// Asks for a survey that looks into the suspected CPUs; `request` says whether it will
    /// be taken.
    pub(super) fn ask(&mut self, request: impl FnOnce(Vec<Suspect>) -> bool) {
        if request(self.suspects.clone()) {
            self.asked_about.clone_from(&self.suspects);
        }
    }

    /// True if there is something of a CPU to be told, for which a survey is wanted now.
    pub(super) fn has_news(&self, now_ns: u64) -> bool {
        now_ns >= self.doubted_until_ns && self.is_any_due(now_ns)
    }

    fn is_any_due(&self, now_ns: u64) -> bool {
        self.suspects
            .iter()
            .any(|suspect| self.is_due(suspect, now_ns))
    }

    fn is_due(&self, suspect: &Suspect, now_ns: u64) -> bool {
        let (detector, cpu) = detector_and_cpu(suspect);
        self.findings.is_due(detector, cpu, now_ns)
    }

    /// True if the last survey could have confirmed it.
    fn was_looked_into(&self, suspect: &Suspect) -> bool {
        let mut asked = self.asked_about.iter().map(detector_and_cpu);
        asked.any(|asked| asked == detector_and_cpu(suspect))
    }

    /// True if it is time to look at all tasks.
    pub(super) fn is_look_due(&self, now_ns: u64) -> bool {
        self.pause.is_some() && now_ns >= self.look_due_ns
    }

    /// All tasks have been looked at, and what was found has been told.
    pub(super) fn surveyed(&mut self, now_ns: u64) {
        let mut suspects = self.suspects.iter();
        if suspects.any(|suspect| self.was_looked_into(suspect) && self.is_due(suspect, now_ns)) {
            self.doubted_until_ns = now_ns + DOUBT.0;
        }
        if let Some(pause) = self.pause {
            self.look_due_ns = now_ns + pause.0;
        }
    }
}

fn detector_and_cpu(suspect: &Suspect) -> (&'static str, u32) {
    let detector = match suspect.kind {
        LockupKind::Soft => SoftLockup.name(),
        LockupKind::Hard => HardLockup.name(),
    };
    (detector, suspect.cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn suspect(cpu: u32) -> Suspect {
        Suspect {
            cpu,
            kind: LockupKind::Hard,
            since_ns: 0,
            until_ns: 0,
            task: None,
            samples: Vec::new(),
            is_reschedule_known: true,
            unknown: Vec::new(),
        }
    }

    #[test]
    fn a_survey_that_was_asked_of_no_suspect_casts_no_doubt_on_one() {
        let thresholds = Thresholds::of_waits(Nanos(SECOND));
        let mut hangs = HangWatch::new(thresholds, None);
        hangs.ask(|suspects| suspects.is_empty());
        // It is suspected while that survey is taken.
        hangs.suspects = vec![suspect(1)];
        hangs.surveyed(SECOND);
        assert!(hangs.has_news(SECOND));
        // The next one is asked of it, and does not confirm it.
        hangs.ask(|suspects| suspects.len() == 1);
        hangs.surveyed(2 * SECOND);
        assert!(!hangs.has_news(2 * SECOND));
        assert!(hangs.has_news(2 * SECOND + DOUBT.0));
        // Another CPU is not meant by that doubt, but for one that was refused none was asked.
        hangs.suspects.push(suspect(2));
        hangs.ask(|_| false);
        hangs.suspects = vec![suspect(2)];
        hangs.surveyed(4 * SECOND);
        assert!(hangs.has_news(4 * SECOND));
    }
}
