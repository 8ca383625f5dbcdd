//! What a CPU runs, by the functions on its stack: the task, soft interrupts or an
//! interrupt's handler; and whether a BPF program runs in that.
//!
//! From kernel/softirq.c, kernel/time/timer.c, kernel/time/timer_migration.c,
//! kernel/time/hrtimer.c, net/core/dev.c, block/blk-mq.c, lib/irq_poll.c,
//! kernel/sched/fair.c, kernel/rcu/tree.c, kernel/workqueue.c, kernel/smp.c,
//! kernel/irq_work.c, kernel/irq/handle.c and arch/x86/include/asm/idtentry.h of 5.10 to
//! 7.3. A dispatcher that is missing here is taken for what it calls, never for a task.

/// What a CPU runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ran<'a> {
    /// Its task.
    Task,
    /// Soft interrupts.
    Softirq {
        /// Which, as /proc/softirqs spells it.
        vector: Option<&'static str>,
        /// Index of the frame of the function that the vector runs.
        callback: Option<usize>,
    },
    /// An interrupt's handler: its function, or the name of the interrupt's entry.
    Interrupt {
        /// The function.
        handler: Option<&'a str>,
    },
}

/// Runs whatever soft interrupts are pending. Before 6.9 there is no `handle_softirqs`, and
/// `__do_softirq` has a second name at the same address. With `PREEMPT_RT` they run in
/// ksoftirqd, in ktimers (6.13+), and in any task that enables them again.
const SOFTIRQS: &[&str] = &[
    "handle_softirqs",
    "__do_softirq",
    "__softirqentry_text_start",
    "run_ksoftirqd",
    "run_ktimerd",
];

/// Kernel threads that run soft interrupts: what runs there is their own work.
const SOFTIRQ_THREADS: &[&str] = &["ksoftirqd/", "ktimers/", "ktimersoftd/"];

/// The functions between `handle_softirqs` and what a vector runs, which tell the vector.
const VECTORS: &[(&str, &[&str])] = &[
    ("HI", &["tasklet_hi_action"]),
    (
        "TIMER",
        &[
            "run_timer_softirq",
            "run_timer_base",
            "__run_timer_base",
            "__run_timers",
            "expire_timers",
            "call_timer_fn",
            // Timers of CPUs that are idle (6.9+).
            "tmigr_handle_remote",
            "tmigr_handle_remote_up",
            "tmigr_handle_remote_cpu",
            "__walk_groups",
            "__walk_groups_from",
            "timer_expire_remote",
        ],
    ),
    ("NET_TX", &["net_tx_action"]),
    ("NET_RX", &["net_rx_action", "napi_poll", "__napi_poll"]),
    ("BLOCK", &["blk_done_softirq", "blk_complete_reqs"]),
    ("IRQ_POLL", &["irq_poll_softirq"]),
    ("TASKLET", &["tasklet_action"]),
    // Renamed in 6.10.
    ("SCHED", &["run_rebalance_domains", "sched_balance_softirq"]),
    ("HRTIMER", &["hrtimer_run_softirq", "__hrtimer_run_queues"]),
    ("RCU", &["rcu_core_si", "rcu_core", "rcu_do_batch"]),
];

/// The same, of tasklets of either priority. Work of bottom halves (6.9+) is among them.
const TASKLETS: &[&str] = &[
    "tasklet_action_common",
    "workqueue_softirq_action",
    "bh_worker",
    "process_scheduled_works",
    "process_one_work",
];

/// Entries of interrupts that begin otherwise than [`INTERRUPT_PREFIXES`]; some are from
/// before 5.8, or of 5.10 alone (`asm_call_*`).
const INTERRUPTS: &[&str] = &[
    "asm_common_interrupt",
    "common_interrupt",
    "__common_interrupt",
    "asm_call_irq_on_stack",
    "asm_call_sysvec_on_stack",
    "asm_exc_nmi",
    "exc_nmi",
    "asm_fred_entry_from_kvm",
    "fred_extint",
    "do_IRQ",
    "apic_timer_interrupt",
    "smp_apic_timer_interrupt",
];

const INTERRUPT_PREFIXES: &[&str] = &["asm_sysvec_", "sysvec_", "__sysvec_"];

/// The way out of an interrupt: what runs there is the task's own doing, or the scheduler's.
const LEAVING: &[&str] = &[
    "irqentry_exit",
    "irqentry_exit_cond_resched",
    "raw_irqentry_exit_cond_resched",
    "irqentry_exit_to_user_mode",
    "exit_to_user_mode_loop",
    "exit_to_user_mode_prepare",
    "prepare_exit_to_usermode",
    "preempt_schedule_irq",
];

/// The functions between an interrupt's entry and its handler.
const TO_HANDLERS: &[&str] = &[
    "run_irq_on_irqstack_cond",
    "handle_irq",
    "generic_handle_irq",
    "generic_handle_irq_desc",
    "handle_edge_irq",
    "handle_fasteoi_irq",
    "handle_level_irq",
    "handle_simple_irq",
    "handle_irq_event",
    "handle_irq_event_percpu",
    "__handle_irq_event_percpu",
    "local_apic_timer_interrupt",
    "hrtimer_interrupt",
    "__hrtimer_run_queues",
    "generic_smp_call_function_interrupt",
    "generic_smp_call_function_single_interrupt",
    "flush_smp_call_function_queue",
    "__flush_smp_call_function_queue",
    "csd_do_func",
    "irq_work_run",
    "irq_work_run_list",
    "irq_work_single",
];

