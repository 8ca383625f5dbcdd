//! The lines under `held by`: who, on what evidence, and what keeps it.

use super::{
    GLUE, Text, Tone, daemons, glued, mode, named,
    page::{Style, TEXT_COLUMN},
    stack, stuck_words,
};
use crate::{
    figures::{Count, Span},
    lock::{Confidence, LockKind, LockMode, LockState},
    report::{BlockDevice, Holder, Lock, Report},
    task::StuckClass,
};

/// Holders that are described in full.
const DESCRIBED: usize = 3;
/// Possible holders that are named.
const NAMED: usize = 4;
/// Reasons that are given for one holder.
const REASONS: usize = 2;

pub(super) fn lines(report: &Report, lock: &Lock, style: Style) -> Vec<Text> {
    let mut lines = Vec::new();
    let known: Vec<&Holder> = lock.known_holders().collect();
    for holder in known.iter().take(DESCRIBED) {
        lines.push(who(report, lock, holder, known.len()));
        lines.push(doing(report, holder));
        let room = style.columns().saturating_sub(TEXT_COLUMN);
        let frames = holder
            .stack
            .and_then(|index| report.stacks.get(index as usize));
        lines.extend(
            frames
                .and_then(|frames| stack::one_line(frames, room))
                .map(|line| Text::new().with(Tone::Dim, line)),
        );
    }
    if let Some(more) = known.len().checked_sub(DESCRIBED).filter(|&more| more > 0) {
        let holders = Count::of(more).nouns("holder", "holders");
        lines.push(Text::plain(format!("… and {holders} more, as sure")));
    }
    match &lock.note {
        Some(note) => lines.push(Text::new().with(Tone::Doubt, note)),
        None => lines.extend(unknown(lock, known.len())),
    }
    lines.extend(possible(lock));
    lines
}

