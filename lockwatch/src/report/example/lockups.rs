//! CPUs that do not go on.

use super::{SEC, holder, mmap_lock, stack, survey, task, waiter};
use crate::{
    lock::{Holder, LockMode, LockState, Stacks},
    lockup::{Context, Lockup, LockupKind, Sharer, Spin, Starved},
    survey::Survey,
    task::{Nanos, Stuck, StuckClass, TaskName, TaskState},
};

fn starved(tid: u32, comm: &str) -> Starved {
    Starved {
        task: task(tid, tid, comm),
        since: Nanos(24 * SEC),
    }
}

fn soft(cpu: u32, task: TaskName, context: Context) -> Lockup {
    Lockup {
        cpu,
        kind: LockupKind::Soft,
        lasted: Nanos(24 * SEC),
        task: Some(task),
        context,
        is_task_interrupted: false,
        program: None,
        profile: Vec::new(),
        samples: 0,
        returns: None,
        starved: vec![starved(20, "migration/3")],
        sharers: Vec::new(),
        unknown: Vec::new(),
    }
}

fn profile(lockup: &mut Lockup, stacks: &mut Stacks, spins: &[(&[&str], u32)]) {
    for &(frames, count) in spins {
        lockup.profile.push(Spin {
            stack: stack(stacks, frames),
            count,
        });
        lockup.samples += count;
    }
}

/// From the function that an interrupt came in, outwards.
const READ: [&str; 5] = [
    "page_cache_ra_unbounded",
    "filemap_read",
    "vfs_read",
    "do_syscall_64",
    "entry_SYSCALL_64_after_hwframe",
];

fn on_top_of_read<'a>(inner: &[&'a str]) -> Vec<&'a str> {
    [
        inner,
        &["handle_softirqs", "__irq_exit_rcu"],
        &[
            "sysvec_apic_timer_interrupt",
            "asm_sysvec_apic_timer_interrupt",
        ],
        &READ,
    ]
    .concat()
}

/// A BPF program spins in a task that has just got its mmap_lock, which others want.
pub(crate) fn soft_lockup_of_task() -> Survey {
    let mut stacks = Stacks::default();
    let outer = [
        "__traceiter_mmap_lock_acquire_returned",
        "__mmap_lock_do_trace_acquire_returned",
        "__mmap_region",
        "do_mmap",
        "vm_mmap_pgoff",
        "do_syscall_64",
        "entry_SYSCALL_64_after_hwframe",
    ];
    let spin = [
        &["bpf_prog_6deef7357e7b4530_spin", "bpf_trace_run3"],
        &outer[..],
    ]
    .concat();
    let helper = [&["bpf_loop"], &spin[..]].concat();
    let read = stack(
        &mut stacks,
        &["rwsem_down_read_slowpath", "down_read", "m_start"],
    );
    let spinner = task(412, 410, "mmap-spin");
    let mut lockup = soft(3, spinner.clone(), Context::Task);
    lockup.program = Some("a BPF program on the tracepoint mmap_lock_acquire_returned".to_owned());
    lockup.starved.push(starved(33, "kworker/3:0"));
    profile(&mut lockup, &mut stacks, &[(&helper, 180), (&spin, 61)]);
    let mut lock = mmap_lock(0xffff_8881_0300_0070, 410, "mmap-spin");
    lock.state = LockState::WriteHeld;
    lock.reader_count = None;
    lock.holders.push(Holder {
        state: TaskState::Running,
        stuck: Stuck {
            class: StuckClass::Running,
            frame: None,
            since: None,
            device: None,
        },
        held: None,
        ..holder(spinner, LockMode::Write, lockup.profile[0].stack)
    });
    for number in 0..12 {
        let reader = task(500 + number, 500 + number, "ps");
        lock.waiters.push(waiter(
            number + 1,
            reader,
            LockMode::Read,
            (23 - u64::from(number)) * SEC,
            "proc_pid_cmdline_read",
            read,
        ));
    }
    let mut survey = survey(vec![lock], stacks);
    survey.lockups = vec![lockup];
    survey
}

