//! Surveys made by hand, for tests of everything that reads one.

mod daemons;

pub(crate) use daemons::{daemon_in_its_own_directory, idle_daemon};

use crate::{
    detect::Detectors,
    lock::{
        Confidence, Evidence, EvidenceKind, Holder, Lock, LockAddr, LockClass, LockKind, LockMode,
        LockObject, LockState, StackId, Stacks, WaitSource, Waiter,
    },
    report::{Host, Report},
    survey::Survey,
    task::{BlockDevice, Nanos, Stuck, StuckClass, TaskKey, TaskName, TaskState, Tgid, Tid},
};

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SEC: u64 = 1_000_000_000;

pub(crate) fn host() -> Host {
    Host {
        hostname: "db7".to_owned(),
        kernel: "6.12.9-amd64".to_owned(),
        arch: "x86_64".to_owned(),
        boot_id: Some("6b1f0e7a-5a34-4c1e-9d53-0c4a7c9be201".to_owned()),
    }
}

/// The report of a survey; waits of `threshold_ns` and longer are stalls.
pub(crate) fn report(survey: &Survey, threshold_ns: u64) -> Report {
    Report::from_survey(survey, &host(), Nanos(threshold_ns), &Detectors::default())
}

pub(crate) fn survey(locks: Vec<Lock>, stacks: Stacks) -> Survey {
    Survey {
        taken_at: "2026-03-01T03:12:09.25Z".parse().unwrap(),
        taken_at_ns: 90_000 * SEC,
        duration: Nanos(96 * MS),
        paused: Nanos(50_000_000),
        looks: 2,
        task_count: 1_552,
        degraded: Vec::new(),
        locks,
        daemons: Vec::new(),
        stacks,
    }
}

pub(crate) fn task(tid: u32, tgid: u32, comm: &str) -> TaskName {
    TaskName {
        key: TaskKey {
            tid: Tid(tid),
            start_ns: u64::from(tid) * MS,
        },
        tgid: Tgid(tgid),
        comm: comm.to_owned(),
    }
}

pub(crate) fn stack(stacks: &mut Stacks, frames: &[&str]) -> StackId {
    stacks.intern(frames.iter().map(|frame| format!("{frame}+0x1f")).collect())
}

pub(crate) fn holder(task: TaskName, mode: LockMode, stack: StackId) -> Holder {
    Holder {
        task,
        mode,
        confidence: Confidence::Certain,
        evidence: vec![Evidence {
            kind: match mode {
                LockMode::Write => EvidenceKind::WriterOwner,
                LockMode::Read => EvidenceKind::HoldFrame,
            },
            frame: None,
            value: None,
        }],
        stood: true,
        cgroup: None,
        state: TaskState::Uninterruptible,
        stuck: Stuck {
            class: StuckClass::BlockIo,
            frame: Some("folio_wait_bit_common".to_owned()),
            since: Some(Nanos(5 * SEC)),
            device: None,
        },
        held: Some(Nanos(5 * SEC)),
        held_is_lower_bound: true,
        stack,
    }
}

pub(crate) fn waiter(
    position: u32,
    task: TaskName,
    mode: LockMode,
    wait_ns: u64,
    caller: &str,
    stack: StackId,
) -> Waiter {
    Waiter {
        task,
        position,
        mode,
        wait: Nanos(wait_ns),
        wait_source: WaitSource::LastArrival,
        killable: false,
        granted: false,
        state: TaskState::Uninterruptible,
        caller: Some(caller.to_owned()),
        stack,
    }
}

pub(crate) fn mmap_lock(address: u64, tgid: u32, comm: &str) -> Lock {
    Lock {
        address: LockAddr(address),
        kind: LockKind::Rwsem,
        class: LockClass::MmapLock,
        name: format!("mmap_lock of {comm}[{tgid}]"),
        object: Some(LockObject::Mm {
            mm: address - 0x70,
            owner: Some((Tgid(tgid), comm.to_owned())),
        }),
        state: LockState::ReadHeld,
        reader_count: Some(1),
        count: 0x102,
        count_is_signed: false,
        owner: 0x3,
        holders: Vec::new(),
        waiters: Vec::new(),
        spinners: Vec::new(),
        by_priority: false,
        first_was_overtaken: false,
        note: None,
    }
}

