//! Surveys with hanging tasks.

use super::{MS, SEC, idle_daemon, incident, stack, survey, task};
use crate::{
    lock::{StackId, Stacks},
    sleeper::{Awaited, Queue, QueueKind, Sleeper},
    survey::Survey,
    task::{BlockDevice, Nanos, Stuck, StuckClass, TaskName},
};

fn sleeper(task: TaskName, asleep: u64, awaits: Awaited, stack: StackId) -> Sleeper {
    Sleeper {
        task,
        killable: false,
        io_wait: false,
        asleep: Nanos(asleep),
        awaits,
        stuck: Stuck {
            class: StuckClass::Unknown,
            frame: None,
            since: Some(Nanos(asleep)),
            device: None,
        },
        stack,
    }
}

/// The incident after two minutes: those who wait hang, and the holder for the device; and
/// one that has only begun to.
pub(crate) fn hung_incident() -> Survey {
    let mut survey = incident();
    let lock = &survey.locks[0];
    let awaits = Awaited::Lock(lock.address);
    let waiters = lock.waiters.iter();
    let mut sleepers: Vec<Sleeper> = waiters
        .map(|waiter| Sleeper {
            killable: waiter.killable,
            ..sleeper(
                waiter.task.clone(),
                waiter.wait.0,
                awaits.clone(),
                waiter.stack,
            )
        })
        .collect();
    let holder = &lock.holders[0];
    sleepers.push(Sleeper {
        io_wait: true,
        stuck: holder.stuck.clone(),
        ..sleeper(
            holder.task.clone(),
            373 * SEC,
            Awaited::Device("nvme0n1".to_owned()),
            holder.stack,
        )
    });
    survey.sleepers = sleepers;
    survey
}

/// Nobody waits for a lock: twelve tasks hang on a device, two on a completion, and one
/// nobody knows on what.
pub(crate) fn hung_without_locks() -> Survey {
    let mut stacks = Stacks::default();
    let read = stack(
        &mut stacks,
        &[
            "folio_wait_bit_common",
            "filemap_get_pages",
            "filemap_read",
            "vfs_read",
            "do_syscall_64",
        ],
    );
    let flush = stack(
        &mut stacks,
        &["nvme_reset_work", "process_one_work", "kthread"],
    );
    let mut survey = survey(Vec::new(), stacks);
    let device = Awaited::Device("nvme0n1".to_owned());
    for number in 0..12_u32 {
        let comm = ["postgres", "cp", "jbd2/nvme0n1-8"][number as usize % 3];
        let asleep = 372 * SEC - u64::from(number) * 900 * MS;
        survey.sleepers.push(Sleeper {
            killable: comm == "cp",
            io_wait: true,
            stuck: Stuck {
                class: StuckClass::BlockIo,
                frame: Some("folio_wait_bit_common".to_owned()),
                since: Some(Nanos(asleep)),
                device: Some(BlockDevice {
                    name: "nvme0n1".to_owned(),
                    in_flight: Some(31),
                }),
            },
            ..sleeper(
                task(800 + number, 800 + number, comm),
                asleep,
                device.clone(),
                read,
            )
        });
    }
    let queue = Awaited::Queue(Queue {
        kind: QueueKind::Completion,
        address: 0xffff_8881_0900_0040,
        bit: 0,
        function: "nvme_reset_work".to_owned(),
    });
    for tid in [77, 78] {
        let worker = task(tid, tid, "kworker/u8:3");
        survey
            .sleepers
            .push(sleeper(worker, 190 * SEC, queue.clone(), flush));
    }
    let unknown = Awaited::Function("nvme_reset_work".to_owned());
    survey.sleepers.push(sleeper(
        task(79, 79, "kworker/u8:4"),
        130 * SEC,
        unknown,
        flush,
    ));
    // It has not hung for two minutes.
    survey
        .sleepers
        .push(sleeper(task(80, 80, "sync"), 119 * SEC, device, read));
    survey
}

/// A client of a FUSE daemon that has been killed, and cannot die.
pub(crate) fn hung_client() -> Survey {
    let mut survey = idle_daemon();
    survey.locks.clear();
    let daemon = &mut survey.daemons[0];
    let client = &mut daemon.clients[0];
    client.killable = false;
    let awaits = Awaited::Fuse(daemon.connection);
    let hung = Sleeper {
        stuck: Stuck {
            class: StuckClass::Fuse,
            frame: Some("request_wait_answer".to_owned()),
            since: Some(Nanos(200 * SEC)),
            device: None,
        },
        ..sleeper(client.task.clone(), 200 * SEC, awaits, client.stack)
    };
    survey.sleepers.push(hung);
    survey
}
