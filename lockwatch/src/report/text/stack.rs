//! A stack in one line: `bt_get < blk_mq_get_tag < … < handle_mm_fault`.

use super::page::width;
pub(super) use crate::lock::function_of as function;

/// Functions that every sleeper has on top: they say nothing about why it sleeps.
const SCHEDULER: &[&str] = &[
    "__schedule",
    "context_switch",
    "io_schedule",
    "io_schedule_timeout",
    "preempt_schedule",
    "preempt_schedule_irq",
    "__cond_resched",
    "schedule",
];

/// Functions that every stack has at its end: they say nothing about where it came from.
const ENTRY: &[&str] = &[
    "do_page_fault",
    "do_syscall_64",
    "exc_page_fault",
    "page_fault",
    "ret_from_fork",
    "ret_from_fork_asm",
    "x64_sys_call",
];

const BETWEEN: &str = " < ";
const ELIDED: &str = "…";

fn is_scheduler(name: &str) -> bool {
    SCHEDULER.contains(&name) || name.starts_with("schedule_")
}

fn is_entry(name: &str) -> bool {
    ENTRY.contains(&name) || name.starts_with("entry_") || name.starts_with("asm_")
}

/// The stack, innermost first, the middle left out where it does not fit `room` columns.
/// Both ends are kept, the inner one first: it says why, the outer one says whence.
pub(super) fn one_line(frames: &[String], room: usize) -> Option<String> {
    let mut names: &[&str] = &frames.iter().map(|f| function(f)).collect::<Vec<_>>();
    while let [first, rest @ ..] = names
        && is_scheduler(first)
    {
        names = rest;
    }
    while let [rest @ .., last] = names
        && is_entry(last)
    {
        names = rest;
    }
    if names.is_empty() {
        return None;
    }
    let whole = names.join(BETWEEN);
    if width(&whole) <= room {
        return Some(whole);
    }
    // Takes names from both ends in turn as long as they fit.
    let (mut inner, mut outer) = (1, 0);
    let line = |inner: usize, outer: usize| {
        let mut shown = names[..inner].to_vec();
        if inner + outer < names.len() {
            shown.push(ELIDED);
        }
        shown.extend(&names[names.len() - outer..]);
        shown.join(BETWEEN)
    };
    loop {
        let grown = if inner <= outer && width(&line(inner + 1, outer)) <= room {
            (inner + 1, outer)
        } else if width(&line(inner, outer + 1)) <= room {
            (inner, outer + 1)
        } else if width(&line(inner + 1, outer)) <= room {
            (inner + 1, outer)
        } else {
            break;
        };
        (inner, outer) = grown;
        if inner + outer >= names.len() {
            break;
        }
    }
    Some(line(inner, outer))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| format!("{name}+0x1f")).collect()
    }

    #[test]
    fn scheduler_and_entry_are_left_out() {
        let stack = frames(&[
            "__schedule",
            "schedule",
            "schedule_timeout",
            "bt_get",
            "vfs_read",
            "do_syscall_64",
            "entry_SYSCALL_64_after_hwframe",
        ]);
        assert_eq!(one_line(&stack, 80).unwrap(), "bt_get < vfs_read");
        assert_eq!(one_line(&frames(&["__schedule", "schedule"]), 80), None);
        assert_eq!(one_line(&[], 80), None);
    }

    #[test]
    fn the_middle_goes_first() {
        let stack = frames(&["aaaa", "bbbb", "cccc", "dddd", "eeee", "ffff"]);
        assert_eq!(
            one_line(&stack, 39).unwrap(),
            "aaaa < bbbb < cccc < dddd < eeee < ffff"
        );
        assert_eq!(
            one_line(&stack, 38).unwrap(),
            "aaaa < bbbb < cccc < … < eeee < ffff"
        );
        assert_eq!(
            one_line(&stack, 30).unwrap(),
            "aaaa < bbbb < … < eeee < ffff"
        );
        assert_eq!(one_line(&stack, 16).unwrap(), "aaaa < … < ffff");
    }

    proptest! {
        #[test]
        fn fits_whenever_one_name_does(
            names in prop::collection::vec("[a-z_]{1,30}", 1..40),
            room in 34_usize..160,
        ) {
            if let Some(line) = one_line(&names, room) {
                prop_assert!(width(&line) <= room, "{line}");
            }
        }
    }
}
