//! Hooks that see who holds a lock, from acquiring to releasing it.
//!
//! There is no plan by kprobe. At the entry of `down_read` a task does not hold the lock
//! yet, it may spin or sleep there, be interrupted, or fail to get it; with no hook at the
//! return (a kretprobe runs out of instances when many block) nobody can tell. A name
//! from such a guess would be a false accusation.

use super::{
    Gap, Hook, Mechanism, Offer, Plan, Purpose, State, Subject,
    place::{Function, MEMORY_REMEDY, count, memory_refusal, positions, tracepoint, typed_refusal},
    task::unknown_arguments,
};
use crate::kernel::lock_functions::{
    LOCK_FUNCTIONS, RELEASES_EVERYWHERE, Role,
    tracepoint::{MMAP_LOCK_ACQUIRED, MMAP_LOCK_RELEASED},
};

/// Adds the best hooks for holds; what they leave out becomes gaps.
pub(super) fn add(plan: &mut Plan, offer: &Offer) {
    // A task's entry in the hash has its start time, which is read from the task.
    if plan.state == State::Hash
        && let Some(why) = memory_refusal(
            offer,
            "without task storage, the programs that track holds have",
        )
    {
        plan.gaps.push(unseen(why, Some(MEMORY_REMEDY.to_owned())));
        return;
    }
    let refused = match Functions::find(offer) {
        Ok(found) => {
            plan.hooks.extend(found.hooks);
            plan.reasons.push(
                "holds of all rwsems from the functions that acquire and release them, by fexit and fentry: the result of an attempt is known at its return only"
                    .to_owned(),
            );
            plan.gaps.extend(found.missed.map(|why| Gap {
                subject: Subject::Holds,
                missing: "some acquisitions of rwsems".to_owned(),
                why,
                cost: "where holders are missing, surveys have to find them".to_owned(),
                remedy: None,
            }));
            return;
        }
        Err(why) => why,
    };
    match mmap_lock(offer) {
        Ok(hooks) => {
            plan.hooks.extend(hooks);
            plan.reasons.push(
                "holds of mmap_lock from its tracepoints, as the functions of all rwsems cannot be hooked at their return (a kprobe at the entry of one cannot tell whether it acquires)"
                    .to_owned(),
            );
            plan.gaps.push(Gap {
                subject: Subject::Holds,
                missing: "exact holders of rwsems other than mmap_lock".to_owned(),
                why: refused,
                cost: "their holders, and since when, come from surveys alone: some are only likely, hold times are lower bounds"
                    .to_owned(),
                remedy: policy_remedy(offer),
            });
        }
        Err(no_tracepoints) => plan.gaps.push(unseen(
            format!("{refused}; {no_tracepoints}"),
            policy_remedy(offer),
        )),
    }
}

/// Holds that no program sees.
fn unseen(why: String, remedy: Option<String>) -> Gap {
    Gap {
        subject: Subject::Holds,
        missing: "exact holders of rwsems".to_owned(),
        why,
        cost: "holders, and since when, come from surveys alone: some are only likely, hold times are lower bounds"
            .to_owned(),
        remedy,
    }
}

/// A refusal of what the kernel itself has can be lifted.
fn policy_remedy(offer: &Offer) -> Option<String> {
    let refused = offer.btf && offer.refusal(Mechanism::Fentry).is_some();
    refused.then(|| "let the host's security policy allow fentry and fexit programs".to_owned())
}

/// The functions of rwsems.
struct Functions {
    hooks: Vec<Hook>,
    /// Why some acquisitions will not be seen.
    missed: Option<String>,
}

impl Functions {
    /// An error unless every release can be seen: a hold without its end would accuse
    /// for ever.
    fn find(offer: &Offer) -> Result<Self, String> {
        if let Some(why) = typed_refusal(offer) {
            return Err(why);
        }
        let mut hooks = Vec::new();
        let mut missed = Vec::new();
        let mut acquires = false;
        for &(stem, role) in LOCK_FUNCTIONS {
            let (purpose, mechanism) = match role {
                Role::Acquire(mode, outcome) => {
                    (Purpose::Acquire { mode, outcome }, Mechanism::Fexit)
                }
                Role::Release(mode) => (Purpose::Release { mode }, Mechanism::Fentry),
                Role::Downgrade => (Purpose::Downgrade, Mechanism::Fentry),
                Role::Wait(..) => continue,
            };
            let is_acquire = mechanism == Mechanism::Fexit;
            let why = match Function::find(offer, stem) {
                Function::Typed { parameters } => {
                    acquires |= is_acquire;
                    hooks.push(Hook {
                        purpose,
                        mechanism,
                        target: stem.to_owned(),
                        parameters,
                    });
                    continue;
                }
                Function::Absent if is_acquire || !RELEASES_EVERYWHERE.contains(&stem) => continue,
                Function::Absent => "this kernel has no such function".to_owned(),
                Function::Untyped { why, .. } | Function::Refused { typed: why, .. } => why,
            };
            if is_acquire {
                missed.push(format!("{stem}: {why}"));
            } else {
                return Err(format!("{stem}: {why}"));
            }
        }
        if !acquires {
            return Err(missed.join("; "));
        }
        Ok(Self {
            hooks,
            missed: (!missed.is_empty()).then(|| missed.join("; ")),
        })
    }
}

/// A purpose by the positions of a tracepoint's `bool` arguments.
type ByPositions = fn(&[u8]) -> Option<Purpose>;

/// The tracepoints of mmap_lock; both, or none.
fn mmap_lock(offer: &Offer) -> Result<Vec<Hook>, String> {
    let purposes: [(&str, ByPositions); 2] = [
        (MMAP_LOCK_RELEASED, |bools| match *bools {
            [write] => Some(Purpose::MmapReleased { write }),
            _ => None,
        }),
        (MMAP_LOCK_ACQUIRED, |bools| match *bools {
            [write, success] => Some(Purpose::MmapAcquired { write, success }),
            _ => None,
        }),
    ];
    purposes
        .into_iter()
        .map(|(name, purpose)| {
            let (mechanism, arguments) = tracepoint(offer, name)?;
            let is_mm = arguments
                .first()
                .is_some_and(|ty| ty == "struct mm_struct *");
            let purpose = purpose(&positions(arguments, "bool"))
                .filter(|_| is_mm)
                .ok_or_else(|| unknown_arguments(name, arguments))?;
            Ok(Hook {
                purpose,
                mechanism,
                target: name.to_owned(),
                parameters: count(arguments),
            })
        })
        .collect()
}