pub(crate) fn inode_lock(address: u64, path: &str) -> Lock {
    Lock {
        class: LockClass::InodeRwsem,
        name: format!("i_rwsem of {path} (ext4, nvme0n1p2)"),
        object: Some(LockObject::Inode {
            inode: address - 0xa0,
            fstype: "ext4".to_owned(),
            sb: "nvme0n1p2".to_owned(),
            ino: 131_074,
            path: Some(path.to_owned()),
        }),
        state: LockState::WriteHeld,
        reader_count: None,
        count: 0x3,
        owner: 0xffff_8881_0b3d_4c80,
        ..mmap_lock(address, 1, "unused")
    }
}

/// The incident that lockwatch was made for: a thread of filebeat holds its mmap_lock
/// for read in a page fault that waits for a block device, another one wants it for
/// write, and 1,468 readers of /proc/4424/cmdline queue behind that.
pub(crate) fn incident() -> Survey {
    let mut stacks = Stacks::default();
    let fault = stack(
        &mut stacks,
        &[
            "__schedule",
            "io_schedule",
            "bt_get",
            "blk_mq_get_tag",
            "__blk_mq_alloc_request",
            "blk_mq_map_request",
            "blk_mq_make_request",
            "generic_make_request",
            "submit_bio",
            "ext4_mpage_readpages",
            "ext4_readpages",
            "__do_page_cache_readahead",
            "ra_submit",
            "filemap_fault",
            "ext4_filemap_fault",
            "__do_fault",
            "do_read_fault",
            "handle_mm_fault",
            "__do_page_fault",
            "do_page_fault",
            "page_fault",
        ],
    );
    let write = stack(
        &mut stacks,
        &[
            "__schedule",
            "schedule",
            "rwsem_down_write_slowpath",
            "down_write_killable",
            "vm_mmap_pgoff",
            "do_syscall_64",
        ],
    );
    let read = stack(
        &mut stacks,
        &[
            "__schedule",
            "schedule",
            "rwsem_down_read_slowpath",
            "down_read",
            "__access_remote_vm",
            "proc_pid_cmdline_read",
            "vfs_read",
            "do_syscall_64",
        ],
    );
    let mut lock = mmap_lock(0xffff_8881_4a2b_c070, 4_424, "filebeat");
    lock.count = -4_294_967_295_i64 as u64;
    lock.count_is_signed = true;
    lock.holders.push(Holder {
        evidence: vec![Evidence {
            kind: EvidenceKind::FaultFlags,
            frame: Some("handle_mm_fault".to_owned()),
            value: Some("0xa74: TRIED, no VMA lock".to_owned()),
        }],
        stuck: Stuck {
            class: StuckClass::BlockIo,
            frame: Some("blk_mq_get_tag".to_owned()),
            since: Some(Nanos(373 * SEC)),
            device: Some(BlockDevice {
                name: "nvme0n1".to_owned(),
                in_flight: Some(0),
            }),
        },
        held: Some(Nanos(373 * SEC)),
        ..holder(task(4_442, 4_424, "filebeat"), LockMode::Read, fault)
    });
    lock.waiters.push(waiter(
        1,
        task(4_431, 4_424, "filebeat"),
        LockMode::Write,
        372 * SEC + 400 * MS,
        "vm_mmap_pgoff",
        write,
    ));
    let kinds = [("top", 31), ("ps", 12), ("pgrep", 9), ("node_exporter", 2)];
    let rare = kinds
        .iter()
        .flat_map(|&(comm, count)| std::iter::repeat_n(comm, count));
    for (number, comm) in rare
        .chain(std::iter::repeat("collectd"))
        .take(1_468)
        .enumerate()
    {
        let number = u32::try_from(number).unwrap();
        let mut reader = waiter(
            number + 2,
            task(10_000 + number, 10_000 + number, comm),
            LockMode::Read,
            371 * SEC - u64::from(number) * 200 * MS,
            "proc_pid_cmdline_read",
            read,
        );
        reader.killable = comm == "top";
        lock.waiters.push(reader);
    }
    survey(vec![lock], stacks)
}

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

