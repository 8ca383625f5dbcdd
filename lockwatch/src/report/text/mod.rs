//! The report as text: one paragraph for each lock, for someone who is tired.

mod before;
mod check;
mod daemons;
mod deadlock;
pub mod histogram;
mod holders;
mod hung;
mod lockups;
mod page;
mod queue;
pub mod recordings;
mod roots;
mod stack;
mod why;

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

pub use check::write_check;
use deadlock::write_deadlock;
pub use hung::write_hung;
pub use lockups::write_lockup;
use page::{GLUE, Text, Tone, write_field};
pub use page::{Style, is_unprintable};

use super::{Finding, Hung, Lock, Report, WayOut, ways_out::Way};
use crate::{
    figures::{Count, Span},
    lock::{LockAddr, LockMode, LockState},
    sleeper::Awaited,
    task::{StuckClass, Tid},
};

/// Locks that get a paragraph; the rest is counted.
const SHOWN: usize = 10;

/// Writes the report for a person: a paragraph for each CPU that does not go on and each
/// stalled lock, the worst first, then one for what else tasks hang on, or one line if there
/// is nothing to tell.
///
/// # Errors
/// When `out` does.
pub fn write_report(out: &mut dyn Write, report: &Report, style: Style) -> io::Result<()> {
    let stalled: Vec<&Lock> = report.stalled_locks().collect();
    for lockup in report.locked_cpus() {
        write_lockup(out, report, lockup, style)?;
        writeln!(out)?;
    }
    for deadlock in report.deadlocks() {
        write_deadlock(out, report, deadlock, style)?;
        writeln!(out)?;
    }
    match stalled.len() {
        0 if report.has_stall() => {}
        0 => no_stall(report).write(out, style, 0)?,
        1 => {}
        _ => {
            summary(&stalled).write(out, style, 0)?;
            writeln!(out)?;
        }
    }
    for (number, lock) in stalled.iter().take(SHOWN).enumerate() {
        if number > 0 {
            writeln!(out)?;
        }
        write_lock(out, report, lock, style)?;
    }
    if let Some(rest) = stalled.get(SHOWN..).filter(|rest| !rest.is_empty()) {
        writeln!(out)?;
        let blocked = Count::of(blocked_on(rest)).nouns("task", "tasks");
        let locks = Count::of(rest.len());
        let more = format!("… and {locks} more, {blocked} blocked (use --format json)");
        Text::plain(more).write(out, style, 0)?;
    }
    let hangs: Vec<&Hung> = elsewhere(report).collect();
    for (number, hung) in hangs.iter().take(SHOWN).enumerate() {
        if number > 0 || !stalled.is_empty() {
            writeln!(out)?;
        }
        write_hung(out, report, hung, style)?;
    }
    if let Some(rest) = hangs.get(SHOWN..).filter(|rest| !rest.is_empty()) {
        writeln!(out)?;
        let tasks = rest.iter().map(|hung| hung.tasks.len()).sum();
        let tasks = Count::of(tasks).nouns("task", "tasks");
        let more = format!("… and {tasks} more that hang on other things (use --format json)");
        Text::plain(more).write(out, style, 0)?;
    }
    if !stalled.is_empty() || !hangs.is_empty() {
        writeln!(out)?;
    }
    if report.has_stall() {
        checked(report).write(out, style, 0)?;
    }
    if report.coverage.looks == Some(1) && !(stalled.is_empty() && hangs.is_empty()) {
        Text::new()
            .with(
                Tone::Doubt,
                "one look only: what is said here may be passing",
            )
            .write(out, style, 0)?;
    }
    for line in &report.coverage.degraded {
        Text::new()
            .with(Tone::Doubt, "not known: ")
            .with(Tone::Plain, line)
            .write(out, style, 0)?;
    }
    Ok(())
}

/// The groups of hanging tasks that no paragraph of a stalled lock tells of: that of the
/// lock they wait for, or those of the locks that all of them hold.
pub fn elsewhere(report: &Report) -> impl Iterator<Item = &Hung> {
    let stalled: BTreeSet<LockAddr> = report.stalled_locks().map(|lock| lock.at).collect();
    let holders: BTreeSet<Tid> = report
        .stalled_locks()
        .flat_map(Lock::known_holders)
        .map(|holder| holder.tid)
        .collect();
    report.hangs().filter(move |hung| match hung.awaited {
        Awaited::Lock(address) => !stalled.contains(&address),
        _ => !hung.tasks.iter().all(|task| holders.contains(&task.tid)),
    })
}

/// Writes what there is to say of the stall of one lock: the circles that its waiters wait
/// for, and its paragraph.
///
/// # Errors
/// When `out` does.
pub fn write_stalled(
    out: &mut dyn Write,
    report: &Report,
    lock: &Lock,
    style: Style,
) -> io::Result<()> {
    for deadlock in report.deadlocks_on(lock) {
        write_deadlock(out, report, deadlock, style)?;
    }
    write_lock(out, report, lock, style)
}

/// Writes what there is to say of hanging tasks or a CPU that hangs.
///
/// # Errors
/// When `out` does.
pub fn write_finding(
    out: &mut dyn Write,
    report: &Report,
    finding: &Finding,
    style: Style,
) -> io::Result<()> {
    if let Some(lockup) = report.lockup_of(finding) {
        return write_lockup(out, report, lockup, style);
    }
    match report.hung_of(finding) {
        Some(hung) => write_hung(out, report, hung, style),
        None => Text::plain(&finding.sentence).write(out, style, 0),
    }
}

