//! The paragraph of a deadlock: who waits for whom, and on what that rests.

use std::io::{self, Write};

use super::{Style, Text, Tone, named, write_field};
use crate::{
    graph::next::GRANTED_AT_ONCE,
    lock::{LockKind, LockMode, LockState},
    report::{Finding, Lock, Report, Waiter, WayOut, ways_out::Way},
};

/// Writes the paragraph of one deadlock.
///
/// # Errors
/// When `out` does.
pub(super) fn write_deadlock(
    out: &mut dyn Write,
    report: &Report,
    finding: &Finding,
    style: Style,
) -> io::Result<()> {
    Text::new()
        .with(Tone::Alarm, "DEADLOCK")
        .with(Tone::Strong, format!("    {}", finding.sentence))
        .write(out, style, 0)?;
    let links: Vec<Text> = finding.evidence.iter().map(Text::plain).collect();
    write_field(out, style, "circle", &links)?;
    // What costs least comes first.
    let mut ways_out: Vec<Text> = writers(report, finding).collect();
    ways_out.extend(told(report, finding).into_iter().map(super::way_out));
    ways_out.extend(killable(report, finding));
    if ways_out.is_empty() {
        ways_out.push(Text::plain(
            "no task of the circle can be killed out of its wait",
        ));
    }
    write_field(out, style, "ways out", &ways_out)
}

/// Queued writers that keep a reader of the circle from a lock that is only read-held, and
/// whose waits a fatal signal ends: without them the reader gets the lock.
fn writers<'a>(report: &'a Report, finding: &'a Finding) -> impl Iterator<Item = Text> + 'a {
    let on_it = |lock: &&Lock| finding.locks.contains(&lock.id);
    let locks = report.locks.iter().filter(on_it);
    locks.filter_map(|lock| {
        let writer = only_writer_before(lock, finding)?;
        Some(Text::plain(format!(
            "killing writer {} lets the readers behind it through and opens the circle; risk: a \
             killed process loses what it was doing",
            named(&writer.comm, writer.tid)
        )))
    })
}

/// The killable writer in front of the queue behind which a reader of the circle stands, with
/// no other writer between them. A reader comes through only among those that are let in at
/// once: the reader that holds the lock stays on the circle and wakes nobody after them.
fn only_writer_before<'a>(lock: &'a Lock, finding: &Finding) -> Option<&'a Waiter> {
    let by_arrival = lock.kind == LockKind::Rwsem && !lock.by_priority;
    let mut queue = lock.blocked();
    let writer = queue.next()?;
    let is_way = by_arrival
        && lock.state == LockState::ReadHeld
        && writer.mode == LockMode::Write
        && writer.killable
        && !finding.tasks.contains(&writer.tid);
    let mut readers = queue
        .take_while(|waiter| waiter.mode == LockMode::Read)
        .take(GRANTED_AT_ONCE);
    (is_way && readers.any(|reader| finding.tasks.contains(&reader.tid))).then_some(writer)
}

/// Members of the circle whose waits a fatal signal ends: that opens it.
fn killable(report: &Report, finding: &Finding) -> Option<Text> {
    let waiters = report.locks.iter().flat_map(Lock::blocked);
    let mut names: Vec<String> = waiters
        .filter(|waiter| waiter.killable && finding.tasks.contains(&waiter.tid))
        .map(|waiter| named(&waiter.comm, waiter.tid))
        .collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        return None;
    }
    Some(Text::plain(format!(
        "killing {} opens the circle; risk: a killed process loses what it was doing",
        names.join(" or ")
    )))
}

/// The ways that open the circle, from its locks: killing others that wait for them does
/// not.
pub(super) fn told<'a>(report: &'a Report, finding: &Finding) -> Vec<&'a WayOut> {
    let on_it = |lock: &&Lock| finding.locks.contains(&lock.id);
    let mut ways: Vec<&WayOut> = Vec::new();
    for way in report
        .locks
        .iter()
        .filter(on_it)
        .flat_map(|it| &it.ways_out)
    {
        if way.way != Way::KillWaiters && !ways.contains(&way) {
            ways.push(way);
        }
    }
    ways
}
