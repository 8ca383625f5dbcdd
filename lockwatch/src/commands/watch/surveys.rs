//! Surveys on a thread of their own, so that events are read meanwhile, and within
//! a budget.

use std::{
    io,
    sync::{Arc, OnceLock},
    thread,
};

use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity};

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
    /// The surveyor's thread, once it runs.
    thread: Arc<OnceLock<Pid>>,
    /// Those of our CPUs that our threads are kept off, if any.
    kept_off: Option<(CpuSet, Vec<u32>)>,
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
        let tid = Arc::new(OnceLock::new());
        let own_tid = Arc::clone(&tid);
        thread::Builder::new()
            .name("survey".into())
            .spawn(move || {
                let _ = own_tid.set(gettid());
                while let Some(suspects) = asked.blocking_recv() {
                    if answer.send(surveyor.survey(&options, &suspects)).is_err() {
                        break;
                    }
                }
            })?;
        Ok(Self {
            requests,
            results,
            asked_at_ns: None,
            budget: Budget::default(),
            thread: tid,
            kept_off: None,
        })
    }

    /// Keeps both threads off these CPUs, on which others get no turn: woken where it ran
    /// last, a thread would wait there until the lockup is over, a real-time one as well
    /// (kernel/sched/rt.c, `select_task_rq_rt`). One that waits there already is moved by
    /// that, for it does not run (kernel/sched/core.c, `affine_move_task`). Best effort.
    pub(super) fn keep_off(&mut self, cpus: Vec<u32>) {
        if self.kept_off.as_ref().map_or(&[][..], |(_, kept)| kept) == cpus {
            return;
        }
        let allowed = match self.kept_off.take() {
            Some((allowed, _)) => allowed,
            None => match sched_getaffinity(None) {
                Ok(allowed) => allowed,
                Err(error) => return tracing::debug!("cannot read our CPUs: {error}"),
            },
        };
        let mut rest = allowed;
        cpus.iter().for_each(|&cpu| rest.unset(cpu as usize));
        for thread in [self.thread.get().copied(), Some(gettid())] {
            if thread.is_some()
                && let Err(error) = sched_setaffinity(thread, &rest)
            {
                tracing::debug!("cannot leave the CPUs {cpus:?}: {error}");
            }
        }
        if !cpus.is_empty() {
            self.kept_off = Some((allowed, cpus));
        }
    }

    /// Asks for a survey if the budget allows one now; it looks into these CPUs, too.
    pub(super) fn request(&mut self, now_ns: u64, suspects: Vec<Suspect>) {
        let may_be_taken = self.asked_at_ns.is_none() && self.budget.allows_one(now_ns);
        if may_be_taken && self.requests.send(suspects).is_ok() {
            self.asked_at_ns = Some(now_ns);
        }
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
