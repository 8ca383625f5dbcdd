//! What the kernel's own detectors of hanging tasks and CPUs print, in every spelling from
//! 5.10 to 7.3.
//!
//! A line holds names of tasks, and those are bytes that anybody may choose: 15 of them, too
//! few for any of the words below that part a line. So each line is taken apart from its
//! ends, and what is left over is the name.

use crate::{
    kernel_log::{LoggedTask, Said},
    task::{Nanos, Tid},
};

const SECOND: u64 = 1_000_000_000;

/// A record of /dev/kmsg that the kernel itself made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// When, by the log's own clock (`local_clock()`), in µs.
    pub time_us: u64,
    /// Its text, as the device has it: what cannot be printed, and `\`, as `\x1b`.
    pub text: &'a [u8],
}

/// Takes a record of /dev/kmsg apart: `prio,seq,time,flags[,key=value…];text`, then lines
/// with a dictionary, which begin with a space (Documentation/ABI/testing/dev-kmsg).
///
/// `None` for what user space wrote (its facility is never the kernel's: `devkmsg_write`,
/// kernel/printk/printk.c), and for what is no record.
pub fn record(bytes: &[u8]) -> Option<Record<'_>> {
    let end = bytes.iter().position(|&byte| byte == b'\n');
    let line = &bytes[..end.unwrap_or(bytes.len())];
    let semicolon = line.iter().position(|&byte| byte == b';')?;
    let head = std::str::from_utf8(&line[..semicolon]).ok()?;
    let mut fields = head.split(',');
    let priority: u32 = number(fields.next()?)?;
    let _sequence: u64 = number(fields.next()?)?;
    let time_us = number(fields.next()?)?;
    let _flags = fields.next()?;
    let is_by_kernel = priority >> 3 == 0;
    is_by_kernel.then_some(Record {
        time_us,
        text: &line[semicolon + 1..],
    })
}

/// What a record's text says of a hanging task or CPU; `None` if it says nothing of that.
pub fn said(text: &[u8]) -> Option<Said> {
    // The texts as the kernel spells them (kernel/hung_task.c, kernel/watchdog.c,
    // kernel/watchdog_hld.c); the parts before the first colon come from `pr_fmt`.
    const HUNG: &[u8] = b"INFO: task ";
    const SOFT: &[u8] = b"watchdog: BUG: soft lockup - CPU#";
    const WATCHDOG: &[u8] = b"watchdog: ";
    const NMI_WATCHDOG: &[u8] = b"NMI watchdog: ";
    const SUPPRESSED: &[u8] = b"Future hung task reports are suppressed";

    // Most lines end here: nothing is copied of them.
    if let Some(rest) = text.strip_prefix(HUNG) {
        let rest = unescaped(rest);
        hung(&rest).or_else(|| blocker(&rest))
    } else if let Some(rest) = text.strip_prefix(SOFT) {
        soft(&unescaped(rest))
    } else if let Some(rest) = text.strip_prefix(NMI_WATCHDOG) {
        hard(rest)
    } else if let Some(rest) = text.strip_prefix(WATCHDOG) {
        hard(rest)
    } else if text.starts_with(SUPPRESSED) {
        Some(Said::HungTasksSuppressed)
    } else {
        None
    }
}

/// `C:P blocked for more than N seconds.`, or `blocked in I/O wait for more than` (7.3+).
fn hung(rest: &str) -> Option<Said> {
    let rest = rest.strip_suffix(" seconds.")?;
    let (rest, seconds) = rest.rsplit_once(" for more than ")?;
    let (who, io_wait) = match rest.strip_suffix(" blocked in I/O wait") {
        Some(who) => (who, true),
        None => (rest.strip_suffix(" blocked")?, false),
    };
    Some(Said::HungTask {
        task: task(who)?,
        io_wait,
        longer_than: seconds_of(seconds)?,
    })
}

