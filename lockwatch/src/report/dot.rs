//! The report as a graph for graphviz: locks are boxes, tasks ellipses, servers in user
//! space hexagons; arrows say *waits for*, *held by* and *served by*, a deadlock is red.

mod daemons;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
};

use super::{Holder, Lock, Report, Step, Waiter, text};
use crate::{
    figures::{Count, Span},
    lock::{Confidence, LockMode, LockState},
    task::{Nanos, Tid},
};

/// Writes the graph.
///
/// # Errors
/// When `out` does.
pub fn write_report(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    let title = format!(
        "locks that tasks of {} wait for, {}",
        report.host.hostname, report.taken_at
    );
    writeln!(out, "digraph lockwatch {{")?;
    writeln!(out, "  rankdir=LR;")?;
    writeln!(out, "  label={};", quoted(&[title]))?;
    writeln!(out, "  node [fontname=\"sans-serif\"];")?;
    writeln!(out, "  edge [fontname=\"sans-serif\", fontsize=10];")?;
    let circle = Circle::of(report);
    for lock in &report.locks {
        write_lock(out, lock, &circle)?;
    }
    let tasks = Tasks::of(report);
    for (tid, label) in &tasks.labels {
        let red = if circle.tasks.contains(tid) { RED } else { "" };
        let label = quoted(label);
        writeln!(out, "  \"task {tid}\" [shape=ellipse, label={label}{red}];")?;
    }
    for lock in &report.locks {
        write_holders(out, lock, &circle)?;
        write_waiters(out, lock, &tasks, &circle)?;
    }
    daemons::write(out, report, &tasks, &circle)?;
    writeln!(out, "}}")
}

const RED: &str = ", color=red, fontcolor=red, penwidth=2";

/// What belongs to a deadlock.
#[derive(Default)]
struct Circle {
    locks: BTreeSet<String>,
    tasks: BTreeSet<Tid>,
    waits: BTreeSet<(Tid, String)>,
    holds: BTreeSet<(String, Tid)>,
    /// Clients with the threads that have their requests.
    served: BTreeSet<(Tid, Tid)>,
}

impl Circle {
    fn of(report: &Report) -> Self {
        let mut circle = Self::default();
        for chain in report.chains.iter().filter(|chain| chain.cycle) {
            for step in &chain.path {
                match step {
                    Step::Task(tid) | Step::Daemon(tid) => {
                        circle.tasks.insert(*tid);
                    }
                    Step::Lock(id) => {
                        circle.locks.insert(id.clone());
                    }
                }
            }
            for pair in chain.path.windows(2) {
                match pair {
                    [Step::Task(tid) | Step::Daemon(tid), Step::Lock(id)] => {
                        circle.waits.insert((*tid, id.clone()));
                    }
                    [Step::Lock(id), Step::Task(tid)] => {
                        circle.holds.insert((id.clone(), *tid));
                    }
                    [
                        Step::Task(client) | Step::Daemon(client),
                        Step::Daemon(thread),
                    ] => {
                        circle.served.insert((*client, *thread));
                    }
                    _ => {}
                }
            }
        }
        circle
    }
}

/// The tasks that are nodes of their own: holders, threads that serve, and waiters that are
/// on a path. All other waiters are drawn together with those like them.
struct Tasks {
    labels: BTreeMap<Tid, Vec<String>>,
}

impl Tasks {
    fn of(report: &Report) -> Self {
        let mut labels = BTreeMap::new();
        for holder in report.locks.iter().flat_map(|lock| &lock.holders) {
            let stuck = text::stuck_words(holder.stuck.class).to_owned();
            labels.insert(holder.tid, vec![named(&holder.comm, holder.tid), stuck]);
        }
        for (thread, _) in report.daemons.iter().flat_map(daemons::serving) {
            let stuck = text::stuck_words(thread.stuck.class).to_owned();
            let name = named(&thread.comm, thread.tid);
            labels.entry(thread.tid).or_insert(vec![name, stuck]);
        }
        for chain in &report.chains {
            labels
                .entry(chain.root.tid)
                .or_insert_with(|| vec![named(&chain.root.comm, chain.root.tid)]);
        }
        Self { labels }
    }
}

