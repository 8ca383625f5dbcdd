//! Surveys on a thread of their own, so that events are read meanwhile, and within
//! a budget.

use std::{io, mem, sync::Arc, thread};

use tokio::sync::mpsc;

use crate::{
    lockup::Suspect,
    survey::{Survey, SurveyError, SurveyOptions, Surveyor},
    task::Nanos,
};

/// Surveys are paid for with time: each with this much at least …
const PRICE_MIN: Nanos = Nanos(1_000_000_000);
/// … of which this much may be owed, so that short stalls in a row are named, too.
const CREDIT: Nanos = Nanos(3_000_000_000);
/// A survey's own running time is at most this part of the time: 2 %.
const COST_FACTOR: u64 = 50;
/// A survey that has not answered for this long is not waited for.
const PATIENCE: Nanos = Nanos(3_000_000_000);

/// The surveyor's thread, and when it may be asked again.
#[derive(Debug)]
pub(super) struct Surveys {
    requests: mpsc::UnboundedSender<Vec<Suspect>>,
    results: mpsc::UnboundedReceiver<Result<Survey, SurveyError>>,
    asked_at_ns: Option<u64>,
    budget: Budget,
}

/// What surveys have cost, and what they may.
#[derive(Debug, Default)]
struct Budget {
    /// Until then, time has been spent on surveys taken.
    paid_until_ns: u64,
    count: u64,
}

impl Budget {
    /// True if a survey may be taken now.
    fn allows_one(&self, now_ns: u64) -> bool {
        now_ns + CREDIT.0 >= self.paid_until_ns
    }

    /// One has been taken. The first is the price of beginning to watch, paid once: on a slow
    /// machine it would use up what the first stall needs.
    fn spend(&mut self, cost: Nanos, now_ns: u64) {
        self.count += 1;
        if self.count > 1 {
            self.paid_until_ns = self.paid_until_ns.max(now_ns) + price(cost).0;
        }
    }
}

impl Surveys {
    /// Starts the thread. It ends when this value is dropped, or with the process:
    /// nobody waits for it, since the kernel might not answer.
    pub(super) fn start(mut surveyor: Surveyor) -> io::Result<Self> {
        let options = SurveyOptions::default();
        let (requests, mut asked) = mpsc::unbounded_channel::<Vec<Suspect>>();
        let (answer, results) = mpsc::unbounded_channel();
        thread::Builder::new()
            .name("survey".into())
            .spawn(move || {
                let mut is_first = true;
                while let Some(suspects) = asked.blocking_recv() {
                    if answer.send(surveyor.survey(&options, &suspects)).is_err() {
                        break;
                    }
                    // What the next one may need: with a CPU locked up it takes long to read.
                    // The first one is not kept waiting for it: a stall may stand already.
                    if mem::take(&mut is_first) {
                        surveyor.symbols().read_ahead();
                    }
                }
            })?;
        Ok(Self {
            requests,
            results,
            asked_at_ns: None,
            budget: Budget::default(),
        })
    }

    /// Asks for a survey if the budget allows one now; it looks into these CPUs, too. Whether
    /// it will be taken.
    pub(super) fn request(&mut self, now_ns: u64, suspects: Vec<Suspect>) -> bool {
        let may_be_taken = self.asked_at_ns.is_none() && self.budget.allows_one(now_ns);
        let is_asked = may_be_taken && self.requests.send(suspects).is_ok();
        if is_asked {
            self.asked_at_ns = Some(now_ns);
        }
        is_asked
    }

    /// The next answer; pending while nothing has been asked.
    pub(super) async fn next(&mut self, now_ns: impl Fn() -> u64) -> SurveyAnswer {
        let Some(result) = self.results.recv().await else {
            // The thread is gone, by a panic that it has printed: none will come.
            return std::future::pending().await;
        };
        self.asked_at_ns = None;
        let cost = result.as_ref().map_or(Nanos(0), |survey| {
            Nanos(survey.duration.0.saturating_sub(survey.paused.0))
        });
        self.budget.spend(cost, now_ns());
        result.map(Arc::new)
    }

    /// Lets the next survey start at once: it is to confirm the last.
    pub(super) fn allow_now(&mut self) {
        self.budget.paid_until_ns = 0;
    }

    /// True while an answer is overdue.
    pub(super) fn is_overdue(&self, now_ns: u64) -> bool {
        self.asked_at_ns
            .is_some_and(|asked_at_ns| Nanos::between(asked_at_ns, now_ns) > PATIENCE)
    }

    /// Surveys taken so far.
    pub(super) fn count(&self) -> u64 {
        self.budget.count
    }
}

/// What a survey came to.
pub(super) type SurveyAnswer = Result<Arc<Survey>, SurveyError>;

fn price(cost: Nanos) -> Nanos {
    Nanos(cost.0.saturating_mul(COST_FACTOR)).max(PRICE_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dear_survey_is_taken_less_often() {
        assert_eq!(price(Nanos(5_000_000)), PRICE_MIN);
        assert_eq!(price(Nanos(100_000_000)), Nanos(5_000_000_000));
    }

    #[test]
    fn a_dear_survey_at_the_start_leaves_one_for_the_first_stall() {
        const SEC: u64 = 1_000_000_000;
        let dear = Nanos(400_000_000);
        let mut budget = Budget::default();
        assert!(budget.allows_one(100 * SEC));
        budget.spend(dear, 100 * SEC);
        assert!(budget.allows_one(101 * SEC));
        budget.spend(dear, 101 * SEC);
        // 50 times 0.4 s, of which 3 s may be owed.
        assert!(!budget.allows_one(117 * SEC));
        assert!(budget.allows_one(118 * SEC));
    }
}
