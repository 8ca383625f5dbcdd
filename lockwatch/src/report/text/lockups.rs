//! The paragraph of a CPU that does not go on.

use std::io::{self, Write};

use super::{
    Style, Text, Tone, glued, mode, named,
    page::{GLUE, TEXT_COLUMN, width},
    stack::one_line,
    write_field,
};
use crate::{
    figures::{Count, Span},
    lock::function_of,
    lockup::LockupKind,
    report::{
        Lock, Lockup, Report,
        lockup::{Context, Sharer, Spin, Starved},
    },
};

/// Stacks of a profile that are shown; the rest is counted.
const STACKS: usize = 3;
/// Tasks that are named; the rest is counted.
const NAMED: usize = 6;

/// Writes the paragraph of one CPU that does not go on.
///
/// # Errors
/// When `out` does.
pub fn write_lockup(
    out: &mut dyn Write,
    report: &Report,
    lockup: &Lockup,
    style: Style,
) -> io::Result<()> {
    heading(lockup).write(out, style, 0)?;
    let mut field = |label, paragraphs: &[Text]| write_field(&mut *out, style, label, paragraphs);
    field("task", &[task(lockup)])?;
    field("where", &places(report, lockup, style))?;
    field("returns", &returns(report, lockup, style))?;
    field("holds", &holds(report, lockup))?;
    field("blocked", &[blocked(lockup)])?;
    field("starved", &[starved(lockup)])?;
    field("sharers", &sharers(lockup))?;
    let kernel = lockup.second_opinion.as_ref();
    field(
        "kernel",
        &kernel.map(Text::plain).into_iter().collect::<Vec<_>>(),
    )?;
    let unknown = lockup.unknown.iter();
    let unknown: Vec<Text> = unknown
        .map(|it| Text::new().with(Tone::Doubt, it))
        .collect();
    field("unknown", &unknown)
}

/// `CPU 1    soft lockup · 24s · in the kernel without rescheduling`
fn heading(lockup: &Lockup) -> Text {
    let (kind, what) = match lockup.kind {
        LockupKind::Soft => ("soft lockup", "in the kernel without rescheduling"),
        LockupKind::Hard => ("hard lockup", "takes no interrupts"),
    };
    Text::new()
        .with(Tone::Strong, format!("CPU{GLUE}{}", lockup.cpu))
        .with(Tone::Plain, "    ")
        .with(Tone::Alarm, glued(kind))
        .with(
            Tone::Plain,
            format!("{GLUE}· {}{GLUE}· {}", Span(lockup.lasted_ns), glued(what)),
        )
}

/// The task, what runs on top of it, and which of the two is to blame.
fn task(lockup: &Lockup) -> Text {
    let task = match &lockup.task {
        Some(task) => named(&task.comm, task.tid),
        None => "the CPU's idle task".to_owned(),
    };
    let program = match &lockup.program {
        Some(program) => format!(", in it {program}"),
        None => String::new(),
    };
    match &lockup.context {
        Context::Task => match &lockup.program {
            Some(program) => Text::plain(format!("{task}, in its own context: {program}")),
            None => Text::plain(format!("{task}, in its own context")),
        },
        Context::Unknown => Text::plain(task).with(
            Tone::Doubt,
            "; whether it runs itself, or an interrupt on top of it, is not known",
        ),
        Context::Softirq {
            vector,
            callback,
            callbacks,
        } => {
            let softirq = match vector {
                Some(vector) => format!("softirq {vector}"),
                None => "a softirq".to_owned(),
            };
            let what = match (callback, callbacks) {
                (Some(callback), 0..=1) => format!(", callback {callback}"),
                (Some(callback), many) => {
                    let many = Count::from(*many);
                    match vector.as_deref() {
                        Some("TIMER") => format!(
                            ", piled-up timer callbacks: {many} different, most often {callback}"
                        ),
                        _ => format!(", {many} different callbacks, most often {callback}"),
                    }
                }
                (None, _) => String::new(),
            };
            on_top(lockup, &task, &format!("{softirq}{what}{program}"))
        }
        Context::Interrupt { handler } => {
            let handler = match handler {
                Some(handler) => format!("an interrupt's handler, {handler}"),
                None => "an interrupt's handler".to_owned(),
            };
            on_top(lockup, &task, &format!("{handler}{program}"))
        }
    }
}

fn on_top(lockup: &Lockup, task: &str, what: &str) -> Text {
    if lockup.interrupted {
        Text::plain(format!(
            "{task}, only interrupted: on top of it runs {what}"
        ))
    } else if lockup.task.is_none() {
        Text::plain(format!("{task}; on top of it runs {what}"))
    } else {
        Text::plain(format!("{task}, which runs {what}"))
    }
}

