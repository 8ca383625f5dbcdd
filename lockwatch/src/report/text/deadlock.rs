//! The paragraph of a deadlock: who waits for whom, and on what that rests.

use std::io::{self, Write};

use super::{Style, Text, Tone, named, write_field};
use crate::report::{Finding, Lock, Report, WayOut, ways_out::Way};

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
    let mut ways_out: Vec<Text> = ways_out(report, finding)
        .into_iter()
        .map(super::way_out)
        .collect();
    ways_out.extend(killable(report, finding));
    if ways_out.is_empty() {
        ways_out.push(Text::plain(
            "no task of the circle can be killed out of its wait",
        ));
    }
    write_field(out, style, "ways out", &ways_out)
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
fn ways_out<'a>(report: &'a Report, finding: &Finding) -> Vec<&'a WayOut> {
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
