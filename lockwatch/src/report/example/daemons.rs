//! Surveys with daemons.

use super::{MS, SEC, stack, task, write_held_directory};
use crate::{
    daemon::{Client, ConnectionAddr, Daemon, DaemonThread, ServesEvidence},
    lock::{Confidence, LockMode, Stacks},
    survey::Survey,
    task::{Nanos, Stuck, StuckClass, TaskState},
};

/// A thread asleep in `frames`; what it is in is its first frame outside the scheduler.
pub(crate) fn daemon_thread(
    stacks: &mut Stacks,
    tid: u32,
    frames: &[&str],
    class: StuckClass,
) -> DaemonThread {
    DaemonThread {
        task: task(tid, 900, "sharefs"),
        serves: Some(Confidence::Certain),
        evidence: ServesEvidence::OnlyThread,
        state: TaskState::Interruptible,
        stuck: Stuck {
            class,
            frame: frames.get(1).map(|&frame| frame.to_owned()),
            since: Some(Nanos(8 * SEC)),
            device: None,
        },
        stood: true,
        stack: stack(stacks, frames),
    }
}

/// The holder of [`write_held_directory`] waits for a daemon, whose only thread waits for
/// requests and has not answered.
pub(crate) fn idle_daemon() -> Survey {
    let mut survey = write_held_directory();
    let holder = &survey.locks[0].holders[0];
    let client = Client {
        task: holder.task.clone(),
        wait: Nanos(8 * SEC + 350 * MS),
        is_sent: true,
        killable: true,
        stood: true,
        stack: holder.stack,
    };
    let frames = [
        "__schedule",
        "fuse_dev_do_read",
        "fuse_dev_read",
        "vfs_read",
    ];
    let mut thread = daemon_thread(&mut survey.stacks, 900, &frames, StuckClass::Unknown);
    thread.evidence = ServesEvidence::Idle;
    thread.serves = None;
    survey.daemons.push(Daemon {
        connection: ConnectionAddr(0xffff_8881_0700_0000),
        number: Some(52),
        name: "fuse.sharefs on /mnt/share".to_owned(),
        clients: vec![client],
        threads: vec![thread],
    });
    survey
}

/// The daemon of a directory looks a name up in that directory, which its client holds.
pub(crate) fn daemon_in_its_own_directory() -> Survey {
    let mut survey = idle_daemon();
    let frames = ["__schedule", "rwsem_down_read_slowpath", "lookup_slow"];
    let thread = daemon_thread(&mut survey.stacks, 900, &frames, StuckClass::Lock);
    let lock = &mut survey.locks[0];
    let mut waiter = lock.waiters[0].clone();
    waiter.task = thread.task.clone();
    waiter.stack = thread.stack;
    waiter.wait = Nanos(8 * SEC);
    waiter.mode = LockMode::Read;
    lock.waiters[0] = waiter;
    survey.daemons[0].threads = vec![thread];
    survey
}
