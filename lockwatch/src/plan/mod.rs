//! What to attach: computed from what a kernel offers, before anything is attached.
//!
//! Pure: the same offer gives the same plan, on any machine.

mod hold;
mod lockup;
mod place;
mod survey;
mod task;
#[cfg(test)]
pub(crate) mod tests;
mod wait;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use crate::kernel::{
    lock_functions::{Awaited, Outcome},
    offer::{Feature, Mechanism, Offer},
};
use crate::lock::LockMode;

/// What the user wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Who holds a lock, exactly, from acquiring to releasing it.
    pub holds: bool,
    /// How the holders of stalled locks spend their time: two hooks of the scheduler, which
    /// cost something at every switch.
    pub holder_times: bool,
}

impl Wanted {
    /// All there is.
    pub const ALL: Self = Self {
        holds: true,
        holder_times: true,
    };
    /// Waits alone, and what holders do meanwhile.
    pub const WITHOUT_HOLDS: Self = Self {
        holds: false,
        ..Self::ALL
    };
}

/// What a hook is for. Argument positions count from 0, as the program sees them
/// (without the `void *` that BTF shows first for a tracepoint).
///
/// Of a function, the first parameter is the lock, always.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Purpose {
    /// A wait begins.
    WaitBegin {
        /// What is waited for; none where the second argument has the flags of
        /// `contention_begin`.
        awaited: Option<Awaited>,
        /// What ends it.
        end: WaitEnds,
    },
    /// A wait ends.
    WaitEnd {
        /// What was waited for; none at `contention_end`.
        awaited: Option<Awaited>,
        /// How its result (the second argument of `contention_end`) is read.
        outcome: Outcome,
    },
    /// An rwsem was acquired: at the return of the function.
    Acquire {
        /// How.
        mode: LockMode,
        /// How the result is read.
        outcome: Outcome,
    },
    /// An rwsem is about to be released: at the entry of the function.
    Release {
        /// How it was held.
        mode: LockMode,
    },
    /// A write-held rwsem is about to become read-held: at the entry of the function.
    Downgrade,
    /// A task has acquired an mmap_lock, or failed to; also fires, for read, just before a downgrade.
    /// Argument 0 is the mm.
    MmapAcquired {
        /// Position of `bool write`.
        write: u8,
        /// Position of `bool success`.
        success: u8,
    },
    /// A task is about to release an mmap_lock. Argument 0 is the mm.
    MmapReleased {
        /// Position of `bool write`.
        write: u8,
    },
    /// A CPU goes from one task to another.
    HolderSwitch {
        /// Position of the task that leaves the CPU.
        prev: u8,
        /// Position of the task that gets it.
        next: u8,
        /// Position of the state of the one that leaves; none where only its
        /// `task_struct` tells (up to 5.17).
        prev_state: Option<u8>,
    },
    /// A task is made runnable. Argument 0 is the task.
    HolderWakeup,
    /// A task has exited and is freed, so that what is kept by its thread ID or its address can
    /// go.
    /// Argument 0 is the task.
    TaskExit,
}

/// What ends a wait that a hook saw begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WaitEnds {
    /// Another hook of the plan.
    Hook,
    /// A survey that does not find it any more.
    Survey,
}

/// One program at one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hook {
    /// What for.
    pub purpose: Purpose,
    /// How.
    pub mechanism: Mechanism,
    /// The tracepoint, or the function as the symbol table spells it.
    pub target: String,
    /// Number of arguments at that place. At a function's return the result comes
    /// behind them: argument number `parameters`.
    pub parameters: u8,
}

/// Where per-task state is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// In slots by the address of the task, and, where these have no room, with the task itself:
    /// no key, no limit, freed with the task.
    TaskStorage,
    /// In a hash map of fixed size by thread ID.
    Hash,
}

/// What a [`Gap`] is in.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// Everything: no program at all can be loaded.
    Everything,
    /// The state at one instant.
    Surveys,
    /// Waits as they begin.
    WaitBegins,
    /// Waits as they end.
    WaitEnds,
    /// Who holds a lock, from acquiring to releasing it.
    Holds,
    /// How holders spend their time.
    HolderTimes,
    /// CPUs that do not go on.
    Lockups,
}

/// Something a user may want that this kernel does not give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Gap {
    /// What it is in.
    pub subject: Subject,
    /// What is missing: `exact holders of locks other than mmap_lock`.
    pub missing: String,
    /// Why: `fentry is refused: …`.
    pub why: String,
    /// What the user pays for it.
    pub cost: String,
    /// What would bring it; none where nothing short of another kernel does.
    pub remedy: Option<String>,
}

/// What to attach, and what that leaves out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    /// In the order to attach them: who ends or releases comes before who begins or
    /// acquires.
    pub hooks: Vec<Hook>,
    /// Where per-task state is kept.
    pub state: State,
    /// What is missing, worst first.
    pub gaps: Vec<Gap>,
    /// Why this way and not a better one, a line for each decision.
    pub reasons: Vec<String>,
}

/// Computes what to attach.
pub fn plan(offer: &Offer, wanted: Wanted) -> Plan {
    let mut plan = Plan {
        hooks: Vec::new(),
        state: State::TaskStorage,
        gaps: Vec::new(),
        reasons: Vec::new(),
    };
    survey::add(&mut plan, offer);
    wait::add(&mut plan, offer);
    // Task storage is read by the iterator.
    let lacking = [Feature::TaskStorage, Feature::TaskIterator]
        .iter()
        .find_map(|feature| offer.lacking.get(feature));
    if lacking.is_some() {
        plan.state = State::Hash;
    }
    if wanted.holds {
        hold::add(&mut plan, offer);
    }
    if let Some(why) = lacking {
        plan.reasons.push(format!(
            "the state of tasks is kept in a hash map, not in task storage: {why}"
        ));
    }
    task::add(&mut plan, offer, wanted);
    lockup::add(&mut plan, offer);
    plan.gaps.sort_by_key(|gap| gap.subject);
    plan
}

impl Plan {
    /// The gaps in one subject.
    pub fn gaps_in(&self, subject: Subject) -> impl Iterator<Item = &Gap> {
        self.gaps.iter().filter(move |gap| gap.subject == subject)
    }

    /// Whether a `memcg_path` stands between `mm` and the rest of the arguments of the
    /// tracepoints of mmap_lock (up to 6.15).
    pub fn has_memcg_path(&self) -> bool {
        let is_behind =
            |hook: &Hook| matches!(hook.purpose, Purpose::MmapReleased { write } if write > 1);
        self.hooks.iter().any(is_behind)
    }

    /// Whether functions are called from trampolines of ours, which they return to.
    pub fn calls_from_trampolines(&self) -> bool {
        let mut hooks = self.hooks.iter();
        hooks.any(|hook| hook.mechanism == Mechanism::Fexit)
    }

    /// Whether it is seen how holders spend their time.
    pub fn sees_holder_times(&self) -> bool {
        let switches = |hook: &Hook| matches!(hook.purpose, Purpose::HolderSwitch { .. });
        self.hooks.iter().any(switches)
    }

    /// Whether lock waits are seen as they begin.
    pub fn sees_waits(&self) -> bool {
        let begins = |hook: &Hook| matches!(hook.purpose, Purpose::WaitBegin { .. });
        self.hooks.iter().any(begins)
    }
}
