//! The waiters' stacks folded, for flame graphs: `lock;task;outermost;…;innermost µs`; and
//! the profiles of CPUs that do not go on: `CPU 3 soft lockup;task;outermost;…;innermost µs`.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use super::{Lockup, Report, text};
use crate::lockup::LockupKind;

/// Writes a line for each distinct stack with the waits of all who have it, in µs. The
/// root frame is the lock, the next one the name of the waiting tasks.
///
/// Of a CPU that does not go on, a line for each stack of its profile with its share of the
/// time that this lasted, in µs. The root frame begins with `CPU ` and its number; no name of
/// a lock does.
///
/// # Errors
/// When `out` does.
pub fn write_report(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    let mut lines: BTreeMap<String, u64> = BTreeMap::new();
    for lock in &report.locks {
        for waiter in lock.blocked() {
            let stack = waiter
                .stack
                .and_then(|index| report.stacks.get(index as usize));
            let mut line = format!("{};{}", frame(&lock.name), frame(&waiter.comm));
            push_frames(&mut line, stack.map_or(&[][..], Vec::as_slice));
            *lines.entry(line).or_default() += waiter.wait_ns.0 / 1_000;
        }
    }
    for lockup in &report.lockups {
        for spin in &lockup.profile {
            let mut line = root(lockup);
            let stack = report.stacks.get(spin.stack as usize);
            push_frames(&mut line, stack.map_or(&[][..], Vec::as_slice));
            let micros = u128::from(lockup.lasted_ns.0 / 1_000) * u128::from(spin.count)
                / u128::from(lockup.samples.max(1));
            *lines.entry(line).or_default() += u64::try_from(micros).unwrap_or(u64::MAX);
        }
    }
    for (line, micros) in lines {
        writeln!(out, "{line} {micros}")?;
    }
    Ok(())
}

/// `CPU 3 soft lockup;tar`
fn root(lockup: &Lockup) -> String {
    let kind = match lockup.kind {
        LockupKind::Soft => "soft lockup",
        LockupKind::Hard => "hard lockup",
    };
    let comm = lockup.task.as_ref().map_or("[idle]", |task| &task.comm);
    format!("CPU {} {kind};{}", lockup.cpu, frame(comm))
}

/// Adds a stack, outermost first.
fn push_frames(line: &mut String, frames: &[String]) {
    for function in frames.iter().rev() {
        // Offsets would keep apart what belongs together.
        let name = function.split("+0x").next().unwrap_or(function);
        line.push(';');
        line.push_str(&frame(name));
    }
    if frames.is_empty() {
        line.push_str(";[no stack]");
    }
}

/// A name without what would end a frame or a line.
fn frame(name: &str) -> String {
    let clean = |c: char| match c {
        ';' => ':',
        c if text::is_unprintable(c) => '?',
        c => c,
    };
    let name: String = name.chars().map(clean).collect();
    if name.trim().is_empty() {
        "?".to_owned()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::example;

    fn written(survey: &crate::survey::Survey) -> String {
        let report = example::report(survey, example::SEC);
        let mut out = Vec::new();
        write_report(&mut out, &report).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_incident_folded() {
        insta::assert_snapshot!(written(&example::incident()));
    }

    #[test]
    fn a_profile_weighs_as_much_as_the_lockup_lasted() {
        let survey = example::soft_lockup_of_task();
        let text = written(&survey);
        let of_cpu = text
            .lines()
            .filter(|line| line.starts_with("CPU 3 soft lockup;mmap-spin;"));
        let sum: u64 = of_cpu
            .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
            .sum();
        assert!((23_999_990..=24_000_000).contains(&sum), "{text}");
        assert!(text.contains("\nmmap_lock of mmap-spin[410];ps;"), "{text}");
    }

    #[test]
    fn piled_up_timers_folded() {
        insta::assert_snapshot!(written(&example::piled_up_timers()));
    }

    #[test]
    fn the_weights_are_all_waits() {
        let survey = example::several_locks();
        let sum: u64 = written(&survey)
            .lines()
            .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
            .sum();
        let waits = survey.locks.iter().flat_map(|lock| &lock.waiters);
        let waited: u64 = waits.filter(|w| !w.granted).map(|w| w.wait.0 / 1_000).sum();
        assert_eq!(sum, waited);
    }

    #[test]
    fn a_name_cannot_end_its_frame_or_line() {
        assert_eq!(frame("a;b c\n1\u{9b}"), "a:b c?1?");
        assert_eq!(frame(" "), "?");
    }
}
