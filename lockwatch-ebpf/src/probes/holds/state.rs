//! Changes of one task's holds, and what is remembered of releases that belong to
//! nobody we know.
//!
//! These programs run in any context in which a kernel takes or leaves an rwsem, also
//! in an interrupt that hits one of them: it then changes the same task's slots in
//! between. So a slot is taken by one store, its lock's address, made last, and left
//! by one store: an interruption can cost a hold, which is then unknown, and never
//! leaves one that nobody has.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    EbpfContext,
    helpers::generated::bpf_ktime_get_ns,
    macros::map,
    maps::{LruHashMap, PerCpuArray},
};
use lockwatch_ebpf::{
    counts::{HELD, lost},
    holds::{AGAIN, HoldSet, Holds, RELEASES_MAX, SLOTS, counter},
    stream::flags,
};

use super::{counts, global::global, long_holds, slots::Set, storage};

/// When a lock was last released by a task that was not known to hold it:
/// `CLOCK_MONOTONIC` ns by address. Whoever is known to hold it since before that may
/// have lost it by this release.
#[map]
static RELEASES: LruHashMap<u64, u64> = LruHashMap::with_max_entries(RELEASES_MAX, 0);

/// Holds this long are counted or kept, in ns: a negative number if all are.
#[unsafe(no_mangle)]
static HOLDS_FROM_NS: i64 = i64::MAX;

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
        (reads & !AGAIN > 0) == (self == Self::Read)
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
///
/// In order, so that little has to be kept over calls: a register that is, is saved first.
#[inline(always)]
pub(super) fn acquired(lock: impl FnOnce() -> u64, mode: Mode, downgrades: Downgrades) {
    let since_ns = now_ns();
    let set = Set::of_current();
    let lock = lock();
    match set.take_first() {
        Some(slot) => slot.write(lock, since_ns, mode.reads()),
        None => {
            let (set, task) = set.parts();
            acquired_beside(set, task, lock, since_ns, how_acquired(mode, downgrades));
        }
    }
}

/// What `acquired_beside` is told of how: a mode as reads, and whether it may be a downgrade.
const MAY_DOWNGRADE: u32 = 2;

#[inline(always)]
fn how_acquired(mode: Mode, downgrades: Downgrades) -> u32 {
    match downgrades {
        Downgrades::Apart => mode.reads(),
        Downgrades::AsReads => mode.reads() | MAY_DOWNGRADE,
    }
}

