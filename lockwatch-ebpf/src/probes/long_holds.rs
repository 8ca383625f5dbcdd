//! The last long holds of each class, written by the task that releases.
//!
//! A slot is copied into from the writer's own stack, check last. A writer may be preempted
//! or interrupted at any point, by another one too that gets the same slot: the words of two
//! then lie mixed, and check as neither's.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_current_comm, bpf_get_stack, bpf_ktime_get_boot_ns, bpf_ktime_get_ns},
    },
    macros::map,
    maps::Array,
};
use lockwatch_ebpf::{
    counts::CLASS_IS_ADDRESS,
    long_holds::{
        FRAMES, LongHold, LongHoldConfig, OBJECT_WORDS, ObjectWord, RINGS, ROWS, SLOTS, WORDS, mix,
        ring_of,
    },
    survey::COMM_LEN,
};

use super::{
    counts,
    global::{self, global},
    state::{Place, is_stale},
    storage,
};

#[unsafe(no_mangle)]
static LONG_HOLDS: LongHoldConfig = LongHoldConfig {
    least_ns: 0,
    seed: 0,
    own_tgid: 0,
    _pad: 0,
};

/// By the number of the class.
#[unsafe(no_mangle)]
static OBJECT_WORDS_OF: [[ObjectWord; OBJECT_WORDS]; ROWS] =
    [[ObjectWord::ABSENT; OBJECT_WORDS]; ROWS];

/// `SLOTS` for each ring; as many as the loader says.
#[map(name = "LONG_HOLDS_1")]
static SLOTS_OF_RINGS: Array<LongHold> = Array::with_max_entries(1, 0);

/// Slots that were taken of each ring, for ever.
#[map]
static LONG_HOLDS_TAKEN: Array<u64> = Array::with_max_entries(RINGS, 0);

/// True if any hold is long enough to be kept; what depends on it is dropped by the
/// verifier else.
#[inline(always)]
pub(crate) fn are_on() -> bool {
    global!(LONG_HOLDS.least_ns) != 0
}

/// True if a hold of this length is kept.
#[inline(always)]
pub(crate) fn is_long(ns: u64) -> bool {
    are_on() && ns >= global!(LONG_HOLDS.least_ns)
}

/// Keeps a hold of the running task that is about to end. `how`: a mode of `stream::flags`.
#[inline(always)]
pub(crate) fn keep(ctx: *mut c_void, place: Place, how: u32, since_ns: u64) {
    keep_one(ctx, place.offset, place.class, how, since_ns);
}

/// A function of its own: its frame takes half of the stack.
#[inline(never)]
fn keep_one(ctx: *mut c_void, offset: u64, class: u64, how: u32, since_ns: u64) {
    let lock = counts::word(ctx as u64).wrapping_add(offset);
    let ids = bpf_get_current_pid_tgid();
    // What somebody else has released since may be this very hold.
    if (ids >> 32) as u32 == global!(LONG_HOLDS.own_tgid) || is_stale(lock, since_ns) {
        return;
    }
    let class = if class == 0 {
        counts::class_of(lock, how)
    } else {
        class
    };
    // SAFETY: no preconditions.
    let until_ns = unsafe { bpf_ktime_get_ns() };
    let mut hold = LongHold {
        check: 0,
        lock,
        class,
        since_ns,
        until_ns,
        // SAFETY: no preconditions.
        asleep_ns: unsafe { bpf_ktime_get_boot_ns() }.wrapping_sub(until_ns),
        start_time_ns: storage::start_time_ns_of_current(),
        tid: ids as u32,
        tgid: (ids >> 32) as u32,
        comm: [0; COMM_LEN / 8],
        object: [0; OBJECT_WORDS],
        how,
        _pad: 0,
        frames: [0; FRAMES],
    };
    // SAFETY: the length is that of the buffer.
    unsafe { bpf_get_current_comm(hold.comm.as_mut_ptr().cast(), COMM_LEN as u32) };
    if class < CLASS_IS_ADDRESS {
        let row = &OBJECT_WORDS_OF[class as usize & (ROWS - 1)];
        for (object, word) in hold.object.iter_mut().zip(row) {
            let word = global::read(word);
            if word.mask != 0 {
                *object = counts::word(lock.wrapping_add(word.at)) & word.mask;
            }
        }
    }
    // SAFETY: the buffer is as long as said; what is behind the result's length is zeroed.
    unsafe {
        bpf_get_stack(
            ctx,
            hold.frames.as_mut_ptr().cast(),
            size_of::<[u64; FRAMES]>() as u32,
            0,
        );
    }
    write(&hold);
}

/// Into the next slot of its ring.
#[inline(always)]
fn write(hold: &LongHold) {
    let ring = ring_of(hold.class);
    let Some(taken) = LONG_HOLDS_TAKEN.get_ptr_mut(ring) else {
        return;
    };
    // Two writers at once may get the same slot: one of them is lost then.
    // SAFETY: an element of the map, which is never removed.
    let number = unsafe { taken.read_volatile() };
    // SAFETY: as above; additions are atomic.
    unsafe { counts::atomic_add(taken, 1) };
    let slot = ring * SLOTS + (number % u64::from(SLOTS)) as u32;
    let Some(to) = SLOTS_OF_RINGS.get_ptr_mut(slot) else {
        return;
    };
    let to = to.cast::<u64>();
    let from = core::ptr::from_ref(hold).cast::<u64>();
    // Volatile, to stay in this order.
    // SAFETY: both have that many words.
    unsafe {
        to.write_volatile(0);
        let mut check = global!(LONG_HOLDS.seed);
        for index in 1..WORDS {
            let word = from.add(index).read_volatile();
            check = mix(check, word);
            to.add(index).write_volatile(word);
        }
        to.write_volatile(check | 1);
    }
}
