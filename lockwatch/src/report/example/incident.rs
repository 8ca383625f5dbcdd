//! The incident, and surveys like it.

use super::{MS, SEC, holder, mmap_lock, stack, survey, task, waiter};
use crate::{
    lock::{Confidence, Evidence, EvidenceKind, Holder, LockMode, Stacks, Waiter},
    survey::Survey,
    task::{BlockDevice, Nanos, Stuck, StuckClass, TaskState},
};

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
