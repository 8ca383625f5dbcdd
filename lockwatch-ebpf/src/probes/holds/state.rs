//! Changes of one task's holds, and what is remembered of releases that belong to
//! nobody we know.
//!
//! These programs run in any context in which a kernel takes or leaves an rwsem, also
//! in an interrupt that hits one of them: it then changes the same task's slots in
//! between. So a slot is taken by one store, its lock's address, made last, and left
//! by one store: an interruption can cost a hold, which is then unknown, and never
//! leaves one that nobody has.

use core::ptr;

use aya_ebpf::{
    EbpfContext,
    helpers::generated::bpf_ktime_get_ns,
    macros::map,
    maps::{LruHashMap, PerCpuArray},
};
use lockwatch_ebpf::{
    counts::{HELD, lost},
    holds::{AGAIN, Holds, RELEASES_MAX, SLOTS, counter},
    stream::flags,
};

use super::{counts, long_holds, slots::Set, storage};

/// When a lock was last released by a task that was not known to hold it:
/// `CLOCK_MONOTONIC` ns by address. Whoever is known to hold it since before that may
/// have lost it by this release.
#[map]
static RELEASES: LruHashMap<u64, u64> = LruHashMap::with_max_entries(RELEASES_MAX, 0);

#[map]
static HOLD_COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::COUNT, 0);

/// How a lock was acquired.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Read,
    Write,
}

impl Mode {
    /// How often a lock is held for read that was acquired like this once.
    #[inline(always)]
    fn reads(self) -> u32 {
        u32::from(self == Self::Read)
    }

    /// True if a lock that is held for read so often is held like this.
    #[inline(always)]
    fn is_of(self, reads: u32) -> bool {
        (reads > 0) == (self == Self::Read)
    }
}

/// Where a program finds the address of the lock as a plain number: what it is handed can be a
/// typed pointer, with which verifiers allow no arithmetic (5.10–7.3).
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// Number of the lock's class if it is known, or 0.
    pub(crate) class: u64,
    /// How far the lock is from what the first argument points at.
    pub(crate) offset: u64,
}

impl Place {
    /// The first argument points at the lock itself.
    pub(super) const FIRST_ARGUMENT: Self = Self {
        class: 0,
        offset: 0,
    };
}

/// How a lock that is turned from write to read is told of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Downgrades {
    /// By `downgraded`: whoever acquires for read has no write hold left.
    Apart,
    /// As if it were acquired for read.
    AsReads,
}

/// This task has acquired the lock.
#[inline(always)]
pub(super) fn acquired(lock: u64, mode: Mode, downgrades: Downgrades) {
    let set = Set::of_current();
    if let Some(set) = set
        && let Some(slot) = set.take_first()
    {
        slot.write(lock, now_ns(), mode.reads());
        return;
    }
    acquired_beside_others(set, lock, mode, downgrades);
}

/// The same where it may have the lock already, or others of its set have slots.
#[inline(always)]
fn acquired_beside_others(set: Option<Set>, lock: u64, mode: Mode, downgrades: Downgrades) {
    if let Some(set) = set {
        if let Some(slot) = set.find(lock) {
            acquired_again(lock, slot.words(), mode, downgrades);
            return;
        }
        if !set.has_beside()
            && let Some(slot) = set.take()
        {
            slot.write(lock, now_ns(), mode.reads());
            return;
        }
    }
    let Some(holds) = storage::of_current_or_new() else {
        lose();
        return;
    };
    for slot in 0..SLOTS {
        if holds.locks[slot] == lock {
            acquired_again(lock, words(holds, slot), mode, downgrades);
            return;
        }
    }
    if let Some(set) = set
        && let Some(slot) = set.take()
    {
        slot.write(lock, now_ns(), mode.reads());
        return;
    }
    for slot in 0..SLOTS {
        if holds.locks[slot] == 0 {
            holds.since_ns[slot] = now_ns();
            holds.reads[slot] = mode.reads();
            if let Some(set) = set {
                set.one_more_beside();
            }
            set_lock(holds, slot, lock);
            return;
        }
    }
    lose();
}

/// When the hold in a slot of the task's storage began, and how often it is for read.
#[inline(always)]
fn words(holds: &mut Holds, slot: usize) -> (*mut u64, *mut u32) {
    (&raw mut holds.since_ns[slot], &raw mut holds.reads[slot])
}

/// This task has acquired a lock that it was known to hold like this.
#[inline(always)]
fn acquired_again(
    lock: u64,
    (since, reads): (*mut u64, *mut u32),
    mode: Mode,
    downgrades: Downgrades,
) {
    // SAFETY: valid and aligned; this task alone changes them.
    unsafe {
        let is_one_more = if *reads == 0 {
            downgrades == Downgrades::AsReads
        } else {
            !is_stale(lock, *since)
        };
        if mode == Mode::Read && is_one_more {
            // From write to read, or once more for read.
            *reads += 1;
            *since |= AGAIN;
        } else {
            // Another task has released that one, or its release was missed: nobody gets a
            // lock for write, nor for read after such a release, whose own hold of it still
            // stands.
            *since = now_ns();
            *reads = mode.reads();
        }
    }
}

