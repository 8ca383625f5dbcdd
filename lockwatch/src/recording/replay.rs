//! Playing a recording back into a graph.

use std::{
    io::BufRead,
    sync::{Arc, Weak},
};

use super::{Damage, End, Hangs, Header, Reader, Record};
use crate::{
    detect::{Detector as _, Detectors, HardLockup, HungTask, SoftLockup, Thresholds},
    figures::Count,
    graph::{Change, Facts, Input, Stall, WaitGraph, timeline::Timeline},
    lock::LockClass,
    lockup::{Lockup, LockupKind},
    report::{Report, Source},
    stream::{Event, Lost},
    survey::Survey,
    task::Nanos,
};

/// Ended stalls that are kept one by one: the longest.
const ENDED_MAX: usize = 1_000;
/// Of which so many with the survey that found them: surveys are big.
const EXPLAINED_MAX: usize = 10;
/// Surveys that are kept at a time, in bytes of their lines: stalls that stand refer to the
/// last that saw them, which is one and the same for most.
const SURVEYS_MAX: usize = 512 << 20;
/// More tasks than these cannot wait at a time: see `scans`.
const WAITS_MAX: usize = 1 << 20;
/// No run, and no wait that one sees, is longer: ten years.
const LENGTH_MAX: Nanos = Nanos(10 * 365 * 24 * 3_600 * 1_000_000_000);
/// Inputs between two counts of the waits.
const COUNT_AFTER: usize = 1 << 17;

/// Which survey of a recording a report is to be about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Chosen {
    /// The one with the most tasks blocked past the threshold or hanging, of equal ones the last; the
    /// last of all where none is.
    #[default]
    Worst,
    /// By its number, from 1.
    Number(u64),
    /// The last that was taken by then.
    At(jiff::Timestamp),
}

/// A stall that ended during the recording.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The stall; its facts are there for the longest ones only.
    pub stall: Stall,
    /// The name of its lock, if a survey found it.
    pub name: Option<String>,
    /// The class of its lock, if a survey found it.
    pub class: Option<LockClass>,
}

/// What a recording came to.
#[derive(Debug)]
pub struct Replayed {
    /// What was recorded.
    pub header: Header,
    /// The graph as it was at the end.
    pub graph: WaitGraph,
    /// Stalls that ended, the longest first; no more than a thousand.
    pub ended: Vec<Ended>,
    /// Stalls that ended, those that are not kept among them.
    pub ended_count: u64,
    /// Tasks and CPUs that hung, in the order of their beginning; no more than a thousand.
    pub hangs: Hangs,
    /// Surveys.
    pub surveys: u64,
    /// Events.
    pub events: u64,
    /// The survey that was asked for, with its number.
    pub chosen: Option<(u64, Arc<Survey>)>,
    /// What the stream lost.
    pub lost: Lost,
    /// Inputs that were not written.
    pub missing: u64,
    /// `CLOCK_MONOTONIC` ns of the last thing that is known.
    pub last_ns: u64,
    /// The last record, if the recording is whole.
    pub end: Option<End>,
    /// Why it is not, otherwise.
    pub damage: Option<Damage>,
    /// Records of kinds that this version does not know.
    pub unknown: u64,
    /// Waits and holds over time, for formats that draw them.
    pub timeline: Timeline,
}

impl Replayed {
    /// Plays a recording back to its end, or as far as it can be read. What the detectors say
    /// hangs is counted, and makes a survey worse.
    pub fn from_reader<R: BufRead>(
        reader: Reader<R>,
        choice: Chosen,
        detectors: &Detectors,
    ) -> Self {
        Self::within(reader, choice, detectors, SURVEYS_MAX)
    }

