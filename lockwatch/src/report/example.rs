//! Surveys made by hand, for tests of everything that reads one.

mod daemons;
mod directory;
mod hung;
mod incident;
mod lockups;

pub(crate) use daemons::{daemon_in_its_own_directory, idle_daemon};
pub(crate) use directory::{
    cycle, held_before, hostile_comm, several_locks, unknown_root, write_held_directory,
};
pub(crate) use hung::{hung_client, hung_incident, hung_without_locks};
pub(crate) use incident::{
    granted_reader, incident, no_stall, partly_known_readers, several_possible, unknown_holder,
};
pub(crate) use lockups::{
    hard_lockup, piled_up_timers, soft_lockup_in_softirq, soft_lockup_of_task,
};

use crate::{
    detect::{Detectors, Thresholds},
    kernel_log::KernelLog,
    lock::{
        Confidence, Evidence, EvidenceKind, Holder, Lock, LockAddr, LockClass, LockKind, LockMode,
        LockObject, LockState, StackId, Stacks, WaitSource, Waiter,
    },
    report::{Host, Report},
    survey::Survey,
    task::{Nanos, Stuck, StuckClass, TaskKey, TaskName, TaskState, Tgid, Tid},
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
    Report::from_survey(
        survey,
        &host(),
        Thresholds::of_waits(Nanos(threshold_ns)),
        &Detectors::default(),
    )
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
        sleepers: Vec::new(),
        lockups: Vec::new(),
        kernel_log: KernelLog::default(),
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
        comm: comm.into(),
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
        recent_holds: Vec::new(),
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
