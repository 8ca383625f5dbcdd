//! Stalls: the time during which somebody waits too long for a lock.

use std::{fmt, sync::Arc};

use rustc_hash::FxHashMap;

use super::forecast::{Forecast, Forecasts};
use crate::{
    lock::{Holder, Lock, LockAddr, LockKind},
    stream::Wait,
    survey::Survey,
    task::{Nanos, TaskKey},
};

/// Number of a stall, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StallId(pub u64);

impl fmt::Display for StallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a survey found about one lock.
#[derive(Clone, Debug)]
pub struct Facts {
    survey: Arc<Survey>,
    index: usize,
}

impl Facts {
    /// Lock number `index` of a survey.
    pub(super) fn new(survey: &Arc<Survey>, index: usize) -> Self {
        Self {
            survey: Arc::clone(survey),
            index,
        }
    }

    /// The lock.
    pub fn lock(&self) -> &Lock {
        &self.survey.locks[self.index]
    }

    /// The survey that found it.
    pub fn survey(&self) -> &Arc<Survey> {
        &self.survey
    }
}

/// A task that surveys have found holding the lock.
#[derive(Clone, Debug)]
pub struct HolderSpan {
    /// As the last of them found it.
    pub holder: Holder,
    /// `CLOCK_MONOTONIC` ns of the first of them.
    pub first_seen_ns: u64,
    /// `CLOCK_MONOTONIC` ns of the last of them.
    pub last_seen_ns: u64,
}

/// The period in which at least one wait for a lock is past the threshold.
#[derive(Clone, Debug)]
pub struct Stall {
    /// Its number.
    pub id: StallId,
    /// The lock. Its address means this lock only while the stall stands.
    pub lock: LockAddr,
    /// Which primitive that is.
    pub kind: LockKind,
    /// `CLOCK_MONOTONIC` ns at which the first such wait began.
    pub began_ns: u64,
    /// Every task seen waiting for the lock meanwhile, with the first of its waits.
    pub blocked: FxHashMap<TaskKey, Wait>,
    /// Who has been found holding it, in order of discovery.
    pub holders: Vec<HolderSpan>,
    /// The last survey that saw the lock during the stall.
    pub facts: Option<Facts>,
    /// Forecasts of who is next that were checked meanwhile.
    pub forecasts: Forecasts,
    /// The one that has not been checked yet.
    forecast: Option<Forecast>,
    /// `CLOCK_MONOTONIC` ns at which the last such wait that is over ended.
    pub(super) last_end_ns: u64,
    /// False if that time is only an upper bound.
    pub(super) last_end_exact: bool,
}

impl Stall {
    pub(super) fn new(id: StallId, lock: LockAddr, kind: LockKind, began_ns: u64) -> Self {
        Self {
            id,
            lock,
            kind,
            began_ns,
            blocked: FxHashMap::default(),
            holders: Vec::new(),
            facts: None,
            forecasts: Forecasts::default(),
            forecast: None,
            last_end_ns: began_ns,
            last_end_exact: true,
        }
    }

    /// How long it has stood.
    pub fn age(&self, now_ns: u64) -> Nanos {
        Nanos::between(self.began_ns, now_ns)
    }

    /// How long it stood, once it is over.
    pub fn length(&self) -> Nanos {
        Nanos::between(self.began_ns, self.last_end_ns)
    }

    /// False if the end was not seen as it happened, and the length is an upper bound.
    pub fn is_length_exact(&self) -> bool {
        self.last_end_exact
    }

    /// A task waits for the lock.
    pub(super) fn block(&mut self, wait: &Wait) {
        self.blocked
            .entry(wait.task.key)
            .and_modify(|first| {
                if wait.since_ns < first.since_ns {
                    *first = wait.clone();
                }
            })
            .or_insert_with(|| wait.clone());
    }

    /// The stall as it stays: without tasks that came when it was over already.
    #[must_use]
    pub(super) fn ended(mut self: Box<Self>) -> Box<Self> {
        let end_ns = self.last_end_ns;
        self.blocked.retain(|_, wait| wait.since_ns <= end_ns);
        self
    }

    /// A wait past the threshold is over.
    pub(super) fn end_wait(&mut self, since_ns: u64, at_ns: u64, exact: bool) {
        self.began_ns = self.began_ns.min(since_ns);
        if at_ns >= self.last_end_ns {
            self.last_end_ns = at_ns;
            self.last_end_exact = exact;
        }
    }

    /// A wait was seen ending: the first of those in the queue checks the forecast.
    pub(super) fn check_forecast(&mut self, task: TaskKey, at_ns: u64, acquired: bool) {
        let forecast = self.forecast.as_mut();
        match forecast.and_then(|it| it.check(task, at_ns, acquired)) {
            Some(true) => self.forecasts.right += 1,
            Some(false) => self.forecasts.wrong += 1,
            None => return,
        }
        self.forecast = None;
    }

    /// Takes in what a survey says of the lock; true if a holder is new.
    pub(super) fn learn(&mut self, facts: Facts) -> bool {
        let seen_ns = facts.survey.taken_at_ns;
        self.forecast = Forecast::of(facts.lock(), seen_ns);
        let mut is_new = false;
        let spans = self.holders.iter().enumerate();
        let mut known: FxHashMap<TaskKey, usize> = spans
            .map(|(index, span)| (span.holder.task.key, index))
            .collect();
        for holder in &facts.lock().holders {
            if let Some(&index) = known.get(&holder.task.key) {
                let span = &mut self.holders[index];
                span.holder = holder.clone();
                span.last_seen_ns = seen_ns;
            } else {
                is_new = true;
                known.insert(holder.task.key, self.holders.len());
                self.holders.push(HolderSpan {
                    holder: holder.clone(),
                    first_seen_ns: seen_ns,
                    last_seen_ns: seen_ns,
                });
            }
        }
        self.facts = Some(facts);
        is_new
    }
}