/// When a hold begins: without [`AGAIN`].
#[inline(always)]
fn now_ns() -> u64 {
    // SAFETY: no preconditions.
    unsafe { bpf_ktime_get_ns() & !AGAIN }
}

/// True if a task that was not known to hold the lock has released it since.
#[inline(always)]
fn is_stale(lock: u64, since_ns: u64) -> bool {
    RELEASES
        .get_ptr(lock)
        // SAFETY: a plain load from the entry.
        .is_some_and(|at_ns| unsafe { *at_ns } >= since_ns)
}

/// This task is about to release the lock, which it holds like this. A hold of the other
/// mode stays: it is one that another task has released.
#[inline(always)]
pub(super) fn released(ctx: &impl EbpfContext, lock: u64, place: Place, mode: Mode) {
    let set = Set::of_current();
    let mut ended = None;
    if let Some(set) = set
        && let Some(slot) = set.first(lock)
    {
        let (since, reads) = slot.words();
        // SAFETY: this task has the slot.
        if unsafe { *reads } == mode.reads() {
            // SAFETY: as above.
            ended = Some(unsafe { *since });
            slot.leave();
        }
    }
    if ended.is_none() {
        ended = released_of_others(set, lock, mode);
    }
    // Counted once, behind all that: else a verifier goes through the counting for each slot.
    if let Some(since_ns) = ended {
        count_hold(ctx, lock, place, mode, since_ns);
    }
}

/// The same where the lock is not the only one that the task and others of its set hold, or
/// is held more than once, or is not known to be held. When the hold began that ended.
#[inline(always)]
fn released_of_others(set: Option<Set>, lock: u64, mode: Mode) -> Option<u64> {
    if let Some(set) = set
        && let Some(slot) = set.find(lock)
        && let (since, reads) = slot.words()
        // SAFETY: this task has the slot.
        && mode.is_of(unsafe { *reads })
    {
        // SAFETY: as above.
        return unsafe {
            if *reads > 1 {
                *reads -= 1;
                return None;
            }
            let since_ns = *since;
            slot.leave();
            Some(since_ns)
        };
    }
    if set.is_none_or(Set::has_beside)
        && let Some(holds) = storage::of_current()
    {
        for slot in 0..SLOTS {
            if holds.locks[slot] == lock && mode.is_of(holds.reads[slot]) {
                if holds.reads[slot] > 1 {
                    holds.reads[slot] -= 1;
                    return None;
                }
                let since_ns = holds.since_ns[slot];
                set_lock(holds, slot, 0);
                if let Some(set) = set {
                    set.one_less_beside();
                }
                return Some(since_ns);
            }
        }
    }
    // Acquired before we came, or by another task, or the acquisition was lost.
    count(counter::FOREIGN_RELEASE);
    // SAFETY: no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let _ = RELEASES.insert(lock, now_ns, 0);
    None
}

/// Counts how long a hold was, and keeps it if that was long. One that was downgraded counts
/// as a whole, for read; one that was taken for read several times at once from the first to
/// the last release.
#[inline(always)]
fn count_hold(ctx: &impl EbpfContext, lock: u64, place: Place, mode: Mode, since_ns: u64) {
    if !counts::are_on() && !long_holds::are_on() {
        return;
    }
    let how = match mode {
        Mode::Read => flags::READ,
        Mode::Write => flags::WRITE,
    };
    // SAFETY: no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let ns = now_ns.saturating_sub(since_ns);
    // What somebody else has released since may be this very hold; and what was acquired
    // twice may have been let go in between.
    if long_holds::is_long(ns) && since_ns & AGAIN == 0 && !is_stale(lock, since_ns) {
        long_holds::keep(ctx, place, how, since_ns);
    }
    if counts::are_on() {
        // Where the first argument is not the lock, the class is known.
        counts::count(ctx, counts::FIRST_ARGUMENT, place.class, how | HELD, ns);
    }
}

/// An acquisition found no room.
#[inline(always)]
fn lose() {
    count(counter::LOST_HOLD);
    if counts::are_on() {
        counts::count_lost(lost::HOLDS);
    }
}

/// This task is about to turn its write hold of the lock into a read hold.
#[inline(always)]
pub(super) fn downgraded(lock: u64) {
    let set = Set::of_current();
    if let Some(set) = set
        && let Some(slot) = set.find(lock)
    {
        let (_, reads) = slot.words();
        // SAFETY: this task has the slot.
        unsafe { *reads = 1 };
        return;
    }
    if set.is_some_and(|set| !set.has_beside()) {
        return;
    }
    let Some(holds) = storage::of_current() else {
        return;
    };
    for slot in 0..SLOTS {
        if holds.locks[slot] == lock {
            holds.reads[slot] = 1;
            return;
        }
    }
}

#[inline(always)]
fn set_lock(holds: &mut Holds, slot: usize, lock: u64) {
    // Volatile, to stay the last store.
    // SAFETY: a reference is valid and aligned.
    unsafe { ptr::write_volatile(&raw mut holds.locks[slot], lock) };
}

#[inline(always)]
fn count(counter: u32) {
    if let Some(value) = HOLD_COUNTERS.get_ptr_mut(counter) {
        // SAFETY: this CPU's own slot. A program that interrupts this one at this
        // point costs one count, never a wrong address.
        unsafe { *value += 1 };
    }
}