    /// As [`Self::from_reader`], with so many bytes of surveys at a time.
    pub(super) fn within<R: BufRead>(
        mut reader: Reader<R>,
        choice: Chosen,
        detectors: &Detectors,
        surveys_max: usize,
    ) -> Self {
        let header = reader.header().clone();
        let threshold = header.threshold_ns;
        let mut replayed = Self {
            graph: WaitGraph::new(threshold),
            ended: Vec::new(),
            ended_count: 0,
            hangs: Hangs::new(header.thresholds(), detectors),
            surveys: 0,
            events: 0,
            chosen: None,
            lost: Lost::default(),
            missing: 0,
            last_ns: header.began_ns,
            end: None,
            damage: None,
            unknown: 0,
            timeline: Timeline::new(threshold),
            header,
        };
        let mut worst = Worst::default();
        let mut uncounted = 0;
        let mut kept = Kept::default();
        let mut taken = 0;
        while let Some(record) = reader.next() {
            taken += 1;
            if let Some(why) = replayed.absurd(&record) {
                replayed.damage = Some(Damage {
                    records: taken - 1,
                    why: format!("record {taken} is damaged ({why})"),
                });
                break;
            }
            match record {
                Record::Input(input) => {
                    uncounted += 1;
                    if let Input::Survey(survey) = &input {
                        kept.add(survey, reader.line_len());
                        replayed.choose(choice, survey, &mut worst, detectors);
                    }
                    replayed.take(input);
                }
                Record::Lost(lost) => replayed.lost = lost,
                Record::Missing(count) => replayed.missing += count,
                Record::End(end) => {
                    replayed.last_ns = replayed.last_ns.max(end.at_ns);
                    replayed.end = Some(end);
                }
            }
            let mut why = None;
            if uncounted >= COUNT_AFTER {
                uncounted = 0;
                let is_too_much = replayed.waits_kept() > WAITS_MAX;
                why = is_too_much.then_some("more tasks wait in it than any host can have");
            }
            if kept.bytes > surveys_max && kept.alive() > surveys_max {
                why = Some("its stalls need more surveys at a time than can be kept");
            }
            if let Some(why) = why {
                replayed.damage = Some(Damage {
                    records: taken,
                    why: why.to_owned(),
                });
                break;
            }
        }
        replayed.unknown = reader.unknown();
        replayed.damage = replayed.damage.or_else(|| reader.damage().cloned());
        replayed
    }

    fn waits_kept(&self) -> usize {
        let blocked = self.graph.stalls();
        self.graph.waits().count() + blocked.iter().map(|s| s.blocked.len()).sum::<usize>()
    }

    /// What is wrong with the times of a record that no run can have written.
    fn absurd(&self, record: &Record) -> Option<&'static str> {
        let at_ns = match record {
            Record::Input(input) => time_of(input),
            Record::End(end) => end.at_ns,
            Record::Lost(_) | Record::Missing(_) => return None,
        };
        if Nanos::between(self.header.began_ns, at_ns) > LENGTH_MAX {
            return Some("it is from years after the first");
        }
        let Record::Input(Input::Survey(survey)) = record else {
            return None;
        };
        let mut waiters = survey.locks.iter().flat_map(|lock| &lock.waiters);
        let mut sleepers = survey.sleepers.iter();
        let is_for_years = waiters.any(|waiter| waiter.wait > LENGTH_MAX)
            || sleepers.any(|sleeper| sleeper.asleep > LENGTH_MAX);
        is_for_years.then_some("a task waits in it for years")
    }

    fn take(&mut self, input: Input) {
        self.last_ns = self.last_ns.max(time_of(&input));
        match &input {
            Input::Event(_) => self.events += 1,
            Input::Survey(survey) => {
                self.surveys += 1;
                self.hangs.take(survey, &self.header.host);
            }
            Input::Scan(_) | Input::Refuted(_) | Input::Clock(_) => {}
        }
        self.timeline.take(&input);
        for change in self.graph.take(input) {
            if let Change::Ended(stall) = change {
                self.end_stall(*stall);
            }
        }
    }

    fn end_stall(&mut self, stall: Stall) {
        self.ended_count += 1;
        let lock = stall.facts.as_ref().map(Facts::lock);
        let (name, class) = lock
            .map(|lock| (lock.name.clone(), lock.class.clone()))
            .unzip();
        self.ended.push(Ended { stall, name, class });
        self.ended
            .sort_by_key(|ended| (std::cmp::Reverse(ended.stall.length()), ended.stall.id));
        self.ended.truncate(ENDED_MAX);
        for ended in self.ended.iter_mut().skip(EXPLAINED_MAX) {
            ended.stall.facts = None;
        }
    }

    fn choose(
        &mut self,
        choice: Chosen,
        survey: &Arc<Survey>,
        worst: &mut Worst,
        detectors: &Detectors,
    ) {
        let number = self.surveys + 1;
        let wanted = match choice {
            Chosen::Number(wanted) => number == wanted,
            Chosen::At(at) => survey.taken_at <= at,
            Chosen::Worst => worst.is_as_bad(survey, &self.header.thresholds(), detectors),
        };
        if wanted {
            self.chosen = Some((number, Arc::clone(survey)));
        }
    }

    /// The stalls that stood at the end, the oldest first.
    pub fn standing(&self) -> Vec<&Stall> {
        let mut stalls = self.graph.stalls();
        stalls.sort_by_key(|stall| (stall.began_ns, stall.id));
        stalls
    }

    /// The report of one of its surveys; `detectors` are asked.
    pub fn report_of(&self, survey: &Survey, detectors: &Detectors) -> Report {
        let (host, thresholds) = (&self.header.host, self.header.thresholds());
        let mut report = Report::from_survey(survey, host, thresholds, detectors);
        report.coverage.source = Source::Recording;
        let lost = self.lost.by_kind().into_iter();
        let lost = lost.map(|(kind, count)| (kind.to_owned(), count));
        report.coverage.lost = Some(lost.chain([("records".to_owned(), self.missing)]).collect());
        report.coverage.degraded.extend(self.degraded());
        report
    }

    /// What is not known of the recorded time, one line each.
    pub fn degraded(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.damage.iter().map(Damage::to_string).collect();
        if self.missing > 0 {
            let missing = Count(self.missing).nouns("record is", "records are");
            lines.push(format!("{missing} missing: the file took them too slowly"));
        }
        if self.unknown > 0 {
            let unknown = Count(self.unknown).nouns("record", "records");
            lines.push(format!(
                "{unknown} of kinds that only a newer lockwatch knows"
            ));
        }
        lines.extend(self.header.gaps.iter().cloned());
        lines
    }

    /// True if a stall stood or ended during the recording, or a task or a CPU hung, as far as
    /// its detector was asked.
    pub fn has_stall(&self) -> bool {
        self.ended_count > 0 || self.hangs.count > 0 || !self.graph.stalls().is_empty()
    }

    /// How long the recording is.
    pub fn length(&self) -> Nanos {
        Nanos::between(self.header.began_ns, self.last_ns)
    }
}

