//! The `root` lines: whom, in the end, the queue waits for.

use super::{Text, Tone, daemons, holders::device_words, named};
use crate::{
    detect::{Deadlock, Detector as _, LostWakeup},
    figures::Count,
    graph::chain::Step,
    lock::{LockAddr, LockState},
    report::{Chain, Lock, Report},
    task::StuckClass,
};

/// Roots that are shown for one lock.
const SHOWN: usize = 3;

pub(super) fn lines(report: &Report, lock: &Lock) -> Vec<Text> {
    let roots: Vec<(&Chain, Vec<Step>)> = report
        .chains_of(lock)
        .filter_map(|chain| Some((chain, chain.graph.route(lock.at)?)))
        .collect();
    if roots.is_empty() {
        return match lock.state {
            LockState::Free => Vec::new(),
            // Why there is no holder is known.
            _ if lock.note.is_some() => Vec::new(),
            _ => vec![unknown(report, lock)],
        };
    }
    let mut lines: Vec<Text> = roots
        .iter()
        .take(SHOWN)
        .map(|(chain, route)| root(report, lock, chain, route))
        .collect();
    if roots.len() > SHOWN {
        let more = Count::of(roots.len() - SHOWN).nouns("root", "roots");
        lines.push(Text::plain(format!("… and {more} more")));
    }
    lines
}

/// `a[1] ← i_rwsem of /srv, whose holder is unknown`
fn unknown(report: &Report, lock: &Lock) -> Text {
    let mut text = Text::new();
    let mut at = lock;
    // No way is longer than every lock once.
    for _ in 0..report.locks.len() {
        let Some((holder, awaited)) = at
            .known_holders()
            .find_map(|holder| Some((holder, report.lock_awaited_by(holder.tid)?)))
        else {
            break;
        };
        text.push(Tone::Strong, named(&holder.comm, holder.tid));
        text.push(Tone::Plain, " ← ");
        text.push(Tone::Plain, &awaited.name);
        at = awaited;
        if at.known_holders().next().is_some() {
            text.push(Tone::Plain, " ← ");
        }
    }
    let words = if text.is_empty() {
        "unknown: no holder is known well enough"
    } else {
        ", whose holder is unknown"
    };
    text.with(Tone::Doubt, words)
}

/// `filebeat[4442] ← i_rwsem of /srv ← kworker/3:1[77] ← block I/O · 1,480 tasks blocked in all`
fn root(report: &Report, lock: &Lock, chain: &Chain, route: &[Step]) -> Text {
    let mut text = Text::new();
    // Of a route into a cycle the part before the cycle is shown, then the cycle.
    if chain.cycle && !on_cycle(chain, lock.at) {
        text.append(steps(report, route));
        text.push(Tone::Plain, ", which is in a ");
    }
    if chain.cycle {
        text.push(Tone::Alarm, "cycle");
        text.push(Tone::Plain, ": ");
        text.append(steps(report, &chain.graph.path));
        text.push(Tone::Plain, each(report, chain));
    } else {
        text.append(steps(report, route));
        match chain.stuck.class {
            StuckClass::Unknown if matches!(route.last(), Some(Step::Daemon(_))) => {
                let place = chain.stuck.frame.as_deref();
                let place = place.map_or_else(String::new, |frame| format!(" (in {frame})"));
                text.push(Tone::Plain, format!(", which has not answered{place}"));
            }
            StuckClass::Unknown => {
                text.push(Tone::Plain, " ← ");
                text.push(Tone::Doubt, "unknown");
            }
            StuckClass::Running => text.push(Tone::Plain, ", which runs"),
            StuckClass::Exit => text.push(Tone::Plain, ", which is exiting"),
            StuckClass::Fuse => {
                let daemon = daemons::awaited_by(report, chain.root.tid);
                let daemon = daemon.unwrap_or_else(|| cause(StuckClass::Fuse).to_owned());
                text.push(Tone::Plain, format!(" ← {daemon}"));
            }
            StuckClass::BlockIo => {
                text.push(Tone::Plain, " ← block I/O");
                if let Some(device) = &chain.stuck.device {
                    text.push(Tone::Plain, format!(" ({}", device_words(device)));
                    if is_wakeup_lost(report, chain) {
                        text.push(Tone::Plain, ": ");
                        text.push(Tone::Alarm, "lost wakeup suspected");
                    }
                    text.push(Tone::Plain, ")");
                }
            }
            class => text.push(Tone::Plain, format!(" ← {}", cause(class))),
        }
    }
    if chain.blocked_tasks as usize > lock.blocked().count() {
        let tasks = Count::from(chain.blocked_tasks).nouns("task", "tasks");
        text.push(Tone::Plain, format!(" · {tasks} blocked in all"));
    }
    text
}

/// A circle that is no deadlock rests on something that is not certain: a thread that is likely
/// to have a request, a wait that may have a time limit, a wait that has just begun.
fn each(report: &Report, chain: &Chain) -> &'static str {
    let name = Deadlock.name();
    let mut findings = report.findings.iter();
    if findings.any(|it| it.detector == name && it.tasks.contains(&chain.root.tid)) {
        ": each waits for the next"
    } else {
        ": each seems to wait for the next"
    }
}

fn is_wakeup_lost(report: &Report, chain: &Chain) -> bool {
    let name = LostWakeup.name();
    let mut findings = report.findings.iter();
    findings.any(|finding| finding.detector == name && finding.tasks.contains(&chain.root.tid))
}

fn on_cycle(chain: &Chain, lock: LockAddr) -> bool {
    chain
        .graph
        .path
        .iter()
        .any(|step| matches!(step, Step::Lock(address) if *address == lock))
}

fn steps(report: &Report, steps: &[Step]) -> Text {
    let mut text = Text::new();
    for (number, step) in steps.iter().enumerate() {
        if number > 0 {
            text.push(Tone::Plain, " ← ");
        }
        match step {
            Step::Task(task) => text.push(Tone::Strong, named(&task.comm, task.key.tid)),
            Step::Daemon(task) => {
                text.push(Tone::Plain, "daemon ");
                text.push(Tone::Strong, named(&task.comm, task.key.tid));
            }
            Step::Lock(address) => {
                let name = report.locks.iter().find(|lock| lock.at == *address);
                match name {
                    Some(lock) => text.push(Tone::Plain, &lock.name),
                    None => text.push(Tone::Plain, address.to_string()),
                }
            }
        }
    }
    text
}

/// What a root waits for, as a noun.
fn cause(class: StuckClass) -> &'static str {
    match class {
        StuckClass::BlockIo => "block I/O",
        StuckClass::NetworkFs => "a network file system's server",
        StuckClass::Fuse => "a FUSE daemon",
        StuckClass::Lock => "another kernel lock, not surveyed here",
        StuckClass::Reclaim => "memory reclaim",
        StuckClass::Completion => "a completion inside the kernel",
        StuckClass::User => "user space (ptrace, freezer or userfaultfd)",
        StuckClass::Running => "its own work",
        StuckClass::Runnable => "a free CPU",
        StuckClass::Sleep => "a timer",
        StuckClass::Exit => "its own exit",
        StuckClass::Unknown => "unknown",
    }
}
