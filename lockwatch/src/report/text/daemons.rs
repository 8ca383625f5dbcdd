//! Daemons in words: whose answer a task waits for, and what that daemon does.

use super::{named, stuck_words};
use crate::{
    daemon::ServesEvidence,
    figures::Count,
    lock::Confidence,
    report::{Daemon, DaemonThread, Report},
    task::{StuckClass, Tid},
};

/// `fuse.sshfs on /mnt (daemon sshfs[77], waiting for block I/O)`; none if the task waits for
/// no daemon that is known.
pub(super) fn awaited_by(report: &Report, tid: Tid) -> Option<String> {
    let daemon = report.daemon_awaited_by(tid)?;
    Some(format!("{} ({})", daemon.name, state(report, daemon)))
}

/// What the daemon does, as far as that is known.
fn state(report: &Report, daemon: &Daemon) -> String {
    let mut serving = daemon
        .threads
        .iter()
        .filter(|thread| thread.serves.is_some_and(Confidence::carries_weight));
    if let (Some(thread), None) = (serving.next(), serving.next()) {
        return format!(
            "daemon {}, {}",
            named(&thread.comm, thread.tid),
            doing(report, thread)
        );
    }
    let idle = |thread: &DaemonThread| thread.evidence == ServesEvidence::Idle;
    let Some(thread) = daemon.threads.first() else {
        return "nobody serves it".to_owned();
    };
    let name = named(&thread.comm, thread.tid);
    match daemon.threads.len() {
        _ if daemon.threads.iter().all(idle) => {
            format!("daemon {name}, which waits for requests and has not answered this one")
        }
        1 => format!("daemon {name}, which may or may not have the request"),
        count => format!(
            "daemon {name}, of whose {} threads it is unknown which has the request",
            Count::of(count)
        ),
    }
}

fn doing(report: &Report, thread: &DaemonThread) -> String {
    if let Some(lock) = report.lock_awaited_by(thread.tid) {
        return format!("waiting for {}", lock.name);
    }
    if let Some(daemon) = report.daemon_awaited_by(thread.tid) {
        return format!("waiting for an answer of {}", daemon.name);
    }
    match (thread.stuck.class, &thread.stuck.frame) {
        (StuckClass::Unknown, Some(frame)) => {
            format!("{} in {}", thread.state, super::stack::function(frame))
        }
        (class, _) => stuck_words(class).to_owned(),
    }
}