/// `CLOCK_MONOTONIC` ns of what an input tells.
fn time_of(input: &Input) -> u64 {
    match input {
        Input::Event(Event::WaitBegin(wait)) | Input::Refuted(wait) => wait.since_ns,
        Input::Event(Event::WaitEnd { at_ns, .. }) | Input::Clock(at_ns) => *at_ns,
        Input::Scan(scan) => scan.at_ns,
        Input::Survey(survey) => survey.taken_at_ns,
    }
}

/// The surveys that somebody refers to.
#[derive(Debug, Default)]
struct Kept {
    surveys: Vec<(Weak<Survey>, usize)>,
    /// Of these, as far as is known without a look.
    bytes: usize,
}

impl Kept {
    fn add(&mut self, survey: &Arc<Survey>, bytes: usize) {
        self.surveys.push((Arc::downgrade(survey), bytes));
        self.bytes += bytes;
    }

    /// Looks which are still there; their bytes.
    fn alive(&mut self) -> usize {
        self.surveys.retain(|(survey, _)| survey.strong_count() > 0);
        self.bytes = self.surveys.iter().map(|(_, bytes)| bytes).sum();
        self.bytes
    }
}

/// How bad the worst survey so far was.
#[derive(Debug, Default)]
struct Worst(usize);

impl Worst {
    /// True if this one is at least as bad.
    fn is_as_bad(
        &mut self,
        survey: &Survey,
        thresholds: &Thresholds,
        detectors: &Detectors,
    ) -> bool {
        let stalled = survey
            .locks
            .iter()
            .filter(|lock| lock.oldest_wait() >= thresholds.wait);
        let blocked = stalled
            .flat_map(|lock| &lock.waiters)
            .filter(|waiter| !waiter.granted)
            .count();
        let counts = detectors.asks(HungTask.name());
        let sleepers = survey.sleepers.iter();
        let hung = sleepers.filter(|it| counts && it.hangs(thresholds.hung_task));
        let counts = |lockup: &&Lockup| {
            detectors.asks(match lockup.kind {
                LockupKind::Soft => SoftLockup.name(),
                LockupKind::Hard => HardLockup.name(),
            })
        };
        let lockups = survey.lockups.iter().filter(counts);
        let bad = blocked.max(hung.count()) + lockups.count();
        let is_as_bad = bad >= self.0;
        self.0 = self.0.max(bad);
        is_as_bad
    }
}
