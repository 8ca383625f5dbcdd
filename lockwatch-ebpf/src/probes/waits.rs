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
        kind, wait_id,
    },
    survey::COMM_LEN,
};

use super::{
    access::Access,
    counts,
    global::global,
    slots::{Set, Slot},
    task,
};

#[unsafe(no_mangle)]
static STREAM_CONFIG: StreamConfig = StreamConfig {
    ends_from_ns: 0,
    begins: 0,
    own_tgid: 0,
};

/// Open waits that are in no slot. Preallocated, so that an insert never calls the allocator:
/// it runs inside lock code. Programs in spinlock paths only ever look up here, which
/// takes no lock.
#[map]
static WAITS: HashMap<WaitKey, OpenWait> = HashMap::with_max_entries(WAITS_MAX, 0);

/// 1 once `WAITS` has had an entry beside the slots; user space stores to it, too.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.hashed")]
static mut WAITS_HASHED: u32 = 0;

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
pub(super) fn is_open(key: &WaitKey, at: At) -> bool {
    slot(key, at).is_some() || (is_hashed(at) && WAITS.get_ptr(key).is_some())
}

/// Where open waits are kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    /// In slots, and in the hash what finds none or was entered by user space.
    Slots,
    /// In the hash.
    Hash,
}

/// The slot with the open wait of this task on this lock.
#[inline(always)]
fn slot(key: &WaitKey, at: At) -> Option<Slot> {
    if at == At::Hash {
        return None;
    }
    Set::of(key.tid)?.find(key)
}

/// True if the hash may have a wait.
#[inline(always)]
fn is_hashed(at: At) -> bool {
    // SAFETY: an aligned load of a global.
    at == At::Hash || unsafe { (&raw const WAITS_HASHED).read_volatile() } != 0
}

/// This task, `current`, begins to wait.
#[inline(always)]
pub(super) fn begin(key: &WaitKey, at: At, current: impl Access, tgid: u32, wait_flags: u32) {
    let start_time_ns = task::start_time_ns(current);
    // A mutex begins again each time it goes from spinning to sleeping and back:
    // that is one wait. Every other lock begins once, so that an open wait is a
    // left-over whose end we missed.
    let open = slot(key, at);
    if wait_flags & flags::MUTEX != 0
        && let Some(slot) = open
        // SAFETY: a plain load from the task's own slot.
        && unsafe { (*slot.wait()).start_time_ns } == start_time_ns
    {
        return;
    }
    if is_hashed(at)
        && let Some(open) = WAITS.get_ptr(key)
    {
        if wait_flags & flags::MUTEX != 0
            // SAFETY: only this task inserts or removes this key.
            && unsafe { (*open).start_time_ns } == start_time_ns
        {
            return;
        }
        if at == At::Slots {
            let _ = WAITS.remove(key);
        }
    }
    // SAFETY: no preconditions.
    let since_ns = unsafe { bpf_ktime_get_ns() };
    let mut wait = OpenWait {
        since_ns,
        start_time_ns,
        tgid,
        flags: wait_flags,
        comm: [0; COMM_LEN],
    };
    if !keep(key, at, current, open, &mut wait) {
        count(counter::LOST_WAIT);
        if counts::are_on() {
            counts::count_lost(lost::WAITS);
        }
        return;
    }
    count(counter::WAITS);
    if global!(STREAM_CONFIG.begins) != 0 {
        wait.comm = bpf_get_current_comm().unwrap_or([0; COMM_LEN]);
        if !send(kind::WAIT_BEGIN, since_ns, key, &wait, 0) {
            count(counter::LOST_BEGIN);
        }
    }
}

/// Keeps a wait of the running task, `current`, in the place of an older one on the same lock; false if
/// there is no room.
#[inline(always)]
fn keep(
    key: &WaitKey,
    at: At,
    current: impl Access,
    old: Option<Slot>,
    wait: &mut OpenWait,
) -> bool {
    if let Some(slot) = old {
        slot.leave();
    }
    if at == At::Slots
        && let Some(set) = Set::of(key.tid)
        && let Some(slot) = set.take(wait_id(key.tid, wait.since_ns))
    {
        slot.write(key.lock, wait, task::comm(current));
        return true;
    }
    if at == At::Slots {
        // SAFETY: an aligned store to a global; it never becomes 0 again.
        unsafe { (&raw mut WAITS_HASHED).write_volatile(1) };
    }
    wait.comm = bpf_get_current_comm().unwrap_or([0; COMM_LEN]);
    WAITS.insert(key, *wait, 0).is_ok()
}

/// Takes out a wait that turns out to be none of ours.
#[inline(always)]
pub(super) fn forget(key: &WaitKey, at: At) {
    if let Some(slot) = slot(key, at) {
        slot.leave();
    }
    if is_hashed(at) {
        let _ = WAITS.remove(key);
    }
}

/// Adds flags to an open wait of this task; false if none is open on this very lock.
#[inline(always)]
pub(super) fn mark(key: &WaitKey, at: At, with: u32) -> bool {
    let Some(open) = open(key, at) else {
        return false;
    };
    // SAFETY: this task alone changes its entry, see `end`.
    unsafe { (*open).flags |= with };
    true
}

/// The open wait of this task on this lock.
#[inline(always)]
fn open(key: &WaitKey, at: At) -> Option<*mut OpenWait> {
    match slot(key, at) {
        Some(slot) => Some(slot.wait()),
        None if is_hashed(at) => WAITS.get_ptr_mut(key),
        None => None,
    }
}

/// This task's wait ends, with a negative `result` if it gave up; `lock` as it is to be
/// counted. False if none is open on
/// this very lock: then it is one lookup without locks.
#[inline(always)]
pub(super) fn end(ctx: &impl EbpfContext, key: &WaitKey, at: At, lock: u64, result: i32) -> bool {
    let slot = slot(key, at);
    let open = match slot {
        Some(slot) => slot.wait(),
        None if is_hashed(at) => match WAITS.get_ptr_mut(key) {
            Some(open) => open,
            None => return false,
        },
        None => return false,
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
    // The event first, the entry after: who finds no entry finds the event.
    if waited_ns >= global!(STREAM_CONFIG.ends_from_ns)
        && !send(kind::WAIT_END, now_ns, key, &wait, result)
    {
        count(counter::LOST_END);
    }
    match slot {
        Some(slot) => {
            slot.leave();
            // One that user space has entered while this one began is the same.
            if is_hashed(at) && WAITS.get_ptr(key).is_some() {
                let _ = WAITS.remove(key);
            }
        }
        None => {
            let _ = WAITS.remove(key);
        }
    }
    // Counted once, behind all that: else a verifier goes through the counting for each place
    // in which a wait may be. One that user space has entered may be our own.
    if is_wanted(wait.tgid) {
        counts::count(ctx, lock, 0, wait.flags, waited_ns);
    }
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
