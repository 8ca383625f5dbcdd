//! What is told of hanging tasks and CPUs, over time: when it was first found, when to
//! speak of it again, and how long it lasted.

use std::collections::BTreeMap;

use rustc_hash::{FxHashMap, FxHashSet};
use schemars::JsonSchema;
use serde::Serialize;

use super::{Finding, Report};
use crate::{detect::Subject, sleeper::Awaited, survey::Survey, task::Nanos};

/// Why a finding is reported now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// It was not there before.
    Found,
    /// It still stands, twice as long as when it was last reported.
    Stands,
}

/// A finding that stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its number in this run.
    pub id: u64,
    /// Name of the detector.
    pub detector: String,
    /// What it is about.
    pub subject: Subject,
    /// When it began, `CLOCK_MONOTONIC` ns.
    pub began_ns: u64,
    /// Its age at the next report.
    next_report: Nanos,
    /// What was last said.
    pub sentence: String,
}

impl Standing {
    /// How long it has lasted.
    pub const fn age(&self, now_ns: u64) -> Nanos {
        Nanos::between(self.began_ns, now_ns)
    }
}

/// A finding that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// What stood.
    pub standing: Standing,
    /// How long: of tasks at most, for the look that found them gone came later; of a CPU up
    /// to the last sample that showed it.
    pub length: Nanos,
}

/// A finding to be reported.
#[derive(Debug)]
pub struct Due<'a> {
    /// What stands.
    pub standing: Standing,
    /// Why it is due.
    pub why: Why,
    /// What is said of it now.
    pub finding: &'a Finding,
}

/// The findings about tasks and CPUs that stand.
#[derive(Debug, Default)]
pub struct Findings {
    standing: BTreeMap<(String, Subject), Standing>,
    /// By detector.
    counts: BTreeMap<String, u64>,
}

impl Findings {
    /// Takes in what a survey found. What is new or due, in the report's order; and what
    /// has ended: tasks that hang no longer, if the survey can tell.
    pub fn take<'a>(
        &mut self,
        survey: &Survey,
        report: &'a Report,
        is_asked_for: impl Fn(&Finding) -> bool,
        now_ns: u64,
    ) -> (Vec<Due<'a>>, Vec<Ended>) {
        let mut due = Vec::new();
        let mut ended = Vec::new();
        if survey.can_tell_ends() {
            let subjects = report.findings.iter().map(|finding| &finding.subject);
            let found: FxHashSet<&Subject> = subjects.flatten().collect();
            // CPUs are told by their beats, at every tick: see `end_cpus`.
            let is_over = |_: &(String, Subject), standing: &mut Standing| {
                matches!(standing.subject, Subject::Awaited(_))
                    && !found.contains(&standing.subject)
            };
            let over = self.standing.extract_if(.., is_over);
            ended.extend(over.map(|(_, standing)| Ended {
                length: standing.age(now_ns),
                standing,
            }));
        }
        let asleep = longest_sleeps(survey);
        for finding in &report.findings {
            let Some(subject) = &finding.subject else {
                continue;
            };
            if !is_asked_for(finding) {
                continue;
            }
            let key = (finding.detector.clone(), subject.clone());
            let (standing, why) = match self.standing.get_mut(&key) {
                Some(standing) if standing.age(now_ns) < standing.next_report => continue,
                Some(standing) => (standing, Why::Stands),
                None => {
                    *self.counts.entry(finding.detector.clone()).or_default() += 1;
                    let lasted = match subject {
                        Subject::Awaited(awaited) => asleep.get(awaited).copied(),
                        Subject::Cpu(cpu) => locked_up(survey, *cpu),
                    };
                    let new = Standing {
                        id: self.counts.values().sum(),
                        detector: finding.detector.clone(),
                        subject: subject.clone(),
                        // By the survey's clock: to explain it takes time, too.
                        began_ns: survey
                            .taken_at_ns
                            .saturating_sub(lasted.unwrap_or_default().0),
                        next_report: Nanos(0),
                        sentence: String::new(),
                    };
                    (self.standing.entry(key).or_insert(new), Why::Found)
                }
            };
            standing.next_report = Nanos(standing.age(now_ns).0.saturating_mul(2));
            standing.sentence.clone_from(&finding.sentence);
            due.push(Due {
                standing: standing.clone(),
                why,
                finding,
            });
        }
        (due, ended)
    }

    /// Ends the findings about CPUs that are not among these, each with its detector.
    /// `until_ns`: up to when such a CPU was known to be locked up.
    pub fn end_cpus(
        &mut self,
        locked_up: &[(&str, u32)],
        until_ns: impl Fn(&str, u32) -> u64,
    ) -> Vec<Ended> {
        let is_over = |(detector, subject): &(String, Subject), _: &mut Standing| {
            let Subject::Cpu(cpu) = subject else {
                return false;
            };
            !locked_up.contains(&(detector.as_str(), *cpu))
        };
        let over = self.standing.extract_if(.., is_over);
        let ended = |((detector, subject), standing): ((String, Subject), Standing)| {
            let until_ns = match subject {
                Subject::Cpu(cpu) => until_ns(&detector, cpu),
                Subject::Awaited(_) => standing.began_ns,
            };
            Ended {
                length: standing.age(until_ns),
                standing,
            }
        };
        over.map(ended).collect()
    }

    /// True if nothing has been said of a CPU by this detector, or it is time to again.
    pub fn is_due(&self, detector: &str, cpu: u32, now_ns: u64) -> bool {
        let key = (detector.to_owned(), Subject::Cpu(cpu));
        let standing = self.standing.get(&key);
        standing.is_none_or(|standing| standing.age(now_ns) >= standing.next_report)
    }

    /// True while tasks hang of which something was said.
    pub fn has_hung_tasks(&self) -> bool {
        let mut subjects = self.standing.keys().map(|(_, subject)| subject);
        subjects.any(|subject| matches!(subject, Subject::Awaited(_)))
    }

    /// Findings that were reported.
    pub fn count(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Findings of a detector that were reported, and how many of them stand.
    pub fn count_of(&self, detector: &str) -> (u64, u64) {
        let standing = self.standing.keys().filter(|(of, _)| of == detector);
        let total = self.counts.get(detector).copied().unwrap_or(0);
        (total, standing.count() as u64)
    }
}

