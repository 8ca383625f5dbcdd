//! A directory that is write-held, and surveys like it.

use super::{MS, SEC, holder, inode_lock, mmap_lock, stack, survey, task, waiter};
use crate::{
    lock::{Holder, LockMode, LockObject, LockState, RecentHold, Stacks},
    survey::Survey,
    task::{Comm, Nanos, Stuck, StuckClass, TaskState},
};

/// A writer sits in a directory, three tasks want it.
pub(crate) fn write_held_directory() -> Survey {
    let mut stacks = Stacks::default();
    let mkdir = stack(
        &mut stacks,
        &[
            "__schedule",
            "schedule",
            "request_wait_answer",
            "__fuse_simple_request",
            "create_new_entry",
            "fuse_mkdir",
            "vfs_mkdir",
            "do_mkdirat",
            "__x64_sys_mkdir",
            "do_syscall_64",
            "entry_SYSCALL_64_after_hwframe",
        ],
    );
    let lookup = stack(&mut stacks, &["lookup_slow", "walk_component"]);
    let mut lock = inode_lock(0xffff_8881_0200_00a0, "/mnt/share/incoming");
    lock.name = "i_rwsem of /mnt/share/incoming (fuse, 0:52)".to_owned();
    if let Some(LockObject::Inode { fstype, sb, .. }) = &mut lock.object {
        (*fstype, *sb) = ("fuse".to_owned(), "0:52".to_owned());
    }
    lock.holders.push(Holder {
        state: TaskState::Interruptible,
        stuck: Stuck {
            class: StuckClass::Fuse,
            frame: Some("request_wait_answer".to_owned()),
            since: Some(Nanos(8 * SEC + 350 * MS)),
            device: None,
        },
        held: Some(Nanos(8 * SEC + 350 * MS)),
        ..holder(task(811, 811, "mkdir"), LockMode::Write, mkdir)
    });
    for (number, (comm, mode, caller)) in [
        ("stat", LockMode::Read, "lookup_slow"),
        ("ls", LockMode::Read, "iterate_dir"),
        ("mkdir", LockMode::Write, "filename_create"),
    ]
    .into_iter()
    .enumerate()
    {
        let number = u32::try_from(number).unwrap();
        let mut waiter = waiter(
            number + 1,
            task(820 + number, 820 + number, comm),
            mode,
            (8 - u64::from(number)) * SEC,
            caller,
            lookup,
        );
        waiter.killable = comm == "ls";
        lock.waiters.push(waiter);
    }
    survey(vec![lock], stacks)
}

/// Names that want to be obeyed by the terminal, or to look like the report.
pub(crate) fn hostile_comm() -> Survey {
    let mut survey = write_held_directory();
    let lock = &mut survey.locks[0];
    lock.name = format!(
        "i_rwsem of /tmp/{}\n\x1b]0;owned\x07",
        "long-name/".repeat(14)
    );
    lock.holders[0].task.comm = "\x1b[2J\x1b[31mevil".into();
    lock.waiters[0].task.comm = "a\nheld by  x".into();
    lock.waiters[1].task.comm = "\u{202e}\u{9b}5m\u{200b}字字字".into();
    lock.waiters[2].task.comm = Comm::default();
    survey
}

/// Two locks in a chain, one lock for itself, one with short waits.
pub(crate) fn several_locks() -> Survey {
    let mut survey = write_held_directory();
    let stack = survey.locks[0].holders[0].stack;
    // mkdir[811] holds the directory; stat[820] waits for it and holds an mmap_lock.
    let mut outer = mmap_lock(0xffff_8881_0300_0070, 900, "java");
    outer.state = LockState::WriteHeld;
    outer.reader_count = None;
    outer.holders.push(Holder {
        stuck: Stuck {
            class: StuckClass::Lock,
            frame: Some("lookup_slow".to_owned()),
            since: Some(Nanos(8 * SEC)),
            device: None,
        },
        held: Some(Nanos(9 * SEC)),
        ..holder(task(820, 820, "stat"), LockMode::Write, stack)
    });
    for number in 0..5 {
        outer.waiters.push(waiter(
            number + 1,
            task(900 + number, 900, "java"),
            if number == 3 {
                LockMode::Write
            } else {
                LockMode::Read
            },
            (7 - u64::from(number)) * SEC,
            "do_user_addr_fault",
            stack,
        ));
    }
    let mut alone = inode_lock(0xffff_8881_0400_00a0, "/var/log");
    alone.state = LockState::Inconsistent;
    alone.count = 0xffff_fffe_0000_0000;
    alone.owner = 0x1;
    alone.waiters.push(waiter(
        1,
        task(950, 950, "rsyslogd"),
        LockMode::Write,
        130 * SEC,
        "ext4_buffered_write_iter",
        stack,
    ));
    let mut brief = inode_lock(0xffff_8881_0500_00a0, "/tmp");
    brief.waiters.push(waiter(
        1,
        task(951, 951, "cc1"),
        LockMode::Write,
        2 * MS,
        "filename_create",
        stack,
    ));
    survey.locks.extend([brief, alone, outer]);
    survey.degraded.push(
        "paths of mounts: /proc/1/mountinfo is not read on a hanging host; paths start at the root of their file system"
            .to_owned(),
    );
    survey
}

/// Two tasks that wait for each other, and one that waits for both.
pub(crate) fn cycle() -> Survey {
    let mut survey = write_held_directory();
    let stack = survey.locks[0].holders[0].stack;
    let lock = &mut survey.locks[0];
    lock.waiters.truncate(2);
    let mut other = inode_lock(0xffff_8881_0600_00a0, "/mnt/share/done");
    other
        .holders
        .push(holder(task(820, 820, "stat"), LockMode::Write, stack));
    other.waiters.push(waiter(
        1,
        task(811, 811, "mkdir"),
        LockMode::Write,
        9 * SEC,
        "lock_rename",
        stack,
    ));
    survey.locks.push(other);
    survey
}

/// A holder that waits for a lock whose own holder is unknown.
pub(crate) fn unknown_root() -> Survey {
    let mut survey = several_locks();
    survey.degraded.clear();
    survey
        .locks
        .retain(|lock| lock.state == LockState::WriteHeld);
    survey.locks[0].holders.clear();
    survey
}

/// As [`write_held_directory`], beside a recorder of long holds: four tasks had it before,
/// one of them while others waited already.
pub(crate) fn held_before() -> Survey {
    let mut survey = write_held_directory();
    let rmdir = stack(&mut survey.stacks, &["do_rmdir", "__x64_sys_rmdir"]);
    let lock = &mut survey.locks[0];
    let oldest = lock.oldest_wait().0;
    let hold = |tid, comm, mode, held_ms: u64, ended_ago_ns| RecentHold {
        task: task(tid, tid, comm),
        mode,
        held: Nanos(held_ms * MS),
        ended_ago: Nanos(ended_ago_ns),
        released_in: Some("do_rmdir".to_owned()),
        stack: rmdir,
    };
    lock.recent_holds = vec![
        hold(701, "rsync", LockMode::Write, 80, oldest - 4 * MS),
        RecentHold {
            released_in: None,
            stack: survey.stacks.intern(Vec::new()),
            ..hold(702, "rm\n-rf", LockMode::Write, 61_200, oldest + 300 * MS)
        },
        hold(703, "find", LockMode::Read, 1_250, oldest + 70 * SEC),
        hold(704, "find", LockMode::Read, 12, oldest + 71 * SEC),
    ];
    survey
}
