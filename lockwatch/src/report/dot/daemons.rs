//! Servers in user space in the graph: client → daemon → the thread that has its request.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use super::{Circle, RED, Tasks, named, quoted, sure};
use crate::{
    figures::{Count, Span},
    lock::Confidence,
    report::{Client, Daemon, DaemonThread, Report},
    task::Tid,
};

/// The threads that clients wait for, as far as that carries weight.
pub(super) fn serving(daemon: &Daemon) -> impl Iterator<Item = (&DaemonThread, Confidence)> {
    daemon.threads.iter().filter_map(|thread| {
        let serves = thread.serves.filter(|it| it.carries_weight())?;
        Some((thread, serves))
    })
}

/// Writes every daemon with its arrows.
///
/// # Errors
/// When `out` does.
pub(super) fn write(
    out: &mut dyn Write,
    report: &Report,
    tasks: &Tasks,
    circle: &Circle,
) -> io::Result<()> {
    for (number, daemon) in report.daemons.iter().enumerate() {
        let node = quoted(&[format!("daemon {number}")]);
        let clients = Count::of(daemon.clients.len()).nouns("task waits", "tasks wait");
        let mut label = vec![daemon.name.clone(), format!("daemon · {clients}")];
        if daemon.threads.is_empty() {
            label.push("who serves it is unknown".to_owned());
        } else if serving(daemon).next().is_none() {
            label.push("which thread has their requests is unknown".to_owned());
        }
        let ways = circle.served.iter();
        let on_it: Vec<(Tid, Tid)> = ways
            .filter(|(client, _)| daemon.clients.iter().any(|it| it.tid == *client))
            .copied()
            .collect();
        let red = if on_it.is_empty() { "" } else { RED };
        let label = quoted(&label);
        writeln!(out, "  {node} [shape=hexagon, label={label}{red}];")?;
        for (thread, serves) in serving(daemon) {
            let tid = thread.tid;
            let (word, style) = sure(serves);
            let label = format!("served by, {word} ({})", thread.evidence.words());
            let label = quoted(&[label]);
            let is_red = on_it.iter().any(|&(_, it)| it == tid);
            let red = if is_red { RED } else { "" };
            writeln!(
                out,
                "  {node} -> \"task {tid}\" [label={label}, style={style}{red}];"
            )?;
        }
        write_clients(out, daemon, number, tasks, &on_it)?;
    }
    Ok(())
}

/// Clients that are nodes of their own have an arrow each, the others of one name one
/// together.
fn write_clients(
    out: &mut dyn Write,
    daemon: &Daemon,
    number: usize,
    tasks: &Tasks,
    on_it: &[(Tid, Tid)],
) -> io::Result<()> {
    let node = quoted(&[format!("daemon {number}")]);
    let mut groups: BTreeMap<&str, Vec<&Client>> = BTreeMap::new();
    for client in &daemon.clients {
        let tid = client.tid;
        if !tasks.labels.contains_key(&tid) {
            groups.entry(&client.comm).or_default().push(client);
            continue;
        }
        let is_red = on_it.iter().any(|&(it, _)| it == tid);
        let red = if is_red { RED } else { "" };
        let label = quoted(&[format!(
            "waits for its answer, since {}",
            Span(client.wait_ns)
        )]);
        writeln!(out, "  \"task {tid}\" -> {node} [label={label}{red}];")?;
    }
    for (place, (comm, clients)) in groups.into_iter().enumerate() {
        let name = match clients.as_slice() {
            [only] => named(comm, only.tid),
            many => format!("{comm} ×{}", Count::of(many.len())),
        };
        let oldest = clients.iter().map(|client| client.wait_ns).max();
        let since = if clients.len() > 1 {
            "since up to"
        } else {
            "since"
        };
        let oldest = Span(oldest.unwrap_or_default());
        let label = quoted(&[format!("waits for its answer, {since} {oldest}")]);
        let group = quoted(&[format!("daemon {number} clients {place}")]);
        writeln!(out, "  {group} [shape=ellipse, label={}];", quoted(&[name]))?;
        writeln!(out, "  {group} -> {node} [label={label}];")?;
    }
    Ok(())
}