/// For how long the first of those that wait for each thing has slept: each may have a finding
/// of its own, so that none may go through all sleepers again.
fn longest_sleeps(survey: &Survey) -> FxHashMap<&Awaited, Nanos> {
    let mut longest = FxHashMap::default();
    for sleeper in &survey.sleepers {
        let asleep = longest.entry(&sleeper.awaits).or_default();
        *asleep = sleeper.asleep.max(*asleep);
    }
    longest
}

/// For how long this CPU has been locked up.
fn locked_up(survey: &Survey, cpu: u32) -> Option<Nanos> {
    let lockups = survey.lockups.iter();
    let of_it = lockups.filter(|lockup| lockup.cpu == cpu);
    of_it.map(|lockup| lockup.lasted).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::Severity,
        lockup::{Context, Lockup, LockupKind},
        report::example,
        sleeper::{Queue, QueueKind, Sleeper},
        task::{Stuck, StuckClass, TaskKey, TaskName, Tgid, Tid},
    };

    const SEC: u64 = 1_000_000_000;

    fn finding(detector: &str, subject: Subject) -> Finding {
        Finding {
            detector: detector.to_owned(),
            severity: Severity::Critical,
            sentence: "it hangs".to_owned(),
            locks: Vec::new(),
            tasks: vec![Tid(7)],
            path: Vec::new(),
            evidence: Vec::new(),
            second_opinion: None,
            subject: Some(subject),
        }
    }

    fn device() -> Subject {
        Subject::Awaited(Awaited::Device("sda".to_owned()))
    }

    /// A survey with a task that has waited for sda for `asleep` seconds, and what is said.
    fn hung(asleep: u64) -> (Survey, Report) {
        let mut survey = example::no_stall();
        survey.looks = 2;
        survey.sleepers = vec![Sleeper {
            task: TaskName {
                key: TaskKey {
                    tid: Tid(7),
                    start_ns: 1,
                },
                tgid: Tgid(7),
                comm: "dd".into(),
            },
            killable: false,
            io_wait: true,
            asleep: Nanos(asleep * SEC),
            awaits: Awaited::Device("sda".to_owned()),
            stuck: Stuck {
                class: StuckClass::BlockIo,
                frame: None,
                since: None,
                device: None,
            },
            stack: survey.stacks.intern(Vec::new()),
        }];
        let mut report = example::report(&survey, SEC);
        report.findings = vec![finding("hung-task", device())];
        (survey, report)
    }

    fn quiet() -> (Survey, Report) {
        let (mut survey, mut report) = hung(0);
        survey.sleepers.clear();
        report.findings.clear();
        (survey, report)
    }

    fn reasons(due: &[Due<'_>]) -> Vec<(u64, Why)> {
        due.iter().map(|due| (due.standing.id, due.why)).collect()
    }

    #[test]
    fn it_is_told_when_found_and_then_at_twice_its_age_and_at_its_end() {
        let mut findings = Findings::default();
        let mut at = |second: u64, (survey, report): &(Survey, Report)| {
            let mut survey = survey.clone();
            survey.taken_at_ns = second * SEC;
            let (due, ended) = findings.take(&survey, report, |_| true, second * SEC);
            let lengths: Vec<Nanos> = ended.iter().map(|it| it.length).collect();
            (reasons(&due), lengths)
        };
        let none = Vec::<(u64, Why)>::new();
        assert_eq!(at(1_000, &hung(120)), (vec![(1, Why::Found)], vec![]));
        assert_eq!(at(1_010, &hung(130)), (none.clone(), vec![]));
        assert_eq!(at(1_119, &hung(239)), (none.clone(), vec![]));
        assert_eq!(at(1_120, &hung(240)), (vec![(1, Why::Stands)], vec![]));
        assert_eq!(at(1_359, &hung(479)), (none.clone(), vec![]));
        assert_eq!(at(1_360, &hung(480)), (vec![(1, Why::Stands)], vec![]));
        assert_eq!(at(1_380, &quiet()), (none, vec![Nanos(500 * SEC)]));
        // The next time is another one.
        assert_eq!(at(1_600, &hung(121)), (vec![(2, Why::Found)], vec![]));
    }

    #[test]
    fn a_queue_is_the_same_in_whichever_function_the_longest_waits_for_it() {
        let queue = |bit: u32, function: &str| {
            Awaited::Queue(Queue {
                kind: QueueKind::Bit,
                address: 0xffff_8881_0900_0040,
                bit,
                function: function.to_owned(),
            })
        };
        let hung = |awaited: Awaited, asleep: u64, second: u64| {
            let (mut survey, mut report) = hung(asleep);
            survey.taken_at_ns = second * SEC;
            survey.sleepers[0].awaits = awaited.clone();
            report.findings = vec![finding("hung-task", Subject::Awaited(awaited))];
            (survey, report)
        };
        let mut findings = Findings::default();
        let mut at = |second: u64, (survey, report): &(Survey, Report)| {
            let (due, ended) = findings.take(survey, report, |_| true, second * SEC);
            (reasons(&due), ended.len())
        };
        let read = hung(queue(0, "folio_wait_bit_common"), 120, 1_000);
        assert_eq!(at(1_000, &read), (vec![(1, Why::Found)], 0));
        // The first is gone; one that came later waits elsewhere for the same.
        let write = hung(queue(0, "__folio_lock"), 125, 1_010);
        assert_eq!(at(1_010, &write), (vec![], 0));
        let later = hung(queue(0, "__folio_lock"), 235, 1_120);
        assert_eq!(at(1_120, &later), (vec![(1, Why::Stands)], 0));
        // Another bit of the same byte is another thing.
        let other = hung(queue(1, "__folio_lock"), 240, 1_125);
        assert_eq!(at(1_125, &other), (vec![(2, Why::Found)], 1));
    }

    #[test]
    fn a_survey_that_was_cut_short_ends_nothing() {
        let mut findings = Findings::default();
        let (survey, report) = hung(120);
        findings.take(&survey, &report, |_| true, 1_000 * SEC);
        let (mut survey, mut report) = (example::incident(), report);
        survey.looks = 1;
        report.findings.clear();
        let (due, ended) = findings.take(&survey, &report, |_| true, 1_001 * SEC);
        assert!(due.is_empty() && ended.is_empty());
        assert!(findings.has_hung_tasks());
    }

    #[test]
    fn what_is_not_asked_for_is_not_counted() {
        let mut findings = Findings::default();
        let (survey, report) = hung(120);
        let (due, _) = findings.take(&survey, &report, |_| false, 1_000 * SEC);
        assert!(due.is_empty());
        assert_eq!(findings.count(), 0);
    }

    #[test]
    fn a_cpu_ends_by_its_beats_not_by_a_survey() {
        let mut findings = Findings::default();
        let (mut survey, mut report) = quiet();
        survey.taken_at_ns = 100 * SEC;
        survey.lockups = vec![Lockup {
            cpu: 3,
            kind: LockupKind::Soft,
            lasted: Nanos(20 * SEC),
            task: None,
            context: Context::Unknown,
            is_task_interrupted: false,
            program: None,
            profile: Vec::new(),
            samples: 0,
            returns: None,
            starved: Vec::new(),
            sharers: Vec::new(),
            unknown: Vec::new(),
        }];
        report.findings = vec![finding("soft-lockup", Subject::Cpu(3))];
        assert!(findings.is_due("soft-lockup", 3, 100 * SEC));
        // The survey took a second to be explained: not a part of the lockup.
        findings.take(&survey, &report, |_| true, 101 * SEC);
        assert!(!findings.is_due("soft-lockup", 3, 101 * SEC));
        assert!(findings.is_due("soft-lockup", 3, 122 * SEC));

        let (survey, report) = quiet();
        let (_, ended) = findings.take(&survey, &report, |_| true, 102 * SEC);
        assert!(ended.is_empty());
        let until_ns = |_: &str, cpu: u32| u64::from(cpu) * 35 * SEC;
        let soft = [("soft-lockup", 3)];
        assert!(findings.end_cpus(&soft, until_ns).is_empty());
        let ended = findings.end_cpus(&[("hard-lockup", 3)], until_ns);
        assert_eq!(ended.len(), 1);
        // However late that is noticed.
        assert_eq!(ended[0].length, Nanos(25 * SEC));
    }
}
