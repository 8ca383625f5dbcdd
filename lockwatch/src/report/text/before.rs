//! The lines under `before`: who had the lock earlier, and let go.

use super::{Text, Tone, mode, named};
use crate::{
    figures::{Count, Span},
    report::{Lock, RecentHold},
    task::Nanos,
};

/// Holds that are told, the last ones.
const TOLD: usize = 3;

pub(super) fn lines(lock: &Lock) -> Vec<Text> {
    let oldest = lock.waiters.iter().map(|waiter| waiter.wait_ns).max();
    let oldest = oldest.unwrap_or_default();
    let holds = &lock.recent_holds;
    let mut lines: Vec<Text> = holds
        .iter()
        .take(TOLD)
        .map(|hold| line(hold, oldest))
        .collect();
    if let Some(more) = holds.len().checked_sub(TOLD).filter(|&more| more > 0) {
        let holds = Count::of(more).nouns("long hold", "long holds");
        lines.push(Text::new().with(Tone::Dim, format!("… and {holds} earlier")));
    }
    lines
}

/// `held by filebeat[4442] read for 1.2s until 300ms before the first wait, released in …`
fn line(hold: &RecentHold, oldest: Nanos) -> Text {
    let until = match hold.ended_ago_ns.0.checked_sub(oldest.0) {
        Some(before) => format!("{} before the first wait", Span(Nanos(before))),
        None => {
            let since = Nanos(oldest.0 - hold.ended_ago_ns.0);
            format!("{} after the first wait began", Span(since))
        }
    };
    let mut text = Text::plain("held by ").with(Tone::Strong, named(&hold.comm, hold.tid));
    text.push(
        Tone::Plain,
        format!(
            " {} for {} until {until}",
            mode(hold.mode),
            Span(hold.held_ns)
        ),
    );
    if let Some(function) = &hold.released_in {
        text.push(Tone::Plain, format!(", released in {function}"));
    }
    text
}