/// The same where it may have the lock already, or others of its set have slots. A function of
/// its own: what it keeps over calls is no affair of others.
#[cold]
#[inline(never)]
fn acquired_beside(set: *mut HoldSet, task: u64, lock: u64, since_ns: u64, how: u32) {
    let set = Set::from_parts(set, task);
    let reads = how & !MAY_DOWNGRADE;
    if let Some(slot) = set.find(lock) {
        acquired_again(lock, slot.words(), since_ns, how);
        return;
    }
    if !set.has_beside()
        && let Some(slot) = set.take()
    {
        slot.write(lock, since_ns, reads);
        return;
    }
    let Some(holds) = storage::of_current_or_new() else {
        lose();
        return;
    };
    for slot in 0..SLOTS {
        if holds.locks[slot] == lock {
            acquired_again(lock, words(holds, slot), since_ns, how);
            return;
        }
    }
    if let Some(slot) = set.take() {
        slot.write(lock, since_ns, reads);
        return;
    }
    for slot in 0..SLOTS {
        if holds.locks[slot] == 0 {
            holds.since_ns[slot] = since_ns;
            holds.reads[slot] = reads;
            set.one_more_beside();
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
fn acquired_again(lock: u64, (since, held): (*mut u64, *mut u32), since_ns: u64, how: u32) {
    let reads = how & !MAY_DOWNGRADE;
    // SAFETY: valid and aligned; this task alone changes them.
    unsafe {
        let is_one_more = if Mode::Write.is_of(*held) {
            how & MAY_DOWNGRADE != 0
        } else {
            !is_stale(lock, *since)
        };
        if reads != 0 && is_one_more {
            // From write to read, or once more for read.
            *held = (*held + 1) | AGAIN;
        } else {
            // Another task has released that one, or its release was missed: nobody gets a
            // lock for write, nor for read after such a release, whose own hold of it still
            // stands.
            *since = since_ns;
            *held = reads;
        }
    }
}

/// `CLOCK_MONOTONIC`.
#[inline(always)]
fn now_ns() -> u64 {
    // SAFETY: no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// True if a task that was not known to hold the lock has released it since.
#[inline(always)]
pub(crate) fn is_stale(lock: u64, since_ns: u64) -> bool {
    RELEASES
        .get_ptr(lock)
        // SAFETY: a plain load from the entry.
        .is_some_and(|at_ns| unsafe { *at_ns } >= since_ns)
}

/// This task is about to release the lock, which it holds like this. A hold of the other
/// mode stays: it is one that another task has released. In order as `acquired`.
#[inline(always)]
pub(super) fn released(
    ctx: &impl EbpfContext,
    lock: impl FnOnce() -> u64,
    place: Place,
    mode: Mode,
) {
    let until_ns = now_ns();
    let set = Set::of_current();
    let lock = lock();
    let how = match mode {
        Mode::Read => flags::READ,
        Mode::Write => flags::WRITE,
    };
    let told = u64::from(how) << 32 | place.class;
    if let Some(since_ns) = set.leave_first(lock, mode.reads()) {
        let ns = until_ns.wrapping_sub(since_ns) as i64;
        if ns >= global!(HOLDS_FROM_NS) {
            ended(ctx.as_ptr(), place.offset, told, since_ns, ns);
        }
        return;
    }
    let (set, task) = set.parts();
    let since = released_beside(set, task, lock, until_ns, mode.reads());
    let since_ns = since & !ENDED_AGAIN;
    let ns = until_ns.wrapping_sub(since_ns) as i64;
    if since != 0 && ns >= global!(HOLDS_FROM_NS) {
        let told = told | since & ENDED_AGAIN;
        ended(ctx.as_ptr(), place.offset, told, since_ns, ns);
    }
}

/// Bit beside the time at which a hold began: see [`AGAIN`].
const ENDED_AGAIN: u64 = 1 << 63;

/// The same where the lock is not the only one that the task and others of its set hold, or
/// is held more than once, or is not known to be held. When the hold began that ended, with
/// [`ENDED_AGAIN`]; 0 if none has.
#[cold]
#[inline(never)]
fn released_beside(set: *mut HoldSet, task: u64, lock: u64, until_ns: u64, reads: u32) -> u64 {
    let set = Set::from_parts(set, task);
    let mode = if reads == 0 { Mode::Write } else { Mode::Read };
    if let Some(slot) = set.find(lock)
        && let (since, held) = slot.words()
        // SAFETY: this task has the slot.
        && mode.is_of(unsafe { *held })
    {
        // SAFETY: as above.
        let ended = unsafe { one_less(since, held) };
        if ended != 0 {
            slot.leave();
        }
        return ended;
    }
    if set.has_beside()
        && let Some(holds) = storage::of_current()
    {
        for slot in 0..SLOTS {
            if holds.locks[slot] == lock && mode.is_of(holds.reads[slot]) {
                let (since, held) = words(holds, slot);
                // SAFETY: of this task.
                let ended = unsafe { one_less(since, held) };
                if ended != 0 {
                    set_lock(holds, slot, 0);
                    set.one_less_beside();
                }
                return ended;
            }
        }
    }
    // Acquired before we came, or by another task, or the acquisition was lost.
    count(counter::FOREIGN_RELEASE);
    let _ = RELEASES.insert(lock, until_ns, 0);
    0
}

/// As `released_beside`, of a hold like this.
///
/// # Safety
/// Both must be valid and aligned.
#[inline(always)]
unsafe fn one_less(since: *mut u64, held: *mut u32) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let again = *held & AGAIN;
        if *held & !AGAIN > 1 {
            *held -= 1;
            return 0;
        }
        *since | u64::from(again) << 32
    }
}

/// Counts how long a hold was, and keeps it if that was long. One that was downgraded counts
/// as a whole, for read; one that was taken for read several times at once from the first to
/// the last release. `told`: class, how, and [`ENDED_AGAIN`]. `ns` may be negative: clocks of two
/// CPUs may be a moment apart.
#[cold]
#[inline(never)]
fn ended(ctx: *mut c_void, offset: u64, told: u64, since_ns: u64, ns: i64) {
    let ns = ns.max(0) as u64;
    let class = told & 0xffff_ffff;
    let how = (told >> 32) as u32 & !AGAIN;
    // What was acquired twice may have been let go in between.
    if long_holds::is_long(ns) && told & ENDED_AGAIN == 0 {
        long_holds::keep(ctx, Place { class, offset }, how, since_ns);
    }
    // Where the first argument is not the lock, the class is known.
    counts::count(&Context(ctx), counts::FIRST_ARGUMENT, class, how | HELD, ns);
}

/// That of a program, in a function of its own.
struct Context(*mut c_void);

impl EbpfContext for Context {
    fn as_ptr(&self) -> *mut c_void {
        self.0
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
    if let Some(slot) = set.find(lock) {
        let (_, reads) = slot.words();
        // SAFETY: this task has the slot.
        unsafe { *reads = 1 };
        return;
    }
    if !set.has_beside() {
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