/// Writes the paragraph of one lock.
///
/// # Errors
/// When `out` does.
pub fn write_lock(
    out: &mut dyn Write,
    report: &Report,
    lock: &Lock,
    style: Style,
) -> io::Result<()> {
    heading(lock).write(out, style, 0)?;
    let mut field = |label, paragraphs: &[Text]| write_field(&mut *out, style, label, paragraphs);
    field("held by", &holders::lines(report, lock, style))?;
    field("before", &before::lines(lock))?;
    field("queue", &[queue::line(lock)])?;
    field("hung", &hung::lines_of_lock(report, lock))?;
    field("why", &why::lines(report, lock))?;
    field("root", &roots::lines(report, lock))?;
    field("next", &[next(lock)])?;
    field("ways out", &ways_out(report, lock))
}

fn next(lock: &Lock) -> Text {
    match &lock.next {
        Some(next) => Text::plain(&next.sentence),
        None if lock.blocked().next().is_none() => Text::new(),
        None => Text::new().with(Tone::Doubt, "not known"),
    }
}

fn way_out(way: &WayOut) -> Text {
    Text::plain(format!("{}; risk: {}", way.sentence, way.risk))
}

/// What a person could do; nothing here is done. What the paragraph of a deadlock above has
/// told already is only named.
fn ways_out(report: &Report, lock: &Lock) -> Vec<Text> {
    let deadlocks = report.deadlocks_on(lock);
    let told: Vec<&WayOut> = deadlocks
        .flat_map(|it| deadlock::told(report, it))
        .collect();
    let forced = match lock.blocked().count() {
        0 => return Vec::new(),
        1 => "the only waiter is not killable; nothing here is safe to force".to_owned(),
        waiters => format!(
            "none of {} waiters is killable; nothing here is safe to force",
            Count::of(waiters)
        ),
    };
    match lock.ways_out.as_slice() {
        [] => vec![Text::plain(forced)],
        [way] if way.way == Way::KillWaiters => {
            let WayOut { sentence, risk, .. } = way;
            let words = format!("{sentence} (risk: {risk}); nothing here is safe to force");
            vec![Text::plain(words)]
        }
        ways => ways
            .iter()
            .map(|way| match way.way {
                Way::AbortConnection if told.contains(&way) => {
                    Text::plain("abort the connection, as above")
                }
                _ => way_out(way),
            })
            .collect(),
    }
}

/// `mmap_lock of filebeat[4424]    read-held · 1,469 tasks blocked · oldest 6m12s`
fn heading(lock: &Lock) -> Text {
    let (state, tone) = match lock.state {
        LockState::ReadHeld => ("read-held", Tone::Plain),
        LockState::WriteHeld if !lock.kind.has_readers() => ("held", Tone::Plain),
        LockState::WriteHeld => ("write-held", Tone::Plain),
        LockState::Free => ("free", Tone::Plain),
        LockState::Inconsistent => ("INCONSISTENT", Tone::Alarm),
    };
    let blocked = Count::of(lock.blocked().count()).nouns("task", "tasks");
    let oldest = lock.blocked().map(|waiter| waiter.wait_ns).max();
    let mut text = Text::new()
        .with(Tone::Strong, &lock.name)
        .with(Tone::Plain, "    ")
        .with(tone, state)
        .with(Tone::Plain, format!("{GLUE}· "))
        .with(Tone::Alarm, glued(&format!("{blocked} blocked")));
    if let Some(oldest) = oldest {
        text.push(Tone::Plain, format!("{GLUE}· oldest{GLUE}{}", Span(oldest)));
    }
    text
}

fn no_stall(report: &Report) -> Text {
    Text::plain(format!(
        "no task has waited for a lock longer than {} (checked {}, {})",
        Span(report.threshold),
        Count::from(report.coverage.tasks).nouns("task", "tasks"),
        Count::of(report.short_waits()).nouns("short wait", "short waits"),
    ))
}

fn summary(stalled: &[&Lock]) -> Text {
    Text::new().with(
        Tone::Strong,
        format!(
            "{} locks with stalls, {} blocked",
            Count::of(stalled.len()),
            Count::of(blocked_on(stalled)).nouns("task", "tasks")
        ),
    )
}

/// Distinct tasks queued on these locks.
fn blocked_on(locks: &[&Lock]) -> usize {
    locks
        .iter()
        .flat_map(|lock| lock.blocked())
        .map(|waiter| waiter.tid)
        .collect::<BTreeSet<Tid>>()
        .len()
}

/// `checked 1,552 tasks in 96ms; 12 waits below 1s on other locks not shown`
fn checked(report: &Report) -> Text {
    let mut words = format!(
        "checked {} in {}",
        Count::from(report.coverage.tasks).nouns("task", "tasks"),
        Span(report.duration_ns)
    );
    let short: usize = report
        .locks
        .iter()
        .filter(|lock| !lock.is_stalled(report.threshold))
        .map(|lock| lock.waiters.len())
        .sum();
    if short > 0 {
        words.push_str(&format!(
            "; {} below {} on other locks not shown",
            Count::of(short).nouns("wait", "waits"),
            Span(report.threshold)
        ));
    }
    Text::new().with(Tone::Dim, words)
}

/// Why a task does not go on, in words.
pub fn stuck_words(class: StuckClass) -> &'static str {
    class.words()
}

/// `comm[tid]`
fn named(comm: &str, tid: Tid) -> String {
    format!("{comm}[{tid}]")
}

fn mode(mode: LockMode) -> &'static str {
    match mode {
        LockMode::Read => "read",
        LockMode::Write => "write",
    }
}

/// The text with spaces at which no line is broken.
fn glued(text: &str) -> String {
    text.replace(' ', "\u{a0}")
}

#[cfg(test)]
mod tests;
