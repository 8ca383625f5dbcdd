//! Waits for sleeping locks: their begins and ends.

use aya_ebpf::{
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid,
        generated::{bpf_get_current_task_btf, bpf_ktime_get_ns},
    },
    macros::{btf_tracepoint, map},
    maps::{HashMap, PerCpuArray, RingBuf},
    programs::BtfTracePointContext,
};
use aya_log_ebpf::debug;
use lockwatch_ebpf::{
    stream::{
        Event, OpenWait, RING_LEN, RING_WAKE_LEN, StreamConfig, WAITS_MAX, WaitKey, counter, flags,
        kind,
    },
    survey::COMM_LEN,
};

use super::{member::global, task};

#[unsafe(no_mangle)]
static STREAM_CONFIG: StreamConfig = StreamConfig {
    ends_from_ns: 0,
    begins: 0,
    own_tgid: 0,
};

/// Open waits. Preallocated, so that an insert never calls the allocator: it runs
/// inside lock code. Programs in spinlock paths only ever look up here, which
/// takes no lock.
#[map]
static WAITS: HashMap<WaitKey, OpenWait> = HashMap::with_max_entries(WAITS_MAX, 0);

#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(RING_LEN, 0);

#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::COUNT, 0);

/// `bpf_ringbuf_query`: bytes not read yet.
const BPF_RB_AVAIL_DATA: u64 = 0;
const BPF_RB_NO_WAKEUP: u64 = 1;
const BPF_RB_FORCE_WAKEUP: u64 = 2;

/// `TASK_RTLOCK_WAIT` (include/linux/sched.h, 5.15+): asleep on a spinlock that
/// `PREEMPT_RT` turned into a sleeping lock.
const TASK_RTLOCK_WAIT: u32 = 0x1000;

/// Offset of the rtmutex in an rwsem of `PREEMPT_RT` (`rwbase.rtmutex`, behind `readers`).
const RWBASE_RTMUTEX: u64 = 8;

/// Tracepoint `contention_begin(void *lock, unsigned int flags)`, 5.19+.
///
/// Runs only where a lock is contended, after the task has queued or begun to spin;
/// in the mutex code under that mutex's `wait_lock`. It also fires in spinlock
/// paths, hence the first line. Cost: a test for spinlocks, 0.12 µs otherwise.
/// Keeps an [`OpenWait`]; emits `WAIT_BEGIN` if configured.
#[btf_tracepoint(function = "contention_begin")]
fn contention_begin(ctx: BtfTracePointContext) -> i32 {
    let wait_flags: u32 = ctx.arg(1);
    // A mutex's optimistic phase counts as waiting; a spinlock is none of ours.
    if wait_flags & (flags::SPIN | flags::MUTEX) == flags::SPIN {
        return 0;
    }
    let ids = bpf_get_current_pid_tgid();
    let tgid = (ids >> 32) as u32;
    let own_tgid = global!(STREAM_CONFIG.own_tgid);
    if tgid == own_tgid && tgid != 0 {
        return 0;
    }
    let key = WaitKey {
        lock: ctx.arg(0),
        tid: ids as u32,
        _pad: 0,
    };
    // SAFETY: no preconditions; the result is a trusted pointer to this task.
    let current = unsafe { bpf_get_current_task_btf() }
        .cast::<u8>()
        .cast_const();
    // SAFETY: `current` is trusted.
    if wait_flags == flags::RT && unsafe { is_inner_rt_wait(current, &key) } {
        return 0;
    }
    // SAFETY: `current` is trusted.
    let start_time_ns = unsafe { task::start_time_ns(current) };

    // A mutex begins again each time it goes from spinning to sleeping and back:
    // that is one wait. Every other lock begins once, so that an open wait is a
    // left-over whose end we missed.
    if wait_flags & flags::MUTEX != 0
        && let Some(open) = WAITS.get_ptr(key)
        // SAFETY: only this task inserts or removes this key.
        && unsafe { (*open).start_time_ns } == start_time_ns
    {
        return 0;
    }
    let wait = OpenWait {
        // SAFETY: no preconditions.
        since_ns: unsafe { bpf_ktime_get_ns() },
        start_time_ns,
        tgid,
        flags: wait_flags,
        comm: bpf_get_current_comm().unwrap_or([0; COMM_LEN]),
    };
    if WAITS.insert(key, wait, 0).is_err() {
        count(counter::LOST_WAIT);
        return 0;
    }
    count(counter::WAITS);
    if global!(STREAM_CONFIG.begins) != 0 && !send(kind::WAIT_BEGIN, wait.since_ns, &key, &wait, 0)
    {
        count(counter::LOST_BEGIN);
    }
    debug!(
        &ctx,
        "wait begins: tid {} lock {:x} flags {}", key.tid, key.lock, wait_flags
    );
    0
}

