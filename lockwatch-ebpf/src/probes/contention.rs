//! Waits for sleeping locks by the kernel's own tracepoints.

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_current_task_btf},
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use aya_log_ebpf::debug;
use lockwatch_ebpf::stream::flags;

use super::{
    rt_rwsem, task,
    trusted::Trusted,
    waits::{self, At},
};

/// `TASK_RTLOCK_WAIT` (include/linux/sched.h, 5.15+): asleep on a spinlock that
/// `PREEMPT_RT` turned into a sleeping lock.
const TASK_RTLOCK_WAIT: u32 = 0x1000;

/// Tracepoint `contention_begin(void *lock, unsigned int flags)`, 5.19+.
///
/// Runs only where a lock is contended, after the task has queued or begun to spin;
/// in the mutex code under that mutex's `wait_lock`. It also fires in spinlock
/// paths, hence the first line. On `PREEMPT_RT` sleeping spinlocks and rwlocks are left out,
/// and so is the rtmutex inside an rwsem where the rwsem was named before; where it was
/// not, its writer is recognised by its stack, which costs more there. Cost elsewhere: a test for spinlocks, 0.12 µs otherwise.
/// Keeps an open wait; emits `WAIT_BEGIN` if configured.
#[btf_tracepoint(function = "contention_begin")]
fn contention_begin(ctx: BtfTracePointContext) -> i32 {
    begin(&ctx, ctx.arg(0), ctx.arg(1))
}

/// The same by raw_tp.
#[raw_tracepoint(tracepoint = "contention_begin")]
fn raw_contention_begin(ctx: RawTracePointContext) -> i32 {
    begin(&ctx, ctx.arg(0), ctx.arg(1))
}

#[inline(always)]
fn begin(ctx: &impl EbpfContext, lock: u64, wait_flags: u32) -> i32 {
    // A mutex's optimistic phase counts as waiting; a spinlock is none of ours.
    if wait_flags & (flags::SPIN | flags::MUTEX) == flags::SPIN {
        if rt_rwsem::are_there() {
            rt_rwsem::spins_inside(&waits::key(lock, bpf_get_current_pid_tgid()));
        }
        return 0;
    }
    // SAFETY: no preconditions; the result is a trusted pointer to this task.
    let current = unsafe { Trusted::new(bpf_get_current_task_btf().cast()) };
    let tgid = task::tgid(current);
    if !waits::is_wanted(tgid) {
        return 0;
    }
    let mut wait_flags = wait_flags;
    let mut key = waits::key(lock, task::tid(current).into());
    if wait_flags & flags::RT != 0 && task::state(current) & TASK_RTLOCK_WAIT != 0 {
        // A reader of a sleeping rwlock says so only now, at the rtmutex inside.
        waits::forget(&rt_rwsem::of(&key), At::Slots);
        return 0;
    }
    if wait_flags == flags::RT {
        if waits::is_open(&rt_rwsem::of(&key), At::Slots) {
            return 0;
        }
        if rt_rwsem::is_wanted_for_write(ctx) {
            key = rt_rwsem::of(&key);
            wait_flags = flags::RT | flags::WRITE;
        }
    }
    waits::begin(&key, At::Slots, current, tgid, wait_flags);
    debug!(
        ctx,
        "wait begins: tid {} lock {:x} flags {}", key.tid, key.lock, wait_flags
    );
    0
}

/// Tracepoint `contention_end(void *lock, int ret)`, 5.19+.
///
/// Also fires in spinlock paths and does not say so: one lookup without locks,
/// and nothing else unless a begin of ours is open for this very lock and task.
/// Cost: 0.1 µs with cold caches. Drops the open wait; emits `WAIT_END` if the wait
/// was as long as configured.
#[btf_tracepoint(function = "contention_end")]
fn contention_end(ctx: BtfTracePointContext) -> i32 {
    end(&ctx, ctx.arg(0), ctx.arg(1))
}

/// The same by raw_tp.
#[raw_tracepoint(tracepoint = "contention_end")]
fn raw_contention_end(ctx: RawTracePointContext) -> i32 {
    end(&ctx, ctx.arg(0), ctx.arg(1))
}

#[inline(always)]
fn end(ctx: &impl EbpfContext, lock: u64, result: i32) -> i32 {
    let key = waits::key(lock, bpf_get_current_pid_tgid());
    if !waits::end(ctx, &key, At::Slots, key.lock, result) && rt_rwsem::are_there() {
        let outside = rt_rwsem::of(&key);
        waits::end(ctx, &outside, At::Slots, outside.lock, result);
    }
    0
}