/// Who is said to have what a hung task waits for (`debug_show_blocker`, 6.16+).
fn blocker(rest: &str) -> Option<Said> {
    const UNKNOWN: [(&str, &str); 3] = [
        (
            "mutex",
            " is blocked on a mutex, but the owner is not found.",
        ),
        (
            "semaphore",
            " is blocked on a semaphore, but the last holder is not found.",
        ),
        (
            "rw-semaphore",
            " is blocked on an rw-semaphore, but the owner is not found.",
        ),
    ];
    for (lock, words) in UNKNOWN {
        if let Some(who) = rest.strip_suffix(words) {
            return said_of_blocker(who, lock, None, false);
        }
    }
    if let Some((who, owner)) = rest.split_once(" is blocked on a mutex likely owned by task ") {
        return said_of_blocker(who, "mutex", Some(owner.strip_suffix('.')?), false);
    }
    if let Some((who, owner)) = rest.split_once(" blocked on a semaphore likely last held by task ")
    {
        return said_of_blocker(who, "semaphore", Some(owner), false);
    }
    let (who, owner) = rest.split_once(" blocked on an rw-semaphore likely owned by task ")?;
    let (who, _) = mode(who)?;
    let (owner, as_reader) = mode(owner)?;
    said_of_blocker(who, "rw-semaphore", Some(owner), as_reader)
}

fn said_of_blocker(who: &str, lock: &str, owner: Option<&str>, as_reader: bool) -> Option<Said> {
    let owner = match owner {
        Some(owner) => Some(task(owner)?),
        None => None,
    };
    Some(Said::Blocker {
        task: task(who)?,
        lock: lock.to_owned(),
        owner,
        as_reader,
    })
}

/// A task with ` <reader>` or ` <writer>` behind it; `true` for the reader.
fn mode(text: &str) -> Option<(&str, bool)> {
    match text.strip_suffix(" <reader>") {
        Some(task) => Some((task, true)),
        None => Some((text.strip_suffix(" <writer>")?, false)),
    }
}

/// `N stuck for Ns! [C:P]`
fn soft(rest: &str) -> Option<Said> {
    let (cpu, rest) = rest.split_once(" stuck for ")?;
    let (seconds, rest) = rest.split_once("s! [")?;
    Some(Said::SoftLockup {
        cpu: number(cpu)?,
        stuck: seconds_of(seconds)?,
        task: task(rest.strip_suffix(']')?)?,
    })
}

/// `Watchdog detected hard LOCKUP on cpu N`, from 6.18 on with `CPUn: ` before it: the one
/// that saw it.
fn hard(rest: &[u8]) -> Option<Said> {
    const DETECTED: &str = "Watchdog detected hard LOCKUP on cpu ";
    let rest = std::str::from_utf8(rest).ok()?;
    let (seen_by, cpu) = match rest.strip_prefix(DETECTED) {
        Some(cpu) => (None, cpu),
        None => {
            let (by, rest) = rest.strip_prefix("CPU")?.split_once(": ")?;
            (Some(number(by)?), rest.strip_prefix(DETECTED)?)
        }
    };
    Some(Said::HardLockup {
        cpu: number(cpu)?,
        seen_by,
    })
}

/// `comm:pid`; the name may have colons and anything else.
fn task(text: &str) -> Option<LoggedTask> {
    let (comm, tid) = text.rsplit_once(':')?;
    Some(LoggedTask {
        tid: Tid(number(tid)?),
        comm: comm.to_owned(),
    })
}

fn seconds_of(text: &str) -> Option<Nanos> {
    let seconds: u64 = number(text)?;
    Some(Nanos(seconds.checked_mul(SECOND)?))
}

/// Digits and nothing else: `parse` would take a sign too.
fn number<N: std::str::FromStr>(text: &str) -> Option<N> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

/// The text without the device's escapes (`\x1b`; `append_char` in kernel/printk/printk.c).
/// Bytes that are no UTF-8, and control characters, are replaced: nobody wants to print them.
fn unescaped(text: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        let escaped = match rest {
            [b'\\', b'x', high, low, ..] => hex(*high).zip(hex(*low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                bytes.push(high << 4 | low);
                rest = &rest[4..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes)
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

fn hex(digit: u8) -> Option<u8> {
    (digit as char)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests;
