//! Hanging tasks in words: a paragraph for those that wait for no lock, a line in the
//! paragraph of the lock for those that do.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    io::{self, Write},
};

use super::{
    GLUE, Style, Text, Tone, daemons, glued, holders::device_words, named, page::TEXT_COLUMN,
    stack::one_line, stuck_words, way_out, write_field,
};
use crate::{
    figures::{Count, Span},
    report::{Finding, Hung, HungTask, Lock, Report, ways_out::Way},
    sleeper::Awaited,
    task::StuckClass,
};

/// Tasks that are named one by one, and names that are counted of the rest.
const SHOWN: usize = 3;

/// Writes the paragraph of one group of hanging tasks.
///
/// # Errors
/// When `out` does.
pub fn write_hung(
    out: &mut dyn Write,
    report: &Report,
    hung: &Hung,
    style: Style,
) -> io::Result<()> {
    heading(hung).write(out, style, 0)?;
    let stack = hung.tasks.first().and_then(|task| task.stack);
    let frames = stack.and_then(|stack| report.stacks.get(stack as usize));
    let room = style.columns().saturating_sub(TEXT_COLUMN);
    let place = frames.and_then(|frames| one_line(frames, room));
    let said = report
        .finding_of(hung)
        .and_then(|it| it.second_opinion.as_ref());
    let mut field = |label, paragraphs: &[Text]| write_field(&mut *out, style, label, paragraphs);
    field("tasks", &[tasks(&hung.tasks)])?;
    field("state", &[state(&hung.tasks)])?;
    field("why", &[why(report, hung)])?;
    field(
        "where",
        &place.map(Text::plain).into_iter().collect::<Vec<_>>(),
    )?;
    field(
        "kernel",
        &said.map(Text::plain).into_iter().collect::<Vec<_>>(),
    )?;
    field("ways out", &ways_out(hung))
}

/// The lines in the paragraph of a lock.
pub(super) fn lines_of_lock(report: &Report, lock: &Lock) -> Vec<Text> {
    let is_its = |hung: &&Hung| hung.awaited == Awaited::Lock(lock.at);
    let Some(hung) = report.hangs().find(is_its) else {
        return Vec::new();
    };
    let (count, oldest) = (Count::of(hung.tasks.len()), &hung.tasks[0]);
    let mut text = Text::new().with(
        Tone::Alarm,
        glued(&format!("{} in state D", count.nouns("task", "tasks"))),
    );
    if let Some(threshold) = report.hung_threshold {
        text.push(Tone::Plain, format!(" for {} or longer", Span(threshold)));
    }
    text.push(
        Tone::Plain,
        format!("{GLUE}· {} {}", one(oldest), Span(oldest.asleep_ns)),
    );
    let said = report.finding_of(hung).and_then(said);
    std::iter::once(text).chain(said).collect()
}

fn said(finding: &Finding) -> Option<Text> {
    finding.second_opinion.as_ref().map(Text::plain)
}

/// `block device nvme0n1    HUNG · 12 tasks · oldest 6m12s`
fn heading(hung: &Hung) -> Text {
    let count = Count::of(hung.tasks.len()).nouns("task", "tasks");
    let mut text = Text::new()
        .with(Tone::Strong, &hung.name)
        .with(Tone::Plain, "    ")
        .with(Tone::Alarm, "HUNG")
        .with(Tone::Plain, format!("{GLUE}· "))
        .with(Tone::Alarm, glued(&count));
    if let Some(oldest) = hung.tasks.first() {
        let oldest = Span(oldest.asleep_ns);
        text.push(Tone::Plain, format!("{GLUE}· oldest{GLUE}{oldest}"));
    }
    text
}

fn one(task: &HungTask) -> String {
    glued(&named(&task.comm, task.tid))
}