/// The incident without a name for its holder.
pub(crate) fn unknown_holder() -> Survey {
    let mut survey = incident();
    survey.locks[0].holders.clear();
    survey.locks[0].waiters.truncate(8);
    survey
}

/// Three readers hold the lock, one is known.
pub(crate) fn partly_known_readers() -> Survey {
    let mut survey = incident();
    let lock = &mut survey.locks[0];
    lock.reader_count = Some(3);
    lock.count = 0x302;
    lock.holders[0].confidence = Confidence::Likely;
    lock.waiters.truncate(40);
    survey
}

/// Nobody can be named, but seven tasks have something to do with the lock.
pub(crate) fn several_possible() -> Survey {
    let mut survey = incident();
    let lock = &mut survey.locks[0];
    lock.waiters.truncate(3);
    let stack = lock.holders[0].stack;
    lock.holders = (0..7)
        .map(|number| Holder {
            confidence: Confidence::Possible,
            evidence: vec![Evidence {
                kind: EvidenceKind::ObjectWord,
                frame: Some("__futex_wait+0x7d".to_owned()),
                value: None,
            }],
            state: TaskState::Interruptible,
            stuck: Stuck {
                class: StuckClass::Unknown,
                frame: (number % 2 == 0).then(|| "__futex_wait".to_owned()),
                since: None,
                device: None,
            },
            ..holder(
                task(4_450 + number, 4_424, "filebeat"),
                LockMode::Read,
                stack,
            )
        })
        .collect();
    survey
}

/// The holder was granted the lock in the queue and gets no CPU.
pub(crate) fn granted_reader() -> Survey {
    let mut survey = incident();
    let lock = &mut survey.locks[0];
    lock.waiters.truncate(6);
    let granted = lock.waiters.remove(1);
    let stack = granted.stack;
    lock.holders = vec![Holder {
        evidence: vec![Evidence {
            kind: EvidenceKind::Granted,
            frame: None,
            value: None,
        }],
        state: TaskState::Runnable,
        cgroup: Some("/system.slice/collectd.service".to_owned()),
        stuck: Stuck {
            class: StuckClass::Runnable,
            frame: None,
            since: Some(Nanos(12 * SEC)),
            device: None,
        },
        held: Some(Nanos(12 * SEC)),
        ..holder(granted.task.clone(), LockMode::Read, stack)
    }];
    lock.waiters.push(Waiter {
        position: 6,
        granted: true,
        ..granted
    });
    for (position, waiter) in (1..).zip(lock.waiters.iter_mut()) {
        waiter.position = position;
    }
    survey
}

/// Every wait is short.
pub(crate) fn no_stall() -> Survey {
    let mut survey = incident();
    let lock = &mut survey.locks[0];
    lock.waiters.truncate(4);
    for waiter in &mut lock.waiters {
        waiter.wait = Nanos(3 * MS);
    }
    survey
}

/// Names that want to be obeyed by the terminal, or to look like the report.
pub(crate) fn hostile_comm() -> Survey {
    let mut survey = write_held_directory();
    let lock = &mut survey.locks[0];
    lock.name = format!(
        "i_rwsem of /tmp/{}\n\x1b]0;owned\x07",
        "long-name/".repeat(14)
    );
    lock.holders[0].task.comm = "\x1b[2J\x1b[31mevil".to_owned();
    lock.waiters[0].task.comm = "a\nheld by  x".to_owned();
    lock.waiters[1].task.comm = "\u{202e}\u{9b}5m\u{200b}字字字".to_owned();
    lock.waiters[2].task.comm = String::new();
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
