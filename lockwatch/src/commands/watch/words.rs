//! What `watch` says in words, of what no report describes.

use crate::{
    commands::watch::holders::HolderTimes,
    detect::{Detector, HardLockup, HungTask, SoftLockup, Thresholds},
    figures::{Count, Span},
    graph::Stall,
    lock::{LockKind, LockMode},
    report::text,
    stream::{Lost, Wait},
    task::Nanos,
};

/// Waiters named one by one where no survey describes the queue.
const NAMED_MAX: usize = 8;

/// `hung-task from 2m00s, soft-lockup from 20s, hard-lockup off`
pub(super) fn of_hangs(thresholds: Thresholds) -> String {
    let from = |detector: &dyn Detector, threshold: Option<Nanos>| match threshold {
        Some(threshold) => format!("{} from {}", detector.name(), Span(threshold)),
        None => format!("{} off", detector.name()),
    };
    [
        from(&HungTask, thresholds.hung_task),
        from(&SoftLockup, thresholds.soft_lockup),
        from(&HardLockup, thresholds.hard_lockup),
    ]
    .join(", ")
}

/// The lock's name, or what can be said of a lock that no survey has found.
pub(super) fn name(stall: &Stall) -> String {
    stall.facts.as_ref().map_or_else(
        || format!("unknown {} at {}", stall.kind.words(), stall.lock),
        |facts| facts.lock().name.clone(),
    )
}

pub(in crate::commands) fn unsurveyed(stall: &Stall, waits: &[&Wait], now_ns: u64) -> String {
    let waited = |wait: &Wait| Span(Nanos::between(wait.since_ns, now_ns));
    let named = |wait: &&Wait| {
        let mode = match (wait.kind, wait.mode) {
            (LockKind::Mutex | LockKind::RtMutex | LockKind::Semaphore, _) => "",
            (_, LockMode::Read) => " read",
            (_, LockMode::Write) => " WRITE",
        };
        printable(&format!("{}{mode} {}", wait.task, waited(wait)))
    };
    let mut queue: Vec<String> = waits.iter().take(NAMED_MAX).map(named).collect();
    if waits.len() > NAMED_MAX {
        queue.push(format!("and {} more", Count::of(waits.len() - NAMED_MAX)));
    }
    let why = if stall.kind == LockKind::Rwsem {
        "no survey has found this lock"
    } else {
        "surveys look at rwsems only"
    };
    format!(
        "{}    {} blocked · oldest {}\n  held by  unknown: {why}\n  queue    {}\n",
        name(stall),
        Count::of(waits.len()).nouns("task", "tasks"),
        waits.first().map_or(Span(Nanos(0)), |wait| waited(wait)),
        queue.join(" · ")
    )
}

/// What a holder did since the survey that found it.
pub(super) fn spent(holder: &HolderTimes) -> String {
    let HolderTimes { times, sleeps, .. } = holder;
    let slept = sleeps.first().map_or_else(String::new, |longest| {
        let function = longest.function.as_deref().unwrap_or("an unknown function");
        format!(
            ", {} of it in {} ({})",
            Span(longest.time),
            printable(function),
            text::stuck_words(longest.class)
        )
    });
    format!(
        "in the last {}: left the CPU {}, asleep {}{slept}, running {}, ready without a CPU {}",
        Span(times.total()),
        Count::from(times.switches).nouns("time", "times"),
        Span(times.asleep),
        Span(times.running),
        Span(times.runnable),
    )
}

/// `, 2 findings of hanging tasks or CPUs`; nothing where there are none.
pub(in crate::commands) fn findings_of_hangs(findings: u64) -> String {
    match findings {
        0 => String::new(),
        count => format!(
            ", {} of hanging tasks or CPUs",
            Count(count).nouns("finding", "findings")
        ),
    }
}

/// `begins 3, ends 1`, kinds that lost nothing left out.
pub(in crate::commands) fn by_kind(lost: &Lost) -> String {
    let kinds: Vec<String> = lost
        .by_kind()
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(kind, count)| format!("{kind} {count}"))
        .collect();
    if kinds.is_empty() {
        "nothing".into()
    } else {
        kinds.join(", ")
    }
}

/// Names come from whoever runs on the host: nothing that a terminal would obey.
pub(in crate::commands) fn printable(text: &str) -> String {
    text.replace(text::is_unprintable, "?")
}

pub(super) fn clock(at: jiff::Timestamp) -> impl std::fmt::Display {
    at.strftime("%FT%TZ")
}