/// `cp[7] 6m12s, tar[9] 6m10s, sync[11] 5m02s and 9 more: postgres ×8, cron ×1`
fn tasks(tasks: &[HungTask]) -> Text {
    let mut text = Text::new();
    for (number, task) in tasks.iter().take(SHOWN).enumerate() {
        if number > 0 {
            text.push(Tone::Plain, ", ");
        }
        text.push(Tone::Strong, one(task));
        text.push(Tone::Plain, format!("{GLUE}{}", Span(task.asleep_ns)));
    }
    let rest = tasks.get(SHOWN..).unwrap_or_default();
    if rest.is_empty() {
        return text;
    }
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for task in rest {
        *counts.entry(&task.comm).or_default() += 1;
    }
    let mut counts: Vec<(&str, u64)> = counts.into_iter().collect();
    counts.sort_by_key(|&(comm, count)| (Reverse(count), comm));
    let mut names: Vec<String> = counts
        .iter()
        .take(SHOWN)
        .map(|&(comm, count)| glued(&format!("{comm} ×{}", Count(count))))
        .collect();
    if counts.len() > SHOWN {
        let more = Count::of(counts.len() - SHOWN);
        names.push(glued(&more.nouns("other name", "other names")));
    }
    let more = Count::of(rest.len());
    text.with(
        Tone::Plain,
        format!(" and {more} more: {}", names.join(", ")),
    )
}

/// `D (uninterruptible sleep) · 3 of 12 killable · all counted as I/O wait`
fn state(tasks: &[HungTask]) -> Text {
    let count = tasks.len();
    let part = |some: usize, what: &str| match some {
        0 => format!("not {what}"),
        _ if count == 1 => what.to_owned(),
        some if some == count => format!("all {what}"),
        some => format!("{} of {} {what}", Count::of(some), Count::of(count)),
    };
    let killable = tasks.iter().filter(|task| task.killable).count();
    let io = tasks.iter().filter(|task| task.io_wait).count();
    let mut words = format!("D (uninterruptible sleep) · {}", part(killable, "killable"));
    if io > 0 {
        words.push_str(&format!(" · {}", part(io, "counted as I/O wait")));
    }
    Text::plain(words)
}

fn why(report: &Report, hung: &Hung) -> Text {
    let first = hung.tasks.first();
    let daemon = first.and_then(|task| daemons::awaited_by(report, task.tid));
    match (&hung.awaited, daemon) {
        (Awaited::Fuse(_), Some(daemon)) => {
            return Text::plain(format!("waiting for an answer of {daemon}"));
        }
        (Awaited::Server { .. }, _) => {
            return Text::plain(format!("waiting for an answer of {}", hung.name));
        }
        (Awaited::Queue(queue), _) if hung.stuck.class == StuckClass::Unknown => {
            return Text::plain(format!(
                "all wait on one {}; who is to wake them, the kernel does not keep",
                queue.kind
            ));
        }
        _ => {}
    }
    match (hung.stuck.class, &hung.stuck.device) {
        (StuckClass::Unknown, _) => Text::new().with(Tone::Doubt, stuck_words(StuckClass::Unknown)),
        (class, Some(device)) => {
            Text::plain(format!("{} ({})", stuck_words(class), device_words(device)))
        }
        (class, None) => Text::plain(stuck_words(class)),
    }
}

/// What a person could do; nothing here is done.
fn ways_out(hung: &Hung) -> Vec<Text> {
    if let Awaited::Lock(_) = hung.awaited {
        return Vec::new();
    }
    let mut ways: Vec<Text> = hung.ways_out.iter().map(way_out).collect();
    let is_safe = hung.ways_out.iter().any(|way| way.way == Way::KillWaiters);
    if ways.is_empty() {
        let words = if hung.tasks.len() == 1 {
            "it is not killable; nothing here is safe to force".to_owned()
        } else {
            let count = Count::of(hung.tasks.len());
            format!("none of {count} tasks is killable; nothing here is safe to force")
        };
        ways.push(Text::plain(words));
    } else if is_safe && ways.len() == 1 {
        let all = std::mem::take(&mut ways);
        ways.extend(
            all.into_iter()
                .map(|way| way.with(Tone::Plain, "; nothing else here is safe to force")),
        );
    }
    ways
}
