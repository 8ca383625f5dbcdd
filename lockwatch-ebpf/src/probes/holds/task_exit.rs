//! Tasks that are freed leave their slots: another one may get the address.

use aya_ebpf::{
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};

use super::slots::Set;

/// Tracepoint `sched_process_free(struct task_struct *p)`, 5.10+.
///
/// Runs when the last use of a dead task is over, after its own last lock operation
/// (`sched_process_exit` is before many of them) and before its memory is another's. Cost: a
/// look at its slots for each task that ends. Emits nothing.
#[btf_tracepoint(function = "sched_process_free")]
fn sched_process_free(ctx: BtfTracePointContext) -> i32 {
    freed(ctx.arg(0))
}

/// The same by raw_tp.
#[raw_tracepoint(tracepoint = "sched_process_free")]
fn raw_sched_process_free(ctx: RawTracePointContext) -> i32 {
    freed(ctx.arg(0))
}

#[inline(always)]
fn freed(task: u64) -> i32 {
    Set::of(task).leave_all();
    0
}