/// What a function calls to take a spinlock or to be traced: never a callback.
const ON_THE_WAY: &[&str] = &[
    "_raw_",
    "native_queued_",
    "__pv_queued_",
    "pv_queued_",
    "queued_",
    "do_raw_",
    "rt_spin_",
    "rcu_read_",
    "trace_",
    "__x86_indirect_",
    "srso_",
];

/// Calls BPF programs.
const BPF_CALLERS: &[&str] = &[
    "bpf_trace_run",
    "trace_call_bpf",
    "bpf_trampoline_",
    "__bpf_prog_run",
    "bpf_prog_run",
    "bpf_dispatcher_",
    "bpf_overflow_handler",
];

/// Calls the probes of a tracepoint; its name follows.
const TRACEPOINTS: &[&str] = &["__traceiter_", "__bpf_trace_"];

/// Whether a task, by its name, is a kernel thread that runs soft interrupts.
pub fn is_softirq_thread(comm: &str) -> bool {
    SOFTIRQ_THREADS.iter().any(|start| comm.starts_with(start))
}

/// What a CPU runs, by the stems of the functions on its stack, innermost first; empty ones
/// are not known. `None` for an empty stack.
pub fn what_runs<'a>(stems: &[&'a str]) -> Option<Ran<'a>> {
    if stems.is_empty() {
        return None;
    }
    let entry = stems
        .iter()
        .position(|stem| SOFTIRQS.contains(stem) || is_interrupt(stem));
    let Some(entry) = entry else {
        return Some(Ran::Task);
    };
    let inner = &stems[..entry];
    Some(if SOFTIRQS.contains(&stems[entry]) {
        softirq(inner)
    } else if inner.iter().any(|stem| LEAVING.contains(stem)) {
        Ran::Task
    } else {
        let entry = name_of_interrupt(stems[entry]);
        Ran::Interrupt {
            handler: Some(called(inner, |stem| TO_HANDLERS.contains(&stem)).unwrap_or(entry)),
        }
    })
}

/// The soft interrupt whose functions these are, from inside of it up to its dispatcher.
fn softirq<'a>(inner: &[&'a str]) -> Ran<'a> {
    let mut vector = None;
    let mut at = inner.len();
    while let Some(stem) = at.checked_sub(1).map(|next| inner[next]) {
        let of = VECTORS.iter().find(|(_, all)| all.contains(&stem));
        if let Some((name, _)) = of {
            vector = vector.or(Some(*name));
        } else if !TASKLETS.contains(&stem) {
            break;
        }
        at -= 1;
    }
    let callback = at
        .checked_sub(1)
        .filter(|&next| !inner[next].is_empty() && !is_on_the_way(inner[next]));
    Ran::Softirq { vector, callback }
}

/// The first function inside of these dispatchers, if it is known and has work of its own.
fn called<'a>(inner: &[&'a str], dispatches: impl Fn(&str) -> bool) -> Option<&'a str> {
    let next = inner.iter().rev().find(|stem| {
        let is_entry = is_interrupt(stem);
        !is_entry && !dispatches(stem)
    })?;
    (!next.is_empty() && !is_on_the_way(next)).then_some(*next)
}

/// `sysvec_apic_timer_interrupt`, from any of its functions.
fn name_of_interrupt(stem: &str) -> &str {
    let stem = stem.strip_prefix("asm_").unwrap_or(stem);
    stem.strip_prefix("__").unwrap_or(stem)
}

fn is_interrupt(stem: &str) -> bool {
    INTERRUPTS.contains(&stem) || starts_with(stem, INTERRUPT_PREFIXES)
}

fn is_on_the_way(stem: &str) -> bool {
    starts_with(stem, ON_THE_WAY) || is_of_bpf(stem) || starts_with(stem, TRACEPOINTS)
}

fn starts_with(stem: &str, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| stem.starts_with(prefix))
}

/// Whether this is a BPF program, as the kernel names what it has compiled:
/// `bpf_prog_`, a tag of 16 digits, and its name (kernel/bpf/core.c,
/// `bpf_get_prog_name`).
pub fn is_bpf_program(name: &str) -> bool {
    name.strip_prefix("bpf_prog_")
        .and_then(|rest| rest.get(..16))
        .is_some_and(|tag| tag.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

fn is_of_bpf(stem: &str) -> bool {
    is_bpf_program(stem) || starts_with(stem, BPF_CALLERS)
}

/// The BPF program that runs at this stack, in words, by what called it: `a BPF program on
/// the tracepoint netif_receive_skb`. `None` where none does.
pub fn bpf_program(stems: &[&str]) -> Option<String> {
    // The one that runs: others further out have called what called it.
    let program = stems.iter().position(|stem| is_of_bpf(stem))?;
    let callers = &stems[program..];
    let is_bpf = |stem: &&&str| stem.is_empty() || is_of_bpf(stem) || stem.starts_with("bpf_");
    let caller = callers.iter().find(|stem| !is_bpf(stem))?;
    let tracepoint = TRACEPOINTS.iter().find_map(|it| caller.strip_prefix(it));
    Some(match tracepoint {
        Some(name) => format!("a BPF program on the tracepoint {name}"),
        None => format!("a BPF program that {caller} calls"),
    })
}

#[cfg(test)]
mod tests;
