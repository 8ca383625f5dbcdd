//! A user stack with build ids is looked up under the task's own `mmap_lock`, which is
//! asked for without waiting (kernel/bpf/stackmap.c, `stack_map_get_build_id_offset`,
//! 5.10–7.3). So a program can make any task take it at any place, and
//! - where the task holds it for read already, it is held recursively;
//! - where interrupts are off, it cannot be given back at once: an `irq_work` does so,
//!   and finds another task running if this one was just being switched out (not on
//!   `PREEMPT_RT`, where it is not even asked for).

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_USER_BUILD_ID, BPF_F_USER_STACK},
    helpers::{bpf_get_current_comm, generated::bpf_get_stack},
    macros::{btf_tracepoint, fentry, fexit, map},
    maps::{Array, PerCpuArray},
    programs::{BtfTracePointContext, FEntryContext, FExitContext},
};
use lockwatch_ebpf::edge::{EdgeConfig, counter, last};

use super::{argument::word, global::global};

#[unsafe(no_mangle)]
static EDGE_CONFIG: EdgeConfig = EdgeConfig {
    comm: 0,
    comm_mask: 0,
    success_argument: 0,
    _pad: 0,
};

#[map]
static EDGE_COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::COUNT, 0);

/// What a look-up took last, and what was refused last ([`last`]): an `mm_struct` or its
/// lock, as the watching programs see it.
#[map]
static LAST: Array<u64> = Array::with_max_entries(last::COUNT, 0);

/// What was taken last on this CPU, as the watching programs see it.
#[map]
static TAKEN_HERE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// `struct bpf_stack_build_id` (include/uapi/linux/bpf.h).
#[repr(C)]
struct Frame([u64; 4]);

/// fentry of `handle_mm_fault(struct vm_area_struct *, …)`, 5.10+: `mmap_lock` is held
/// for read unless the area's own lock is.
#[fentry(function = "handle_mm_fault")]
fn faulted(ctx: FEntryContext) -> i32 {
    nest(&ctx);
    0
}

/// Tracepoint `mmap_lock_acquire_returned(mm, [memcg_path,] write, success)`, 5.11+: the
/// lock is held if the attempt succeeded.
#[btf_tracepoint(function = "mmap_lock_acquire_returned")]
fn acquired(ctx: BtfTracePointContext) -> i32 {
    nest(&ctx);
    0
}

/// Tracepoint `sched_switch(preempt, prev, next, …)`, 5.10+: still runs as `prev`, with
/// interrupts off.
#[btf_tracepoint(function = "sched_switch")]
fn switched(ctx: BtfTracePointContext) -> i32 {
    if is_ours() {
        take(&ctx);
    }
    0
}

/// fexit of `int down_read_trylock(struct rw_semaphore *sem)`, 5.10+.
#[fexit(function = "down_read_trylock")]
fn tried(ctx: FExitContext) -> i32 {
    // The result follows the only argument.
    attempted(ctx.arg(0), ctx.arg::<i32>(1) != 0);
    0
}

/// fentry of `void up_read(struct rw_semaphore *sem)`, 5.10+.
#[fentry(function = "up_read")]
fn gave_up(ctx: FEntryContext) -> i32 {
    released(ctx.arg(0));
    0
}

/// As `tried`, where functions may not be watched: also sees attempts that waited.
#[btf_tracepoint(function = "mmap_lock_acquire_returned")]
fn acquire_returned(ctx: BtfTracePointContext) -> i32 {
    let success = if global!(EDGE_CONFIG.success_argument) == 2 {
        word::<16>(&ctx)
    } else {
        word::<24>(&ctx)
    };
    attempted(ctx.arg(0), success & 0xff != 0);
    0
}

/// As `gave_up`, where functions may not be watched.
#[btf_tracepoint(function = "mmap_lock_released")]
fn lock_released(ctx: BtfTracePointContext) -> i32 {
    released(ctx.arg(0));
    0
}

#[inline(always)]
fn nest(ctx: &impl EbpfContext) {
    if is_ours() && take(ctx) {
        count(counter::NESTED);
    }
}

/// True if the lock was taken for the look-up. No program moves to another CPU while
/// it runs, so that the difference is its own.
#[inline(always)]
fn take(ctx: &impl EbpfContext) -> bool {
    let before = counted(counter::TAKEN);
    let mut frame = Frame([0; 4]);
    // SAFETY: the buffer has the size that is told.
    unsafe {
        bpf_get_stack(
            ctx.as_ptr(),
            (&raw mut frame).cast::<c_void>(),
            size_of::<Frame>() as u32,
            u64::from(BPF_F_USER_STACK | BPF_F_USER_BUILD_ID),
        );
    }
    let taken = counted(counter::TAKEN) != before;
    if taken {
        let lock = TAKEN_HERE.get(0).copied().unwrap_or(0);
        let _ = LAST.set(last::TAKEN, lock, 0);
    }
    taken
}

#[inline(always)]
fn attempted(lock: u64, success: bool) {
    if !is_ours() {
        return;
    }
    if !success {
        count(counter::REFUSED);
        let _ = LAST.set(last::REFUSED, lock, 0);
        return;
    }
    count(counter::TAKEN);
    if let Some(taken) = TAKEN_HERE.get_ptr_mut(0) {
        // SAFETY: this CPU's own slot.
        unsafe { *taken = lock };
    }
}

#[inline(always)]
fn released(lock: u64) {
    if LAST.get(last::TAKEN).is_some_and(|taken| *taken == lock) && !is_ours() {
        count(counter::ELSEWHERE);
    }
}

/// Does the running task have the comm to act on?
#[inline(always)]
fn is_ours() -> bool {
    let Ok(comm) = bpf_get_current_comm() else {
        return false;
    };
    let [a, b, c, d, e, f, g, h, ..] = comm;
    let start = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
    start & global!(EDGE_CONFIG.comm_mask) == global!(EDGE_CONFIG.comm)
}

#[inline(always)]
fn counted(counter: u32) -> u64 {
    EDGE_COUNTERS.get(counter).copied().unwrap_or(0)
}

#[inline(always)]
fn count(counter: u32) {
    if let Some(value) = EDGE_COUNTERS.get_ptr_mut(counter) {
        // SAFETY: this CPU's own slot.
        unsafe { *value += 1 };
    }
}
