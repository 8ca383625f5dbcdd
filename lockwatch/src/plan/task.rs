//! Hooks that see how holders spend their time, and tasks that exit.

use super::{
    Gap, Hook, Offer, Plan, Purpose, State, Subject, Wanted,
    place::{count, positions, tracepoint},
};
use crate::kernel::lock_functions::tracepoint::{SCHED_PROCESS_FREE, SCHED_SWITCH, SCHED_WAKEUP};

const TASK: &str = "struct task_struct *";

/// Adds the scheduler's hooks, for stalls that are seen as they stand, and the one that
/// keeps the holds clean.
pub(super) fn add(plan: &mut Plan, offer: &Offer, wanted: Wanted) {
    if wanted.holder_times && plan.sees_waits() {
        holder_times(plan, offer);
    }
    let holds = plan.hooks.iter().any(|hook| {
        matches!(
            hook.purpose,
            Purpose::Release { .. } | Purpose::MmapReleased { .. }
        )
    });
    if holds {
        exit(plan, offer);
    }
}

fn holder_times(plan: &mut Plan, offer: &Offer) {
    let mut hooks = Vec::new();
    let mut refused = None;
    let mut hook = |name: &str, purpose: fn(&[String]) -> Option<Purpose>| {
        let found = tracepoint(offer, name).and_then(|(mechanism, arguments)| {
            let purpose = purpose(arguments).ok_or_else(|| unknown_arguments(name, arguments))?;
            Ok(Hook {
                purpose,
                mechanism,
                target: name.to_owned(),
                parameters: count(arguments),
            })
        });
        match found {
            Ok(hook) => hooks.push(hook),
            Err(why) => refused = Some(why),
        }
    };
    hook(SCHED_WAKEUP, |arguments| {
        (arguments.first()? == TASK).then_some(Purpose::HolderWakeup)
    });
    hook(SCHED_SWITCH, |arguments| {
        let [prev, next] = positions(arguments, TASK)[..] else {
            return None;
        };
        Some(Purpose::HolderSwitch {
            prev,
            next,
            prev_state: positions(arguments, "unsigned int").first().copied(),
        })
    });
    if let Some(why) = refused.take() {
        plan.gaps.push(Gap {
            subject: Subject::HolderTimes,
            missing: "how holders spend their time: running, runnable or asleep".to_owned(),
            why,
            cost: "why a holder does not let go is known at the moments of surveys only".to_owned(),
            remedy: None,
        });
    } else {
        plan.hooks.append(&mut hooks);
    }
}

/// A task that has exited holds nothing any more.
fn exit(plan: &mut Plan, offer: &Offer) {
    match tracepoint(offer, SCHED_PROCESS_FREE) {
        Ok((mechanism, arguments)) => plan.hooks.push(Hook {
            purpose: Purpose::TaskExit,
            mechanism,
            target: SCHED_PROCESS_FREE.to_owned(),
            parameters: count(arguments),
        }),
        Err(why) => plan.reasons.push(match plan.state {
            State::Hash => {
                format!("holds of tasks that have exited are taken out by surveys: {why}")
            }
            // Task storage goes with its task.
            State::TaskStorage => format!(
                "all holds are kept in task storage, which costs more than slots that tasks leave when they exit: {why}"
            ),
        }),
    }
}

pub(super) fn unknown_arguments(name: &str, arguments: &[String]) -> String {
    format!(
        "lockwatch does not know this tracepoint {name}({})",
        arguments.join(", ")
    )
}
