//! The `queue` line: who is first, and who the rest are.

use std::{cmp::Reverse, collections::BTreeMap};

use super::{GLUE, Text, Tone, glued, named};
use crate::{
    figures::{Count, Span},
    lock::LockMode,
    report::{Lock, Waiter},
};

/// Up to this many waiters are named one by one.
const ONE_BY_ONE: usize = 3;
/// Names and callers that are shown of a group.
const SHOWN: usize = 3;

pub(super) fn line(lock: &Lock) -> Text {
    let queue: Vec<&Waiter> = lock.blocked().collect();
    let mut parts = Vec::new();
    match queue.as_slice() {
        [] => {}
        few if few.len() <= ONE_BY_ONE => parts.extend(few.iter().map(|waiter| one(lock, waiter))),
        [first, rest @ ..] => {
            parts.push(one(lock, first));
            let only = |mode| rest.iter().all(|waiter| waiter.mode == mode);
            let range = match (rest.first(), rest.last()) {
                (Some(from), Some(to)) => format!("#{}–#{}", from.position, to.position),
                _ => String::new(),
            };
            if !lock.kind.has_readers() {
                parts.push(group(&range, rest));
            } else if only(LockMode::Read) {
                parts.push(group(&format!("{range} readers"), rest));
            } else if only(LockMode::Write) {
                parts.push(group(&format!("{range} writers"), rest));
            } else {
                for (mode, many) in [(LockMode::Write, "writers"), (LockMode::Read, "readers")] {
                    let some: Vec<&Waiter> =
                        rest.iter().filter(|w| w.mode == mode).copied().collect();
                    parts.push(match some.as_slice() {
                        [waiter] => one(lock, waiter),
                        some => group(&format!("{} {many}", Count::of(some.len())), some),
                    });
                }
            }
        }
    }
    if let Some(part) = granted(lock) {
        parts.push(part);
    }
    if !lock.spinners.is_empty() {
        parts.push(Text::plain(glued(
            &Count::of(lock.spinners.len()).nouns("task spins", "tasks spin"),
        )));
    }
    let mut line = Text::new();
    for (number, part) in parts.into_iter().enumerate() {
        if number > 0 {
            line.push(Tone::Plain, format!("{GLUE}{GLUE}·  "));
        }
        line.append(part);
    }
    line
}

/// `#1 filebeat[4431] WRITE 6m12s in vm_mmap_pgoff`
fn one(lock: &Lock, waiter: &Waiter) -> Text {
    let (mode, tone) = match waiter.mode {
        _ if !lock.kind.has_readers() => (String::new(), Tone::Plain),
        LockMode::Read => (format!("read{GLUE}"), Tone::Plain),
        LockMode::Write => (format!("WRITE{GLUE}"), Tone::Strong),
    };
    let mut text = Text::plain(format!(
        "#{}{GLUE}{}{GLUE}",
        waiter.position,
        glued(&named(&waiter.comm, waiter.tid))
    ));
    text.push(tone, mode);
    text.push(Tone::Plain, Span(waiter.wait_ns).to_string());
    if let Some(caller) = &waiter.caller {
        text.push(Tone::Dim, format!(" in{GLUE}{caller}"));
    }
    text
}

/// `#2–#1469 readers: top ×31, ps ×12, sh and 5 other names  in proc_pid_cmdline_read`
fn group(what: &str, waiters: &[&Waiter]) -> Text {
    let mut text = Text::plain(format!("{}: ", glued(what)));
    text.push(
        Tone::Plain,
        tally(waiters.iter().map(|w| w.comm.as_str()), true, "name"),
    );
    let callers = waiters.iter().filter_map(|w| w.caller.as_deref());
    if callers.clone().next().is_some() {
        let all_known = callers.clone().count() == waiters.len();
        let one = callers
            .clone()
            .all(|caller| Some(caller) == waiters[0].caller.as_deref());
        text.push(Tone::Dim, format!("  in{GLUE}"));
        text.push(Tone::Dim, tally(callers, !(one && all_known), "function"));
    }
    text
}

/// The most frequent names: `top ×31, ps ×12, sh and 5 other names`; `what` they are, as one.
fn tally<'a>(names: impl Iterator<Item = &'a str>, with_counts: bool, what: &str) -> String {
    // By name: place of the first in the queue, and how many.
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (place, name) in names.enumerate() {
        counts.entry(name).or_insert((place, 0)).1 += 1;
    }
    let mut counts: Vec<(&str, (usize, usize))> = counts.into_iter().collect();
    counts.sort_by_key(|&(_, (place, count))| (Reverse(count), place));
    let shown: Vec<String> = counts
        .iter()
        .take(SHOWN)
        .map(|&(name, (_, count))| {
            if with_counts && count > 1 {
                format!("{}{GLUE}×{}", glued(name), Count::of(count))
            } else {
                glued(name)
            }
        })
        .collect();
    let others = match counts.len().saturating_sub(SHOWN) {
        0 => String::new(),
        1 => format!(" and {}", glued(&format!("1 other {what}"))),
        more => {
            let others = format!("{} other {what}s", Count::of(more));
            format!(" and {}", glued(&others))
        }
    };
    shown.join(", ") + &others
}

/// Granted waiters that are not among the holders shown above.
fn granted(lock: &Lock) -> Option<Text> {
    let granted: Vec<String> = lock
        .waiters
        .iter()
        .filter(|waiter| waiter.granted)
        .filter(|waiter| lock.known_holders().all(|holder| holder.tid != waiter.tid))
        .map(|waiter| glued(&named(&waiter.comm, waiter.tid)))
        .collect();
    if granted.is_empty() {
        return None;
    }
    let more = granted.len().saturating_sub(SHOWN);
    let mut names: Vec<String> = granted.into_iter().take(SHOWN).collect();
    if more > 0 {
        names.push(format!("… {} more", Count::of(more)));
    }
    Some(Text::plain(format!(
        "granted, not yet run: {}",
        names.join(", ")
    )))
}