/// Tracepoint `contention_end(void *lock, int ret)`, 5.19+.
///
/// Also fires in spinlock paths and does not say so: one lookup without locks,
/// and nothing else unless a begin of ours is open for this very lock and task.
/// Cost: 0.1 µs with cold caches. Drops the [`OpenWait`]; emits
/// `WAIT_END` if the wait was as long as configured.
#[btf_tracepoint(function = "contention_end")]
fn contention_end(ctx: BtfTracePointContext) -> i32 {
    let key = WaitKey {
        lock: ctx.arg(0),
        tid: bpf_get_current_pid_tgid() as u32,
        _pad: 0,
    };
    let Some(open) = WAITS.get_ptr(key) else {
        return 0;
    };
    // SAFETY: this task alone removes its entry (user space only where a survey
    // refutes it), so that it is not reused under us.
    let wait = unsafe { *open };
    // SAFETY: no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let waited_ns = now_ns.wrapping_sub(wait.since_ns);
    let result: i32 = ctx.arg(1);
    // The event first, the entry after: who finds no entry finds the event.
    if waited_ns >= global!(STREAM_CONFIG.ends_from_ns)
        && !send(kind::WAIT_END, now_ns, &key, &wait, result)
    {
        count(counter::LOST_END);
    }
    let _ = WAITS.remove(key);
    debug!(
        &ctx,
        "wait ends: tid {} lock {:x} after {} ns", key.tid, key.lock, waited_ns
    );
    0
}

/// True for the waits of `PREEMPT_RT` that another event tells better: the rtmutex
/// inside an rwsem, whose begin names the rwsem first, and sleeping spinlocks.
///
/// # Safety
/// `current` must be a trusted pointer to the running task.
#[inline(always)]
unsafe fn is_inner_rt_wait(current: *const u8, key: &WaitKey) -> bool {
    let outer = WaitKey {
        lock: key.lock.wrapping_sub(RWBASE_RTMUTEX),
        ..*key
    };
    // SAFETY: passed on.
    (unsafe { task::state(current) }) & TASK_RTLOCK_WAIT != 0 || WAITS.get_ptr(outer).is_some()
}

/// False if the ring buffer is full.
#[inline(always)]
fn send(kind: u32, at_ns: u64, key: &WaitKey, wait: &OpenWait, result: i32) -> bool {
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        return false;
    };
    entry.write(Event {
        at_ns,
        key: *key,
        wait: *wait,
        kind,
        result,
    });
    // A wake-up is an irq_work, not worth it for each event: below a quarter the
    // reader's timer is soon enough.
    entry.submit(if EVENTS.query(BPF_RB_AVAIL_DATA) >= RING_WAKE_LEN {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    });
    true
}

#[inline(always)]
fn count(counter: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter) {
        // SAFETY: this CPU's own slot. A program that interrupts this one at this
        // point costs one count, never a wrong address.
        unsafe { *value += 1 };
    }
}
