//! What was observed, counted.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use lockwatch::{
    kernel::{
        hold_frames,
        learned::{Lesson, Lessons, Pair, lesson},
        lock_functions::is_lock_function,
        symbols::{Place, Symbols},
    },
    lock::LockMode,
    survey::{
        TracedHold,
        study::{Claim, Resting},
    },
    task::TaskKey,
};

use serde::Serialize;

use crate::align::parting;

/// Class of a lock, function, callee.
type PairKey = (String, String, String);

#[derive(Debug, Default)]
struct Tally {
    held: u32,
    carried: u32,
    unlinked: u32,
    sites: BTreeSet<(u64, u64)>,
}

/// How the tables that lockwatch has would have judged what was observed.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Trial {
    /// Locks of known classes that sleeping tasks held for read.
    held: u32,
    /// Of these, how many a table tells.
    by_hand: u32,
    by_learned: u32,
    by_either: u32,
    /// Locks that sleeping tasks pointed at and did not hold.
    carried: u32,
    /// Of these, how many a table would call held.
    wrong_by_hand: u32,
    wrong_by_learned: u32,
}

/// Everything.
#[derive(Debug, Serialize)]
pub(crate) struct Account {
    #[serde(flatten)]
    lessons: Lessons,
    trial: Trial,
}

/// The observations so far.
#[derive(Debug)]
pub(crate) struct Book<'s> {
    symbols: &'s Symbols,
    /// Each sleep is told once.
    seen: HashSet<(TaskKey, u64)>,
    pairs: BTreeMap<PairKey, Tally>,
    dropped: BTreeSet<(String, String)>,
    /// Sleeps with a lock held for read that say nothing, by why.
    mute: BTreeMap<&'static str, u32>,
    trial: Trial,
}

impl<'s> Book<'s> {
    pub(crate) fn new(symbols: &'s Symbols) -> Self {
        Self {
            symbols,
            seen: HashSet::new(),
            pairs: BTreeMap::new(),
            dropped: BTreeSet::new(),
            mute: BTreeMap::new(),
            trial: Trial::default(),
        }
    }

    /// Whether this sleep of this task has not been told yet.
    pub(crate) fn is_new(&self, task: TaskKey, switches: u64) -> bool {
        !self.seen.contains(&(task, switches))
    }

    /// Enters what was seen of tasks at rest; `acquired` gives the stack with which a lock
    /// was acquired.
    pub(crate) fn enter(
        &mut self,
        resting: &[Resting],
        mut acquired: impl FnMut(&TracedHold) -> Option<Vec<u64>>,
    ) {
        for task in resting {
            if !self.seen.insert((task.task, task.switches)) {
                continue;
            }
            self.enter_holds(task, &mut acquired);
            self.enter_carried(task);
        }
    }

    fn enter_holds(
        &mut self,
        task: &Resting,
        acquired: &mut impl FnMut(&TracedHold) -> Option<Vec<u64>>,
    ) {
        for (hold, class) in &task.holds {
            let once = (task.holds.iter())
                .filter(|(other, _)| other.lock == hold.lock)
                .count()
                == 1;
            if hold.mode != LockMode::Read {
                continue;
            }
            let (true, Some(class)) = (once, class) else {
                self.count("recursive, or of another class");
                continue;
            };
            self.trial.held += 1;
            let claim = task.claims.iter().find(|claim| claim.lock == hold.lock);
            if let Some(claim) = claim {
                let (hand, learned) = self.judged(&task.frames, claim);
                self.trial.by_hand += u32::from(hand);
                self.trial.by_learned += u32::from(learned);
                self.trial.by_either += u32::from(hand || learned);
            }
            let Some(stack) = acquired(hold) else {
                self.count("acquired nobody knows how");
                continue;
            };
            let Some((_, frame)) = self.parting(&stack, &task.frames) else {
                self.count("acquired in a function that is left");
                continue;
            };
            let Some((place, callee)) = self.pair(&task.frames, frame) else {
                self.count("at a lock or in an interrupt");
                continue;
            };
            let is_held = claim
                .is_some_and(|claim| claim.is_held == Some(true) && claim.frames.contains(&frame));
            let is_unlinked = !task.points_at(hold.lock, frame);
            let class = class.to_string();
            if !is_held && !is_unlinked {
                self.count("a fault decides, or pointers are ambiguous");
            } else if is_held {
                let tally = self.tally(&class, &place, callee);
                tally.held += 1;
                tally.sites.insert((place.offset, place.size));
            } else {
                self.tally(&class, &place, callee).unlinked += 1;
            }
        }
    }