fn write_lock(out: &mut dyn Write, lock: &Lock, circle: &Circle) -> io::Result<()> {
    let state = match lock.state {
        LockState::ReadHeld => "read-held",
        LockState::WriteHeld if !lock.kind.has_readers() => "held",
        LockState::WriteHeld => "write-held",
        LockState::Free => "free",
        LockState::Inconsistent => "inconsistent",
    };
    let blocked = Count::of(lock.blocked().count()).nouns("task", "tasks");
    let label = quoted(&[
        lock.name.clone(),
        format!("{} · {state} · {blocked} blocked", lock.kind.words()),
    ]);
    let red = if circle.locks.contains(&lock.id) {
        RED
    } else {
        ""
    };
    let id = quoted(std::slice::from_ref(&lock.id));
    writeln!(out, "  {id} [shape=box, label={label}{red}];")
}

fn write_holders(out: &mut dyn Write, lock: &Lock, circle: &Circle) -> io::Result<()> {
    let id = quoted(std::slice::from_ref(&lock.id));
    for holder in &lock.holders {
        let Holder {
            tid,
            confidence,
            held_ns,
            held_is_lower_bound,
            ..
        } = holder;
        let (word, style) = sure(*confidence);
        let mut label = format!("held by, {}, {word}", mode(holder.mode));
        if let Some(held) = held_ns {
            let least = if *held_is_lower_bound == Some(true) {
                "at least "
            } else {
                ""
            };
            label.push_str(&format!(", for {least}{}", Span(*held)));
        }
        let red = if circle.holds.contains(&(lock.id.clone(), *tid)) {
            RED
        } else {
            ""
        };
        let label = quoted(&[label]);
        writeln!(
            out,
            "  {id} -> \"task {tid}\" [label={label}, style={style}{red}];"
        )?;
    }
    Ok(())
}

/// Waiters that look the same.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Alike<'a> {
    comm: &'a str,
    is_writer: bool,
    granted: bool,
    caller: Option<&'a str>,
}

fn write_waiters(
    out: &mut dyn Write,
    lock: &Lock,
    tasks: &Tasks,
    circle: &Circle,
) -> io::Result<()> {
    let id = quoted(std::slice::from_ref(&lock.id));
    let mut groups: BTreeMap<Alike<'_>, Vec<&Waiter>> = BTreeMap::new();
    for waiter in &lock.waiters {
        if tasks.labels.contains_key(&waiter.tid) {
            let red = circle.waits.contains(&(waiter.tid, lock.id.clone()));
            let red = if red { RED } else { "" };
            let label = quoted(&[waits(waiter, waiter.wait_ns, false)]);
            let tid = waiter.tid;
            writeln!(out, "  \"task {tid}\" -> {id} [label={label}{red}];")?;
        } else {
            let alike = Alike {
                comm: &waiter.comm,
                is_writer: waiter.mode == LockMode::Write,
                granted: waiter.granted,
                caller: waiter.caller.as_deref(),
            };
            groups.entry(alike).or_default().push(waiter);
        }
    }
    let mut groups: Vec<Vec<&Waiter>> = groups.into_values().collect();
    groups.sort_by_key(|group| group[0].position);
    for (number, group) in groups.iter().enumerate() {
        let first = group[0];
        let name = match group.len() {
            1 => named(&first.comm, first.tid),
            count => format!("{} ×{}", first.comm, Count::of(count)),
        };
        let oldest = group.iter().map(|waiter| waiter.wait_ns).max();
        let caller = first.caller.iter().map(|caller| format!("in {caller}"));
        let label: Vec<String> = [name].into_iter().chain(caller).collect();
        let node = quoted(&[format!("{} waiters {number}", lock.id)]);
        writeln!(out, "  {node} [shape=ellipse, label={}];", quoted(&label))?;
        let label = quoted(&[waits(first, oldest.unwrap_or_default(), group.len() > 1)]);
        writeln!(out, "  {node} -> {id} [label={label}];")?;
    }
    if !lock.spinners.is_empty() {
        let node = quoted(&[format!("{} spinners", lock.id)]);
        let label = quoted(&[Count::of(lock.spinners.len()).nouns("spinner", "spinners")]);
        writeln!(out, "  {node} [shape=ellipse, label={label}];")?;
        writeln!(out, "  {node} -> {id} [label=\"spins for\", style=dashed];")?;
    }
    Ok(())
}