/// Soft interrupts of the network do not end, on top of a task that only reads.
pub(crate) fn soft_lockup_in_softirq() -> Survey {
    let mut stacks = Stacks::default();
    let mut lockup = soft(
        1,
        task(77, 77, "cat"),
        Context::Softirq {
            vector: Some("NET_RX".to_owned()),
            callback: Some("process_backlog".to_owned()),
            callbacks: 1,
        },
    );
    lockup.is_task_interrupted = true;
    lockup.unknown = vec!["what it did for 300ms without a sample: that is not counted".to_owned()];
    let inner = ["ip_rcv", "process_backlog", "__napi_poll", "net_rx_action"];
    let deeper = [&["fib_lookup", "ip_route_input_slow"], &inner[..]].concat();
    let spins = [
        (&on_top_of_read(&deeper)[..], 90),
        (&on_top_of_read(&inner)[..], 10),
    ];
    profile(&mut lockup, &mut stacks, &spins);
    let mut survey = survey(Vec::new(), stacks);
    survey.lockups = vec![lockup];
    survey
}

/// More timers have expired than a CPU can serve, on top of its idle task.
pub(crate) fn piled_up_timers() -> Survey {
    let mut stacks = Stacks::default();
    let mut lockup = soft(
        0,
        task(1, 1, "unused"),
        Context::Softirq {
            vector: Some("TIMER".to_owned()),
            callback: Some("tcp_write_timer".to_owned()),
            callbacks: 5,
        },
    );
    lockup.task = None;
    lockup.starved.truncate(1);
    let run = ["call_timer_fn", "__run_timers", "run_timer_softirq"];
    let callbacks = [
        ("tcp_write_timer", 40),
        ("tcp_keepalive_timer", 30),
        ("neigh_timer_handler", 20),
        ("process_timeout", 6),
        ("delayed_work_timer_fn", 4),
    ];
    for (callback, count) in callbacks {
        let inner = [&[callback], &run[..]].concat();
        let idle = [
            &inner[..],
            &["handle_softirqs", "__irq_exit_rcu", "common_interrupt"],
            &["asm_common_interrupt", "cpuidle_enter_state", "do_idle"],
        ];
        profile(&mut lockup, &mut stacks, &[(&idle.concat(), count)]);
    }
    let mut survey = survey(Vec::new(), stacks);
    survey.lockups = vec![lockup];
    survey
}

/// A CPU takes no interrupts, and a task on another one waits for a spinlock.
pub(crate) fn hard_lockup() -> Survey {
    let mut stacks = Stacks::default();
    let mut lockup = soft(2, task(99, 99, "dd"), Context::Unknown);
    lockup.kind = LockupKind::Hard;
    lockup.lasted = Nanos(13 * SEC);
    lockup.starved[0].since = lockup.lasted;
    let last = [
        "blk_mq_submit_bio",
        "submit_bio_noacct",
        "vfs_read",
        "do_syscall_64",
    ];
    profile(&mut lockup, &mut stacks, &[(&last, 1)]);
    lockup.returns = Some(stack(
        &mut stacks,
        &[
            "nvme_queue_rq",
            "blk_mq_dispatch_rq_list",
            "blk_mq_submit_bio",
            "vfs_read",
        ],
    ));
    lockup.sharers = vec![Sharer {
        task: task(120, 120, "kworker/0:1H"),
        cpu: 0,
        address: 0xffff_8881_0b3d_4c80,
        sharer_waits: true,
    }];
    lockup.unknown = vec![
        "where it is now: its registers cannot be read without an NMI, and its samples are from \
         before it stopped"
            .to_owned(),
        "whether an interrupt's handler runs there: the interrupt stack is not read".to_owned(),
    ];
    let mut survey = survey(Vec::new(), stacks);
    survey.lockups = vec![lockup];
    survey
}
