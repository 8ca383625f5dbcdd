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
        .filter(|thread| thread.serves >= Some(Confidence::Likely));
    if let (Some(thread), None) = (serving.next(), serving.next()) {
        return format!(
            "daemon {}, {}",
            named(&thread.comm, thread.tid),
            doing(report, thread)
        );
    }
    let idle = |thread: &DaemonThread| thread.evidence == ServesEvidence::Idle;
    let count = Count::of(daemon.threads.len());
    match daemon.threads.first() {
        None => "nobody serves it".to_owned(),
        Some(thread) if daemon.threads.iter().all(idle) => format!(
            "daemon {}, which waits for requests and has not answered this one",
            named(&thread.comm, thread.tid)
        ),
        Some(thread) => format!(
            "daemon {}: which of its {count} threads has the request is unknown",
            named(&thread.comm, thread.tid)
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