fn waits(waiter: &Waiter, oldest: Nanos, is_group: bool) -> String {
    if waiter.granted {
        return "was granted".to_owned();
    }
    let since = if is_group { "since up to" } else { "since" };
    format!("waits for, {}, {since} {}", mode(waiter.mode), Span(oldest))
}

/// How sure a name is, in a word and as the style of an arrow.
fn sure(confidence: Confidence) -> (&'static str, &'static str) {
    match confidence {
        Confidence::Certain => ("certain", "solid"),
        Confidence::Likely => ("likely", "dashed"),
        Confidence::Possible => ("possible", "dotted"),
    }
}

fn mode(mode: LockMode) -> &'static str {
    match mode {
        LockMode::Read => "read",
        LockMode::Write => "write",
    }
}

fn named(comm: &str, tid: Tid) -> String {
    format!("{comm}[{tid}]")
}

/// A string of the DOT language, line by line. Names come from whoever runs on the host:
/// nothing in them ends the string or means something to graphviz.
fn quoted(lines: &[String]) -> String {
    let mut text = String::from("\"");
    for (number, line) in lines.iter().enumerate() {
        if number > 0 {
            text.push_str("\\n");
        }
        for c in line.chars() {
            match c {
                '"' => text.push_str("\\\""),
                '\\' => text.push_str("\\\\"),
                // Labels know the entities of HTML.
                '&' => text.push_str("&amp;"),
                c if text::is_unprintable(c) => text.push('?'),
                c => text.push(c),
            }
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::example;

    fn written(report: &Report) -> String {
        let mut out = Vec::new();
        write_report(&mut out, report).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn report(survey: &crate::survey::Survey) -> Report {
        example::report(survey, example::SEC)
    }

    #[test]
    fn the_incident_as_a_graph() {
        insta::assert_snapshot!(written(&report(&example::incident())));
    }

    #[test]
    fn a_deadlock_is_red() {
        let text = written(&report(&example::cycle()));
        insta::assert_snapshot!(text);
        // Two tasks, two locks, and the four arrows between them.
        assert_eq!(text.matches("color=red, fontcolor").count(), 8, "{text}");
    }

    #[test]
    fn a_deadlock_through_a_daemon_is_red() {
        let text = written(&report(&example::daemon_in_its_own_directory()));
        insta::assert_snapshot!(text);
        // The client, the daemon, its thread, the lock, and the four arrows between them.
        assert_eq!(text.matches("color=red, fontcolor").count(), 8, "{text}");
    }

    #[test]
    fn nobody_is_drawn_as_serving_who_is_not_known_to() {
        let mut survey = example::idle_daemon();
        let clients = &mut survey.daemons[0].clients;
        for tid in [5_001, 5_002] {
            let mut other = clients[0].clone();
            other.task = example::task(tid, tid, "find");
            clients.push(other);
        }
        insta::assert_snapshot!(written(&report(&survey)));
    }

    #[test]
    fn a_name_cannot_end_its_string() {
        let names = [
            "a\"]; evil [label=\"".to_owned(),
            "b\\N&lt;\u{1b}".to_owned(),
        ];
        assert_eq!(quoted(&names), r#""a\"]; evil [label=\"\nb\\N&amp;lt;?""#);
    }
}