/// `filebeat[4442]  read · certain (why; 1 of 1 readers, in two looks)`
fn who(report: &Report, lock: &Lock, holder: &Holder, known: usize) -> Text {
    let mut text = Text::new().with(Tone::Strong, named(&holder.comm, holder.tid));
    if lock.kind.has_readers() {
        text.push(Tone::Plain, format!("  {}", mode(holder.mode)));
    }
    // A lower bound that only repeats how long it has been off the CPU tells nothing new.
    let since = holder.stuck.since_ns.unwrap_or_default();
    let lower_bound = holder.held_is_lower_bound.unwrap_or_default();
    if let Some(held) = holder.held_ns
        && (!lower_bound || held > since)
    {
        let least = if lower_bound { "at least " } else { "" };
        text.push(Tone::Plain, format!(" for {least}{}", Span(held)));
    }
    let tone = match holder.confidence {
        Confidence::Certain => Tone::Strong,
        Confidence::Likely | Confidence::Possible => Tone::Doubt,
    };
    text.push(Tone::Plain, " · ");
    text.push(tone, holder.confidence.word());
    let mut reasons: Vec<String> = Vec::new();
    for evidence in &holder.evidence {
        let reason = evidence.words();
        if reasons.len() < REASONS && !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    let looks = match report.coverage.looks {
        Some(1) => ", in one look only".to_owned(),
        Some(2) => ", in two looks".to_owned(),
        Some(looks) => format!(", in {looks} looks"),
        None => String::new(),
    };
    let closed = match (holder.mode, lock.reader_count) {
        (LockMode::Read, Some(count)) => {
            format!("; {} of {} readers", Count::of(known), Count::from(count))
        }
        _ => String::new(),
    };
    text.push(
        Tone::Plain,
        format!(" ({}{closed}{looks})", reasons.join("; ")),
    );
    text
}

/// `D for 6m13s in blk_mq_get_tag: waiting for block I/O`
fn doing(report: &Report, holder: &Holder) -> Text {
    let mut text = Text::new().with(Tone::Strong, holder.state.to_string());
    if let Some(since) = holder.stuck.since_ns {
        text.push(Tone::Plain, format!(" for {}", Span(since)));
    }
    if let Some(frame) = &holder.stuck.frame {
        text.push(Tone::Plain, format!(" in {}", stack::function(frame)));
    }
    text.push(Tone::Plain, ": ");
    match (holder.stuck.class, report.lock_awaited_by(holder.tid)) {
        (_, Some(lock)) => text.push(Tone::Plain, format!("waiting for {}", lock.name)),
        (StuckClass::Unknown, None) => {
            text.push(Tone::Doubt, stuck_words(StuckClass::Unknown));
        }
        (StuckClass::Fuse, None) => match daemons::awaited_by(report, holder.tid) {
            Some(daemon) => text.push(Tone::Plain, format!("waiting for an answer of {daemon}")),
            None => text.push(Tone::Plain, stuck_words(StuckClass::Fuse)),
        },
        (StuckClass::BlockIo, None) => {
            text.push(Tone::Plain, stuck_words(StuckClass::BlockIo));
            if let Some(device) = &holder.stuck.device {
                text.push(Tone::Plain, format!(" ({})", device_words(device)));
            }
        }
        (StuckClass::Runnable, None) => {
            text.push(Tone::Plain, stuck_words(StuckClass::Runnable));
            // Which may have used up its share.
            if let Some(cgroup) = holder.cgroup.as_deref().filter(|&path| path != "/") {
                text.push(Tone::Plain, format!(" (control group {cgroup})"));
            }
        }
        (class, None) => text.push(Tone::Plain, stuck_words(class)),
    }
    text
}

/// `nvme0n1, 3 requests in flight`
pub(super) fn device_words(device: &BlockDevice) -> String {
    let in_flight = device.in_flight.map_or_else(String::new, |requests| {
        format!(
            ", {} in flight",
            Count(requests).nouns("request", "requests")
        )
    });
    format!("{}{in_flight}", device.name)
}

/// What the lock's words promise and no name was found for.
fn unknown(lock: &Lock, known: usize) -> Option<Text> {
    let words = match (lock.state, lock.reader_count) {
        (LockState::Free, _) => {
            if known > 0 {
                return None;
            }
            return Some(Text::plain("nobody"));
        }
        (LockState::ReadHeld, Some(count)) => {
            let missing = (count as usize).checked_sub(known).filter(|&n| n > 0)?;
            format!(
                "{} of {} readers unknown",
                Count::of(missing),
                Count::from(count)
            )
        }
        (LockState::ReadHeld, None) if known > 0 => "other readers unknown".to_owned(),
        (LockState::ReadHeld, None) => "unknown readers".to_owned(),
        _ if known > 0 => return None,
        (LockState::WriteHeld, _) => match lock.kind {
            LockKind::Semaphore => "unknown: a semaphore does not keep who took it".to_owned(),
            LockKind::PercpuRwsem => {
                "unknown writer: a per-CPU rwsem keeps its writer's name only until it has it"
                    .to_owned()
            }
            LockKind::Mutex | LockKind::RtMutex => {
                format!("unknown (owner word {})", glued(&lock.owner))
            }
            LockKind::Rwsem | LockKind::VmaLock | LockKind::Unknown => {
                format!("unknown writer (owner word {})", glued(&lock.owner))
            }
        },
        (LockState::Inconsistent, _) => "unknown".to_owned(),
    };
    Some(Text::new().with(Tone::Doubt, words))
}

/// `one of (possible): a[1] S in poll, b[2] …`
fn possible(lock: &Lock) -> Option<Text> {
    let possible: Vec<&Holder> = lock
        .holders
        .iter()
        .filter(|holder| holder.confidence == Confidence::Possible)
        .collect();
    if possible.is_empty() {
        return None;
    }
    let mut names: Vec<String> = possible
        .iter()
        .take(NAMED)
        .map(|holder| {
            let frame = holder.stuck.frame.as_deref().map(stack::function);
            let place = frame.map_or_else(String::new, |frame| format!("{GLUE}in{GLUE}{frame}"));
            format!(
                "{}{GLUE}{}{place}",
                named(&holder.comm, holder.tid),
                holder.state
            )
        })
        .collect();
    if possible.len() > NAMED {
        names.push(format!("… {} more", Count::of(possible.len() - NAMED)));
    }
    Some(
        Text::new()
            .with(
                Tone::Doubt,
                if possible.len() == 1 {
                    "possible: "
                } else {
                    "one of (possible): "
                },
            )
            .with(Tone::Plain, names.join(", ")),
    )
}
