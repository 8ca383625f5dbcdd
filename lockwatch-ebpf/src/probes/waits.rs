//! Open waits, and the events of their ends: what every way to see a wait feeds.

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_comm, generated::bpf_ktime_get_ns},
    macros::map,
    maps::{HashMap, PerCpuArray, RingBuf},
};
use lockwatch_ebpf::{
    counts::lost,
    stream::{
        Event, OpenWait, RING_LEN, RING_WAKE_LEN, StreamConfig, WAITS_MAX, WaitKey, counter, flags,
        kind,
    },
    survey::COMM_LEN,
};

use super::{counts, global::global};

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

/// The wait of a task, by what `bpf_get_current_pid_tgid` gives, for a lock.
#[inline(always)]
pub(super) fn key(lock: u64, ids: u64) -> WaitKey {
    WaitKey {
        lock,
        tid: ids as u32,
        _pad: 0,
    }
}

/// False for the waits of our own process.
#[inline(always)]
pub(super) fn is_wanted(tgid: u32) -> bool {
    let own_tgid = global!(STREAM_CONFIG.own_tgid);
    tgid != own_tgid || tgid == 0
}

/// True while a wait of this task on this lock is open.
#[inline(always)]
pub(super) fn is_open(key: &WaitKey) -> bool {
    WAITS.get_ptr(key).is_some()
}

/// This task, which began at `start_time_ns`, begins to wait.
#[inline(always)]
pub(super) fn begin(key: &WaitKey, tgid: u32, start_time_ns: u64, wait_flags: u32) {
    // A mutex begins again each time it goes from spinning to sleeping and back:
    // that is one wait. Every other lock begins once, so that an open wait is a
    // left-over whose end we missed.
    if wait_flags & flags::MUTEX != 0
        && let Some(open) = WAITS.get_ptr(key)
        // SAFETY: only this task inserts or removes this key.
        && unsafe { (*open).start_time_ns } == start_time_ns
    {
        return;
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
        if counts::are_on() {
            counts::count_lost(lost::WAITS);
        }
        return;
    }
    count(counter::WAITS);
    if global!(STREAM_CONFIG.begins) != 0 && !send(kind::WAIT_BEGIN, wait.since_ns, key, &wait, 0) {
        count(counter::LOST_BEGIN);
    }
}

/// Takes out a wait that turns out to be none of ours.
#[inline(always)]
pub(super) fn forget(key: &WaitKey) {
    let _ = WAITS.remove(key);
}

/// Adds flags to an open wait of this task; false if none is open on this very lock.
#[inline(always)]
pub(super) fn mark(key: &WaitKey, with: u32) -> bool {
    let Some(open) = WAITS.get_ptr_mut(key) else {
        return false;
    };
    // SAFETY: this task alone changes its entry, see `end`.
    unsafe { (*open).flags |= with };
    true
}

/// This task's wait ends, with a negative `result` if it gave up; `lock` as it is to be
/// counted. False if none is open on
/// this very lock: then it is one lookup without locks.
#[inline(always)]
pub(super) fn end(ctx: &impl EbpfContext, key: &WaitKey, lock: u64, result: i32) -> bool {
    let Some(open) = WAITS.get_ptr_mut(key) else {
        return false;
    };
    // SAFETY: this task alone removes its entry (user space only where a survey
    // refutes it), so that it is not reused under us.
    let wait = unsafe { *open };
    if wait.flags & flags::SPINS_INSIDE != 0 {
        // SAFETY: as above.
        unsafe { (*open).flags &= !flags::SPINS_INSIDE };
        return true;
    }
    // SAFETY: no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let waited_ns = now_ns.wrapping_sub(wait.since_ns);
    counts::count(ctx, lock, 0, wait.flags, waited_ns);
    // The event first, the entry after: who finds no entry finds the event.
    if waited_ns >= global!(STREAM_CONFIG.ends_from_ns)
        && !send(kind::WAIT_END, now_ns, key, &wait, result)
    {
        count(counter::LOST_END);
    }
    let _ = WAITS.remove(key);
    true
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
