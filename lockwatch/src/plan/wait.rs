//! Hooks that see waits begin and end.

use std::collections::BTreeMap;

use lockwatch_ebpf::stream::WAIT_SITES;

use super::{
    Feature, Gap, Hook, Mechanism, Offer, Plan, Purpose, Subject, WaitEnds,
    place::{Function, MEMORY_REMEDY, count, memory_refusal, tracepoint, typed_refusal},
};
use crate::{
    kernel::lock_functions::{
        Awaited, LOCK_FUNCTIONS, Outcome, Role,
        tracepoint::{CONTENTION_BEGIN, CONTENTION_END},
    },
    lock::LockKind,
};

/// Adds the best hooks for waits; what they leave out becomes gaps.
pub(super) fn add(plan: &mut Plan, offer: &Offer) {
    if let Some(why) = offer.lacking.get(&Feature::RingBuffer) {
        plan.gaps.push(unseen("waits", why.clone()));
        return;
    }
    let ends = tracepoint(offer, CONTENTION_END);
    let begins = tracepoint(offer, CONTENTION_BEGIN);
    match (ends, begins) {
        (Ok(end), Ok(begin)) => {
            let hook = |purpose, target: &str, (mechanism, arguments): (_, &[String])| Hook {
                purpose,
                mechanism,
                target: target.to_owned(),
                parameters: count(arguments),
            };
            let end_purpose = Purpose::WaitEnd {
                awaited: None,
                outcome: Outcome::ZeroIsSuccess,
            };
            let begin_purpose = Purpose::WaitBegin {
                awaited: None,
                end: WaitEnds::Hook,
            };
            plan.hooks.push(hook(end_purpose, CONTENTION_END, end));
            plan.hooks
                .push(hook(begin_purpose, CONTENTION_BEGIN, begin));
            plan.reasons.push(format!(
                "waits from the contention tracepoints by {}: all kinds of lock, at the least cost",
                end.0.name()
            ));
        }
        // The start time of the task that waits is read from it.
        (Err(why), _) | (_, Err(why)) => {
            match memory_refusal(offer, "programs at functions have") {
                Some(refused) => plan.gaps.push(Gap {
                    remedy: Some(MEMORY_REMEDY.to_owned()),
                    ..unseen("waits", format!("{why}; {refused}"))
                }),
                None => slow_paths(plan, offer, &why),
            }
        }
    }
}

/// Kinds of lock whose waits functions tell, and how they are called in a gap.
const KINDS: [(LockKind, &str); 5] = [
    (LockKind::Rwsem, "rwsems (mmap_lock, i_rwsem, s_umount, …)"),
    (LockKind::Mutex, "mutexes"),
    (LockKind::RtMutex, "rt_mutexes"),
    (LockKind::Semaphore, "semaphores"),
    (LockKind::PercpuRwsem, "per-CPU rwsems"),
];

