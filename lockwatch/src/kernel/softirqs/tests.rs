//! Stacks as kernels of these versions have them, by their sources; innermost first.

use super::*;

/// From where an interrupt came in a task, outwards.
const TASK: [&str; 4] = [
    "filemap_read",
    "vfs_read",
    "do_syscall_64",
    "entry_SYSCALL_64_after_hwframe",
];

/// How soft interrupts are entered at the end of an interrupt.
const V5_10: [&str; 7] = [
    "__softirqentry_text_start",
    "asm_call_irq_on_stack",
    "do_softirq_own_stack",
    "irq_exit_rcu",
    "sysvec_apic_timer_interrupt",
    "asm_sysvec_apic_timer_interrupt",
    "_raw_spin_unlock_irqrestore",
];
const V6_1: [&str; 4] = [
    "__do_softirq",
    "__irq_exit_rcu",
    "sysvec_apic_timer_interrupt",
    "asm_sysvec_apic_timer_interrupt",
];
const V6_12: [&str; 4] = [
    "handle_softirqs",
    "__irq_exit_rcu",
    "common_interrupt",
    "asm_common_interrupt",
];
/// By a task that enables them again.
const BH_ENABLED: [&str; 4] = [
    "handle_softirqs",
    "do_softirq",
    "__local_bh_enable_ip",
    "__dev_queue_xmit",
];
/// In their thread, from 6.9 on.
const KSOFTIRQD: [&str; 5] = [
    "handle_softirqs",
    "run_ksoftirqd",
    "smpboot_thread_fn",
    "kthread",
    "ret_from_fork",
];
/// With `PREEMPT_RT`, in the thread of an interrupt.
const RT_IRQ_THREAD: [&str; 6] = [
    "handle_softirqs",
    "__do_softirq",
    "__local_bh_enable_ip",
    "irq_forced_thread_fn",
    "irq_thread",
    "kthread",
];
/// With `PREEMPT_RT`, timers have a thread of their own from 6.13 on.
const RT_KTIMERS: [&str; 5] = [
    "handle_softirqs",
    "__do_softirq",
    "run_ktimerd",
    "smpboot_thread_fn",
    "kthread",
];