    fn enter_carried(&mut self, task: &Resting) {
        for claim in &task.claims {
            if claim.is_held != Some(false) || claim.frames.is_empty() {
                continue;
            }
            let (hand, learned) = self.judged(&task.frames, claim);
            self.trial.carried += 1;
            self.trial.wrong_by_hand += u32::from(hand);
            self.trial.wrong_by_learned += u32::from(learned);
            for &frame in &claim.frames {
                if let Some((place, callee)) = self.pair(&task.frames, frame) {
                    self.tally(&claim.class.to_string(), &place, callee).carried += 1;
                }
            }
        }
    }

    /// Whether the hand-made table would name a task as holder of a lock it points at, and
    /// whether the learned one would.
    fn judged(&self, frames: &[u64], claim: &Claim) -> (bool, bool) {
        let table = hold_frames::of_class(&claim.class);
        let pairs = || {
            (claim.frames.iter()).filter_map(|&frame| {
                let place = self.symbols.place_of_return(frames[frame])?;
                let inner = frame.checked_sub(1).map(|inner| frames[inner]);
                Some((
                    place,
                    inner.map_or("", |inner| self.symbols.stem_of_return(inner)),
                ))
            })
        };
        let hand = pairs().any(|(place, callee)| {
            (table.iter()).any(|known| known.function == place.stem && known.holds_in(callee))
        });
        let learned = pairs().any(|(place, callee)| {
            matches!(lesson(&claim.class, &place, callee), Some(Lesson::Holds(_)))
        });
        (hand, learned)
    }

    /// Enters with which stacks a lock was acquired and released.
    pub(crate) fn enter_release(&mut self, acquired: &[u64], released: &[u64]) {
        let Some((_, frame)) = self.parting(acquired, released) else {
            return;
        };
        if let Some((place, callee)) = self.pair(released, frame)
            && !callee.is_empty()
        {
            self.dropped
                .insert((place.stem.to_owned(), callee.to_owned()));
        }
    }

    fn count(&mut self, why: &'static str) {
        *self.mute.entry(why).or_default() += 1;
    }

    fn parting(&self, then: &[u64], now: &[u64]) -> Option<(usize, usize)> {
        let start = |address| Some(self.symbols.place_of_return(address)?.start);
        parting(then, now, |a, b| start(a).is_some() && start(a) == start(b))
    }

    /// The place of a frame and the stem of what it calls; `None` where that is a lock's
    /// own function, a tracepoint or a program at one, or an interrupt: these say nothing of
    /// the place.
    fn pair(&self, frames: &[u64], frame: usize) -> Option<(Place<'s>, &'s str)> {
        let place = self.symbols.place_of_return(frames[frame])?;
        let Some(inner) = frame.checked_sub(1) else {
            return Some((place, ""));
        };
        let callee = self.symbols.place_of_return(frames[inner])?.stem;
        let says_nothing = is_lock_function(callee)
            || ["asm_", "__traceiter_", "__mmap_lock_do_trace_"]
                .iter()
                .any(|beginning| callee.starts_with(beginning))
            || [place.stem, callee]
                .iter()
                .any(|stem| stem.starts_with("bpf_prog_") || stem.starts_with("bpf_trampoline_"));
        (!says_nothing).then_some((place, callee))
    }

    fn tally(&mut self, class: &str, place: &Place<'_>, callee: &str) -> &mut Tally {
        let key = (class.to_owned(), place.stem.to_owned(), callee.to_owned());
        self.pairs.entry(key).or_default()
    }

    /// In a line.
    pub(crate) fn sum(&self) -> String {
        let count = |of: fn(&Tally) -> u32| {
            let all = self.pairs.values().map(of).filter(|&count| count > 0);
            (all.clone().count(), all.sum::<u32>())
        };
        let mute: Vec<String> = (self.mute.iter())
            .map(|(why, count)| format!("{count} {why}"))
            .collect();
        let (held, carried) = (count(|one| one.held), count(|one| one.carried));
        format!(
            "{} sleeps; {} pairs held in {} of them, {} carried in {}, {} dropped; {}",
            self.seen.len(),
            held.0,
            held.1,
            carried.0,
            carried.1,
            self.dropped.len(),
            mute.join(", ")
        )
    }

    /// Everything, in order.
    pub(crate) fn account(&self, release: &str) -> Account {
        let pairs = self
            .pairs
            .iter()
            .filter(|(_, tally)| tally.held + tally.carried + tally.unlinked > 0);
        let lessons = Lessons {
            release: release.to_owned(),
            pairs: pairs
                .map(|((class, function, callee), tally)| Pair {
                    class: class.clone(),
                    function: function.clone(),
                    callee: callee.clone(),
                    held: tally.held,
                    carried: tally.carried,
                    unlinked: tally.unlinked,
                    sites: tally.sites.iter().copied().collect(),
                })
                .collect(),
            dropped: self.dropped.iter().cloned().collect(),
        };
        Account {
            lessons,
            trial: self.trial,
        }
    }
}