/// Hooks the functions in which tasks wait, one kind of lock after the other.
fn slow_paths(plan: &mut Plan, offer: &Offer, no_tracepoints: &str) {
    let mut ends = Vec::new();
    let mut begins = Vec::new();
    let mut seen = Vec::new();
    let mut unseen_kinds = BTreeMap::<String, Vec<&str>>::new();
    let mut left_out = Vec::new();
    for (kind, called) in KINDS {
        let mut found = SlowPaths::of(offer, kind);
        // A begin without an end stands until a survey refutes it. Rwsem queues are
        // what surveys find best; mutex waits are so many and so short that they would
        // fill the map before the survey comes.
        if kind != LockKind::Rwsem {
            found.untyped.clear();
        }
        if found.typed.is_empty() && found.untyped.is_empty() {
            unseen_kinds
                .entry(found.why_none())
                .or_default()
                .push(called);
            continue;
        }
        left_out.extend(found.leave_out(WAIT_SITES - begins.len()));
        if !found.typed.is_empty() {
            seen.push(called);
        }
        for path in &found.typed {
            let hook = |purpose, mechanism| Hook {
                purpose,
                mechanism,
                target: path.stem.to_owned(),
                parameters: path.parameters,
            };
            let awaited = Some(path.awaited);
            let outcome = path.outcome;
            ends.push(hook(
                Purpose::WaitEnd { awaited, outcome },
                Mechanism::Fexit,
            ));
            let end = WaitEnds::Hook;
            begins.push(hook(Purpose::WaitBegin { awaited, end }, Mechanism::Fentry));
        }
        for &(awaited, target) in &found.untyped {
            let awaited = Some(awaited);
            let end = WaitEnds::Survey;
            begins.push(Hook {
                purpose: Purpose::WaitBegin { awaited, end },
                mechanism: Mechanism::Kprobe,
                target: target.to_owned(),
                parameters: 1,
            });
        }
        if !found.untyped.is_empty() {
            let targets = names(found.untyped.iter().map(|&(_, target)| target));
            plan.reasons.push(format!(
                "begins of waits for {called} from {targets} by kprobe: {no_tracepoints}, and {}",
                found.why_not_typed
            ));
            plan.gaps.push(Gap {
                subject: Subject::WaitEnds,
                missing: format!("ends of waits for {called} in {targets}"),
                why: format!(
                    "{}; a kretprobe would miss them just when many tasks wait",
                    found.why_not_typed
                ),
                cost: "a wait ends when a survey does not find it any more: up to a second late"
                    .to_owned(),
                remedy: None,
            });
        }
    }
    if !seen.is_empty() {
        plan.reasons.push(format!(
            "waits for {} from the functions in which tasks wait, by fentry and fexit, as {no_tracepoints}; they are a little longer than by tracepoint, as they include spinning",
            seen.join(", ")
        ));
    }
    plan.gaps
        .extend(unseen_kinds.into_iter().map(|(why, kinds)| {
            let waits = format!("waits for {}", kinds.join(", "));
            unseen(&waits, format!("{no_tracepoints}, and {why}"))
        }));
    if !left_out.is_empty() {
        plan.gaps.push(unseen(
            &format!("waits in {}", left_out.join(", ")),
            format!("{no_tracepoints}, and lockwatch has programs for {WAIT_SITES} functions"),
        ));
    }
    plan.hooks.extend(ends);
    plan.hooks.extend(begins);
}

/// Waits that no program sees.
fn unseen(waits: &str, why: String) -> Gap {
    Gap {
        subject: Subject::WaitBegins,
        missing: format!("{waits} as they begin and end"),
        why,
        cost: "surveys alone show them: short ones are missed, all times are rough".to_owned(),
        remedy: None,
    }
}

/// A function from the begin of a wait to its end.
struct SlowPath {
    stem: &'static str,
    parameters: u8,
    awaited: Awaited,
    outcome: Outcome,
}

/// The functions in which one kind of lock is waited for.
#[derive(Default)]
struct SlowPaths<'a> {
    typed: Vec<SlowPath>,
    untyped: Vec<(Awaited, &'a str)>,
    /// Why functions are not typed, or not to be hooked at all.
    why_not_typed: String,
}

impl<'a> SlowPaths<'a> {
    fn of(offer: &'a Offer, kind: LockKind) -> Self {
        let mut found = Self::default();
        let mut reasons = BTreeMap::<String, Vec<&str>>::new();
        for &(stem, role) in LOCK_FUNCTIONS {
            let Role::Wait(awaited, outcome) = role else {
                continue;
            };
            if awaited.kind != kind {
                continue;
            }
            match Function::find(offer, stem) {
                Function::Absent => {}
                Function::Typed { parameters } => found.typed.push(SlowPath {
                    stem,
                    parameters,
                    awaited,
                    outcome,
                }),
                Function::Untyped { targets, why } => {
                    found
                        .untyped
                        .extend(targets.into_iter().map(|target| (awaited, target)));
                    reasons.entry(why).or_default().push(stem);
                }
                Function::Refused { typed, untyped } => reasons
                    .entry(format!("{typed}; {untyped}"))
                    .or_default()
                    .push(stem),
            }
        }
        let reasons: Vec<String> = reasons
            .into_iter()
            .map(|(why, stems)| format!("{}: {why}", names(stems.into_iter())))
            .collect();
        // What is true of all functions is said of none.
        found.why_not_typed = typed_refusal(offer).unwrap_or_else(|| reasons.join("; "));
        found
    }

    /// Takes out the functions for which there are no more programs, and names them: the last
    /// ones.
    fn leave_out(&mut self, programs: usize) -> Vec<&'a str> {
        let typed = self.typed.len().min(programs);
        let untyped = self.untyped.len().min(programs - typed);
        let left_out = self.typed.drain(typed..).map(|path| path.stem);
        left_out
            .chain(self.untyped.drain(untyped..).map(|(_, target)| target))
            .collect()
    }

    fn why_none(self) -> String {
        if self.why_not_typed.is_empty() {
            "it has none of the functions that lockwatch knows to wait for them".to_owned()
        } else {
            self.why_not_typed
        }
    }
}

/// Names in a row.
fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}
