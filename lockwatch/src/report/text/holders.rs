//! The lines under `held by`: who, on what evidence, and what keeps it.

use super::{
    GLUE, Text, Tone, glued, mode, named,
    page::{Style, TEXT_COLUMN},
    stack, stuck_words,
};
use crate::{
    figures::{Count, Span},
    lock::{Confidence, EvidenceKind, LockKind, LockMode, LockState},
    report::{Evidence, Holder, Lock, Report},
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
    let confidence = match holder.confidence {
        Confidence::Certain => "certain",
        Confidence::Likely => "likely",
        Confidence::Possible => "possible",
    };
    let tone = match holder.confidence {
        Confidence::Certain => Tone::Strong,
        Confidence::Likely | Confidence::Possible => Tone::Doubt,
    };
    text.push(Tone::Plain, " · ");
    text.push(tone, confidence);
    let mut reasons: Vec<String> = Vec::new();
    for evidence in &holder.evidence {
        let reason = reason(evidence);
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

/// Why a holder is named, in plain words.
fn reason(evidence: &Evidence) -> String {
    let frame = evidence.frame.as_deref().map(stack::function);
    let words = match (evidence.kind, frame) {
        (EvidenceKind::WriterOwner, _) => "the lock's owner field names it".to_owned(),
        (EvidenceKind::ReaderOwner, _) => {
            "the lock's owner field names it, and readers of this kernel clear it".to_owned()
        }
        (EvidenceKind::Granted, _) => "granted the lock in the queue, has not run yet".to_owned(),
        (EvidenceKind::TracedAcquire, _) => "it was seen taking the lock".to_owned(),
        (EvidenceKind::TracedInPart, _) => {
            "it was seen taking the lock, and its release may have been missed".to_owned()
        }
        (EvidenceKind::FaultFlags, _) => "its page fault holds the lock".to_owned(),
        (EvidenceKind::HoldFrame, Some(frame)) => format!("{frame} holds this lock there"),
        (EvidenceKind::LearnedFrame, Some(frame)) => match &evidence.value {
            Some(kernels) => format!("{frame} was seen holding this lock there, on {kernels}"),
            None => format!("{frame} was seen holding this lock there"),
        },
        (EvidenceKind::LearnedFrame, None) => "it is where tasks hold this lock".to_owned(),
        (EvidenceKind::HoldFrame, None) => "it is in code that holds this lock".to_owned(),
        (EvidenceKind::LastHolder, _) => "the last one that took it".to_owned(),
        (EvidenceKind::LockWord, Some(frame)) => {
            format!("the lock's address is in its frame of {frame}")
        }
        (EvidenceKind::LockWord, None) => "the lock's address is on its stack".to_owned(),
        (EvidenceKind::ObjectWord, Some(frame)) => {
            format!("the address of what the lock protects is in its frame of {frame}")
        }
        (EvidenceKind::ObjectWord, None) => {
            "the address of what the lock protects is on its stack".to_owned()
        }
    };
    match (evidence.kind, &evidence.value) {
        // The owner word adds nothing for a person; where it was learned is told above.
        (
            EvidenceKind::WriterOwner
            | EvidenceKind::ReaderOwner
            | EvidenceKind::LastHolder
            | EvidenceKind::LearnedFrame,
            _,
        )
        | (_, None) => words,
        (EvidenceKind::FaultFlags, Some(flags)) => format!("{words}, flags {flags}"),
        (_, Some(value)) => format!("{words}: {value}"),
    }
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
        (class, None) => text.push(Tone::Plain, stuck_words(class)),
    }
    text
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