/// `87 % of 1,204 samples: native_queued_spin_lock_slowpath < … < do_mmap`
fn places(report: &Report, lockup: &Lockup, style: Style) -> Vec<Text> {
    let profile = by_functions(report, lockup);
    let mut lines: Vec<Text> = profile
        .iter()
        .take(STACKS)
        .map(|spin| {
            let share = match lockup.samples {
                1 => "the last sample: ".to_owned(),
                _ => format!("{} of {}: ", share(*spin, lockup), samples(lockup.samples)),
            };
            place(report, spin.stack, share, style)
        })
        .collect();
    if let Some(rest) = profile.get(STACKS..).filter(|rest| !rest.is_empty()) {
        let rest = Count::of(rest.len()).nouns("stack", "stacks");
        lines.push(Text::plain(format!(
            "… and {rest} more (use --format json or folded)"
        )));
    }
    lines
}

/// The profile, places within the same functions taken together, the most frequent first.
fn by_functions(report: &Report, lockup: &Lockup) -> Vec<Spin> {
    let functions = |spin: &Spin| -> Vec<&str> {
        let frames = report.stacks.get(spin.stack as usize);
        let frames = frames.map_or(&[][..], Vec::as_slice).iter();
        frames.map(|frame| function_of(frame)).collect()
    };
    let mut together: Vec<(Vec<&str>, Spin)> = Vec::new();
    for spin in &lockup.profile {
        let functions = functions(spin);
        match together.iter_mut().find(|(known, _)| *known == functions) {
            Some((_, known)) => known.count += spin.count,
            None => together.push((functions, *spin)),
        }
    }
    together.sort_by_key(|(_, spin)| std::cmp::Reverse(spin.count));
    together.into_iter().map(|(_, spin)| spin).collect()
}

fn share(spin: Spin, lockup: &Lockup) -> String {
    let percent = 100 * u64::from(spin.count) / u64::from(lockup.samples.max(1));
    match percent {
        0 => format!("less than 1{GLUE}%"),
        percent => format!("{percent}{GLUE}%"),
    }
}

fn samples(count: u32) -> String {
    Count::from(count).nouns("sample", "samples")
}

fn place(report: &Report, stack: u32, before: String, style: Style) -> Text {
    let frames = report.stacks.get(stack as usize);
    let room = style.columns() - TEXT_COLUMN;
    // On a line of its own where the words before leave too little room.
    let left = room.saturating_sub(width(&before));
    let room = if left < room / 2 { room } else { left };
    match frames.and_then(|frames| one_line(frames, room)) {
        Some(line) => Text::plain(before).with(Tone::Plain, line),
        None => Text::new(),
    }
}

fn returns(report: &Report, lockup: &Lockup, style: Style) -> Vec<Text> {
    let Some(stack) = lockup.returns else {
        return Vec::new();
    };
    vec![
        place(report, stack, String::new(), style),
        Text::new().with(
            Tone::Doubt,
            "by the words on the task's stack: old ones may be among them",
        ),
    ]
}

fn holds(report: &Report, lockup: &Lockup) -> Vec<Text> {
    let is_held = |lock: &&Lock| lockup.holds.contains(&lock.id);
    let locks = report.locks.iter().filter(is_held);
    locks
        .map(|lock| {
            let tid = lockup.task.as_ref().map(|task| task.tid);
            let holder = lock.holders.iter().find(|holder| Some(holder.tid) == tid);
            let how = match holder {
                Some(holder) if lock.kind.has_readers() => format!("  {}", mode(holder.mode)),
                _ => String::new(),
            };
            let sure = match holder {
                Some(holder) => format!(" · {}", holder.confidence.word()),
                None => String::new(),
            };
            Text::plain(format!("{}{how}{sure}", lock.name))
        })
        .collect()
}

fn blocked(lockup: &Lockup) -> Text {
    if lockup.holds.is_empty() {
        return Text::new();
    }
    let blocked = Count::from(lockup.blocked_tasks);
    let blocked = blocked.nouns("task waits", "tasks wait");
    Text::new()
        .with(Tone::Alarm, glued(&blocked))
        .with(Tone::Plain, " behind that, directly or through others")
}

/// `migration/1[20] 24s, kworker/1:0[33] 24s and 4 more`
fn starved(lockup: &Lockup) -> Text {
    let name = |it: &Starved| format!("{} {}", named(&it.comm, it.tid), Span(it.since_ns));
    let names: Vec<String> = lockup.starved.iter().take(NAMED).map(name).collect();
    let Some(rest) = lockup.starved.len().checked_sub(NAMED).filter(|&it| it > 0) else {
        return Text::plain(names.join(", "));
    };
    Text::plain(format!("{} and {} more", names.join(", "), Count::of(rest)))
}

fn sharers(lockup: &Lockup) -> Vec<Text> {
    let line = |it: &Sharer| {
        let who = named(&it.comm, it.tid);
        let waits = if it.waits {
            "it waits for a spinlock"
        } else {
            "the locked CPU waits for a spinlock"
        };
        Text::plain(format!(
            "{who} on CPU {}: {waits}, and both have {}; ",
            it.cpu, it.address
        ))
        .with(Tone::Doubt, "possible")
    };
    lockup.sharers.iter().take(NAMED).map(line).collect()
}