/// Vector and callback of the soft interrupt with these functions, however it was entered.
fn vector_and_callback(
    inner: &[&'static str],
    entry: &[&'static str],
) -> (Option<&'static str>, Option<&'static str>) {
    let stems = [inner, entry, &TASK].concat();
    match what_runs(&stems) {
        Some(Ran::Softirq { vector, callback }) => (vector, callback.map(|at| stems[at])),
        other => panic!("{stems:?}: {other:?}"),
    }
}

#[test]
fn a_vector_is_told_by_what_it_runs_and_the_callback_by_who_calls_it() {
    let cases: [(&str, &str, &[&str]); 24] = [
        (
            "TIMER",
            "tcp_write_timer",
            &[
                "tcp_retransmit_timer",
                "tcp_write_timer",
                "call_timer_fn",
                "__run_timers",
                "run_timer_softirq",
            ],
        ),
        (
            "TIMER",
            "process_timeout",
            &[
                "process_timeout",
                "call_timer_fn",
                "expire_timers",
                "run_timer_softirq",
            ],
        ),
        (
            "TIMER",
            "delayed_work_timer_fn",
            &[
                "delayed_work_timer_fn",
                "call_timer_fn",
                "__run_timers",
                "run_timer_base",
                "run_timer_softirq",
            ],
        ),
        (
            "TIMER",
            "neigh_timer_handler",
            &[
                "neigh_timer_handler",
                "call_timer_fn",
                "__run_timers",
                "timer_expire_remote",
                "tmigr_handle_remote_cpu",
                "tmigr_handle_remote_up",
                "__walk_groups",
                "tmigr_handle_remote",
                "run_timer_softirq",
            ],
        ),
        // Inlined, or called last.
        (
            "TIMER",
            "neigh_timer_handler",
            &["neigh_timer_handler", "__run_timers"],
        ),
        (
            "NET_RX",
            "e1000_clean",
            &["napi_gro_receive", "e1000_clean", "net_rx_action"],
        ),
        (
            "NET_RX",
            "process_backlog",
            &[
                "ip_rcv",
                "__netif_receive_skb",
                "process_backlog",
                "__napi_poll",
                "net_rx_action",
            ],
        ),
        (
            "NET_RX",
            "virtnet_poll",
            &["virtnet_poll", "napi_poll", "net_rx_action"],
        ),
        (
            "NET_TX",
            "__qdisc_run",
            &["sch_direct_xmit", "__qdisc_run", "net_tx_action"],
        ),
        (
            "TASKLET",
            "tg3_reset",
            &["tg3_reset", "tasklet_action_common", "tasklet_action"],
        ),
        (
            "HI",
            "snd_timer",
            &["snd_timer", "tasklet_action_common", "tasklet_hi_action"],
        ),
        (
            "TASKLET",
            "usb_giveback_urb_bh",
            &[
                "usb_giveback_urb_bh",
                "process_one_work",
                "process_scheduled_works",
                "bh_worker",
                "workqueue_softirq_action",
                "tasklet_action",
            ],
        ),
        (
            "BLOCK",
            "nvme_pci_complete_rq",
            &[
                "nvme_pci_complete_rq",
                "blk_complete_reqs",
                "blk_done_softirq",
            ],
        ),
        (
            "BLOCK",
            "scsi_complete",
            &["scsi_complete", "blk_done_softirq"],
        ),
        ("IRQ_POLL", "nvme_poll", &["nvme_poll", "irq_poll_softirq"]),
        (
            "SCHED",
            "rebalance_domains",
            &["load_balance", "rebalance_domains", "run_rebalance_domains"],
        ),
        (
            "SCHED",
            "sched_balance_domains",
            &[
                "sched_balance_rq",
                "sched_balance_domains",
                "sched_balance_softirq",
            ],
        ),
        (
            "HRTIMER",
            "xfrm_timer_handler",
            &[
                "xfrm_timer_handler",
                "__hrtimer_run_queues",
                "hrtimer_run_softirq",
            ],
        ),
        (
            "RCU",
            "file_free_rcu",
            &[
                "kmem_cache_free",
                "file_free_rcu",
                "rcu_do_batch",
                "rcu_core",
                "rcu_core_si",
            ],
        ),
        (
            "RCU",
            "inode_free_by_rcu",
            &["inode_free_by_rcu", "rcu_do_batch", "rcu_core"],
        ),
        (
            "NET_RX",
            "gro_cell_poll",
            &["gro_cell_poll", "__napi_poll", "net_rx_action"],
        ),
        (
            "NET_RX",
            "mlx5e_napi_poll",
            &[
                "bpf_prog_6deef7357e7b4530_xdp",
                "mlx5e_xdp_handle",
                "mlx5e_napi_poll",
                "__napi_poll",
                "net_rx_action",
            ],
        ),
        (
            "TIMER",
            "mce_timer_fn",
            &[
                "mce_timer_fn",
                "call_timer_fn",
                "__run_timers",
                "__run_timer_base",
                "run_timer_softirq",
            ],
        ),
        (
            "RCU",
            "delayed_put_task_struct",
            &[
                "delayed_put_task_struct",
                "rcu_do_batch",
                "rcu_core",
                "rcu_core_si",
            ],
        ),
    ];
    for (vector, callback, inner) in cases {
        for entry in [
            &V5_10[..],
            &V6_1,
            &V6_12,
            &BH_ENABLED,
            &KSOFTIRQD,
            &RT_IRQ_THREAD,
            &RT_KTIMERS,
        ] {
            let told = vector_and_callback(inner, entry);
            assert_eq!(told, (Some(vector), Some(callback)), "{inner:?} {entry:?}");
        }
    }
}

#[test]
fn what_is_not_told_is_not_made_up() {
    // The common part of both kinds of tasklets, called last.
    let common = ["tg3_reset", "tasklet_action_common"];
    assert_eq!(
        vector_and_callback(&common, &V6_12),
        (None, Some("tg3_reset"))
    );
    // It takes a lock, or does not call anything.
    let locked = [
        "native_queued_spin_lock_slowpath",
        "_raw_spin_lock_irq",
        "__run_timers",
        "run_timer_softirq",
    ];
    assert_eq!(vector_and_callback(&locked, &V6_12), (Some("TIMER"), None));
    assert_eq!(
        vector_and_callback(&["net_rx_action"], &V6_12),
        (Some("NET_RX"), None)
    );
    assert_eq!(vector_and_callback(&[], &V6_12), (None, None));
    // A callback without a name.
    let loaded_later = ["", "call_timer_fn", "__run_timers", "run_timer_softirq"];
    assert_eq!(
        vector_and_callback(&loaded_later, &V6_12),
        (Some("TIMER"), None)
    );
    // A BPF program is named otherwise.
    let traced = [
        "",
        "bpf_trace_run1",
        "__traceiter_napi_poll",
        "__napi_poll",
        "net_rx_action",
    ];
    assert_eq!(vector_and_callback(&traced, &V6_12), (Some("NET_RX"), None));
    assert_eq!(what_runs(&[]), None);
}

#[test]
fn a_task_is_a_task_even_where_it_has_just_been_interrupted() {
    assert_eq!(what_runs(&TASK), Some(Ran::Task));
    // In a fault, as a thread for RCU's callbacks, and on the way out of an interrupt.
    let fault = [
        "clear_page_erms",
        "handle_mm_fault",
        "exc_page_fault",
        "asm_exc_page_fault",
    ];
    let rcuc = [
        "file_free_rcu",
        "rcu_do_batch",
        "rcu_core",
        "rcu_cpu_kthread",
        "smpboot_thread_fn",
        "kthread",
    ];
    let leaving = [
        "__schedule",
        "preempt_schedule_irq",
        "irqentry_exit",
        "sysvec_apic_timer_interrupt",
        "asm_sysvec_apic_timer_interrupt",
        "filemap_read",
    ];
    let signal = [
        "get_signal",
        "exit_to_user_mode_loop",
        "irqentry_exit_to_user_mode",
        "asm_sysvec_reschedule_ipi",
    ];
    for stems in [&fault[..], &rcuc, &leaving, &signal] {
        assert_eq!(what_runs(stems), Some(Ran::Task), "{stems:?}");
    }
}

#[test]
fn an_interrupt_is_told_by_its_handler_or_its_entry() {
    let handler = |inner: &[&'static str]| {
        let stems = [inner, &TASK].concat();
        match what_runs(&stems) {
            Some(Ran::Interrupt { handler }) => handler,
            other => panic!("{stems:?}: {other:?}"),
        }
    };
    let device = [
        "nvme_irq",
        "__handle_irq_event_percpu",
        "handle_irq_event",
        "handle_edge_irq",
        "__common_interrupt",
        "common_interrupt",
        "asm_common_interrupt",
    ];
    assert_eq!(handler(&device), Some("nvme_irq"));
    let timer = [
        "tick_sched_timer",
        "__hrtimer_run_queues",
        "hrtimer_interrupt",
        "__sysvec_apic_timer_interrupt",
        "asm_call_sysvec_on_stack",
        "sysvec_apic_timer_interrupt",
        "asm_sysvec_apic_timer_interrupt",
    ];
    assert_eq!(handler(&timer), Some("tick_sched_timer"));
    let call = [
        "flush_tlb_func",
        "__flush_smp_call_function_queue",
        "__sysvec_call_function",
        "sysvec_call_function",
        "asm_sysvec_call_function",
    ];
    assert_eq!(handler(&call), Some("flush_tlb_func"));
    let bare = ["sysvec_irq_work", "asm_sysvec_irq_work"];
    assert_eq!(handler(&bare), Some("sysvec_irq_work"));
    // One that came in the middle of soft interrupts.
    let nested = [&device[..], &["process_backlog", "net_rx_action"], &V6_12].concat();
    assert_eq!(handler(&nested), Some("nvme_irq"));
}

#[test]
fn a_bpf_program_is_told_by_what_called_it() {
    let on = |stems: &[&str]| bpf_program(stems);
    let tracepoint = "a BPF program on the tracepoint mmap_lock_acquire_returned";
    let named = [
        "bpf_loop",
        "bpf_prog_6deef7357e7b4530_spin",
        "bpf_trace_run3",
        "__traceiter_mmap_lock_acquire_returned",
        "vm_mmap_pgoff",
    ];
    assert_eq!(on(&named).as_deref(), Some(tracepoint));
    let loaded_later = [
        "",
        "bpf_trace_run3",
        "__bpf_trace_mmap_lock_acquire_returned",
        "vm_mmap_pgoff",
    ];
    assert_eq!(on(&loaded_later).as_deref(), Some(tracepoint));
    let direct = [
        "",
        "bpf_trace_run3",
        "__mmap_lock_do_trace_acquire_returned",
        "vm_mmap_pgoff",
    ];
    let called = "a BPF program that __mmap_lock_do_trace_acquire_returned calls";
    assert_eq!(on(&direct).as_deref(), Some(called));
    let filter = [
        "bpf_prog_6deef7357e7b4530_drop",
        "tcf_classify",
        "process_backlog",
    ];
    assert_eq!(
        on(&filter).as_deref(),
        Some("a BPF program that tcf_classify calls")
    );
    for none in [
        &TASK[..],
        &["bpf_prog_put", "__sys_bpf"],
        &["", "call_timer_fn"],
    ] {
        assert_eq!(on(none), None, "{none:?}");
    }
}

#[test]
fn threads_that_run_soft_interrupts_are_known_by_their_names() {
    assert!(is_softirq_thread("ksoftirqd/3") && is_softirq_thread("ktimers/0"));
    assert!(!is_softirq_thread("kworker/3:1") && !is_softirq_thread("cat"));
}
