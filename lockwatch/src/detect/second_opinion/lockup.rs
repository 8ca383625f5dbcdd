//! What the soft- and hard-lockup watchdogs said (kernel/watchdog*.c).

use super::{ago, is_within, named, slack};
use crate::{
    detect::Scene,
    figures::Span,
    kernel_log::{LoggedTask, Message, Said},
    lockup::{Lockup, LockupKind},
    task::Nanos,
};

/// What the kernel's lockup watchdogs said of this CPU, or why they said nothing.
///
/// In words, without a full stop. `None`: there is nothing to say, as where nobody read how
/// the kernel's detectors are set.
pub fn of_lockup(scene: &Scene<'_>, lockup: &Lockup) -> Option<String> {
    // The newest of the same kind, else the newest.
    let mut said = None;
    for message in scene.kernel_log.messages.iter().rev() {
        if let Some(verdict) = of(scene, lockup, message) {
            if verdict.kind() == lockup.kind {
                said = Some((message, verdict));
                break;
            }
            said = said.or(Some((message, verdict)));
        }
    }
    let Some((message, verdict)) = said else {
        return silence(scene, lockup);
    };
    let ago = Span(ago(scene, message.at_ns));
    let cpu = lockup.cpu;
    let agrees = verdict.kind() == lockup.kind;
    let says = if agrees {
        "the kernel says the same"
    } else {
        "the kernel says otherwise"
    };
    Some(match verdict {
        Verdict::Soft { stuck, task } => {
            let other = match &lockup.task {
                Some(ours) if agrees && ours.key.tid != task.tid => {
                    format!("; it was in another task then than {ours}")
                }
                _ => String::new(),
            };
            format!(
                "{says}: soft lockup of CPU {cpu}, stuck for {}, in {}, {ago} ago{other}",
                Span(stuck),
                named(task)
            )
        }
        Verdict::Hard { seen_by } => {
            let by = match seen_by {
                Some(by) if by != cpu => format!(", seen by CPU {by}"),
                _ => String::new(),
            };
            format!("{says}: hard lockup of CPU {cpu}{by}, {ago} ago")
        }
    })
}

/// What a message says of a CPU.
#[derive(Clone, Copy)]
enum Verdict<'a> {
    Soft { stuck: Nanos, task: &'a LoggedTask },
    Hard { seen_by: Option<u32> },
}

impl Verdict<'_> {
    const fn kind(self) -> LockupKind {
        match self {
            Self::Soft { .. } => LockupKind::Soft,
            Self::Hard { .. } => LockupKind::Hard,
        }
    }
}

/// What this message says of this lockup; `None` if it is about another.
fn of<'a>(scene: &Scene<'_>, lockup: &Lockup, message: &'a Message) -> Option<Verdict<'a>> {
    let (cpu, verdict) = match &message.said {
        Said::SoftLockup { cpu, stuck, task } => (
            *cpu,
            Verdict::Soft {
                stuck: *stuck,
                task,
            },
        ),
        Said::HardLockup { cpu, seen_by } => (*cpu, Verdict::Hard { seen_by: *seen_by }),
        Said::HungTask { .. } | Said::Blocker { .. } | Said::HungTasksSuppressed => return None,
    };
    if cpu != lockup.cpu {
        return None;
    }
    let lasted = lockup.lasted;
    let counts = match verdict {
        // One kind may follow the other: against us counts only what was printed within
        // ours beyond doubt.
        _ if verdict.kind() != lockup.kind => {
            Nanos(ago(scene, message.at_ns).0.saturating_add(slack(lasted))) <= lasted
        }
        Verdict::Soft { task, .. } => {
            // Who came in the midst of it heard the last message before: it comes each
            // `soft_lockup`, and a quarter is for the watchdog's own period.
            let every = scene.kernel_log.detectors.and_then(|set| set.soft_lockup);
            let ours = lockup.task.as_ref().map(|task| task.key.tid);
            let before = match every {
                Some(Nanos(every)) if ours == Some(task.tid) => every + every / 4,
                _ => 0,
            };
            let since = Nanos(lasted.0.saturating_add(before));
            is_within(scene, message.at_ns, since)
        }
        Verdict::Hard { .. } => is_within(scene, message.at_ns, lasted),
    };
    counts.then_some(verdict)
}

/// Why they said nothing of this CPU.
fn silence(scene: &Scene<'_>, lockup: &Lockup) -> Option<String> {
    let log = scene.kernel_log;
    let detectors = log.detectors?;
    let (who, after, off) = match lockup.kind {
        LockupKind::Soft => (
            "the kernel's soft-lockup watchdog",
            detectors.soft_lockup,
            "kernel.watchdog, kernel.soft_watchdog or kernel.watchdog_thresh = 0",
        ),
        LockupKind::Hard => (
            "the kernel's hard-lockup watchdog",
            detectors.hard_lockup,
            "kernel.watchdog, kernel.nmi_watchdog or kernel.watchdog_thresh = 0",
        ),
    };
    let Some(after) = after else {
        return Some(format!("{who} is off ({off}), or not built in"));
    };
    // How late it can be: one more of the timer's periods, 2/5 of watchdog_thresh, for the
    // soft one; for the hard one by a neighbour CPU, which looks each third of them (6.12).
    let latest = match lockup.kind {
        LockupKind::Soft => after.0.saturating_add(after.0 / 5),
        LockupKind::Hard => after.0.saturating_mul(12) / 5,
    };
    if lockup.lasted < after {
        return Some(format!(
            "{who} said nothing yet: its time is {}",
            Span(after)
        ));
    }
    if lockup.lasted.0 <= latest {
        return Some(format!(
            "{who} said nothing yet: its time is {}, and it may take until {}",
            Span(after),
            Span(Nanos(latest))
        ));
    }
    Some(match &log.unread {
        Some(why) => format!("what {who} said could not be read: {why}"),
        None => format!("{who} said nothing of CPU {}", lockup.cpu),
    })
}
