//! Holds in slots that each task finds by the address of its `task_struct`: no lookup, no lock,
//! no allocator. What finds no slot is in the storage of the task.
//!
//! A slot is its owner's alone until the task is freed, of which `task_exit` tells: before that,
//! no other task has its address.

use core::arch::asm;

use aya_ebpf::helpers::generated::bpf_get_current_task;
use lockwatch_ebpf::holds::{
    HOLD_BESIDE, HOLD_SETS as SETS, HOLD_WAYS, HoldSet, HoldSlot, Holds, offset_of_set,
};

use super::atomic::swap;

/// A global, and no map to look up: the verifier knows where it is and how long.
#[unsafe(no_mangle)]
static mut HOLD_SETS: [HoldSet; SETS] = [HoldSet {
    state: 0,
    reads: [0; HOLD_WAYS],
    slots: [HoldSlot {
        owner: 0,
        lock: 0,
        since_ns: 0,
    }; HOLD_WAYS],
    _pad: 0,
}; SETS];

/// The slots of one task and those it shares them with.
#[derive(Clone, Copy)]
pub(super) struct Set {
    set: *mut HoldSet,
    task: u64,
}

impl Set {
    /// The running task's.
    #[inline(always)]
    pub(super) fn of_current() -> Self {
        // SAFETY: no preconditions.
        Self::of(unsafe { bpf_get_current_task() })
    }

    /// Those of the task at this address, which may be a typed pointer: verifiers allow to compare
    /// it and to copy its lower half (5.13–7.3).
    #[inline(always)]
    pub(super) fn of(task: u64) -> Self {
        let half: u32;
        // SAFETY: a copy. As assembly, or the compiler calculates with the whole.
        unsafe {
            asm!(
                "{half} = {task}",
                half = lateout(wreg) half,
                task = in(wreg) task as u32,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        // SAFETY: in bounds, where an element begins.
        let set = unsafe { (&raw mut HOLD_SETS).byte_add(offset_of_set(half)).cast() };
        Self { set, task }
    }

    /// Takes the first slot if nobody here holds anything.
    #[inline(always)]
    pub(super) fn take_first(self) -> Option<Slot> {
        // SAFETY: an aligned word of the set.
        unsafe { swap(self.state(), 0, 1) }.then_some(Slot { set: self, way: 0 })
    }

    /// What `from_parts` makes it of again: a function of its own takes no structures.
    #[inline(always)]
    pub(super) fn parts(self) -> (*mut HoldSet, u64) {
        (self.set, self.task)
    }

    /// See `parts`.
    #[inline(always)]
    pub(super) fn from_parts(set: *mut HoldSet, task: u64) -> Self {
        Self { set, task }
    }

    /// Takes a free slot; `None` if there is none.
    #[inline(always)]
    pub(super) fn take(self) -> Option<Slot> {
        for way in 0..HOLD_WAYS {
            // SAFETY: an aligned word of the set.
            let state = unsafe { self.state().read_volatile() };
            if state & bit(way) == 0
                // SAFETY: as above.
                && unsafe { swap(self.state(), state, state | bit(way)) }
            {
                return Some(Slot { set: self, way });
            }
        }
        None
    }

    /// Leaves the first slot if this task has it for this lock, for read so often. When the hold
    /// began.
    #[inline(always)]
    pub(super) fn leave_first(self, lock: u64, reads: u32) -> Option<u64> {
        let slot = Slot { set: self, way: 0 };
        // SAFETY: an aligned word of the set.
        if !slot.is_of(lock) || unsafe { slot.reads().read_volatile() } != reads {
            return None;
        }
        // SAFETY: as above.
        let since_ns = unsafe { slot.since_ns().read_volatile() };
        slot.leave();
        Some(since_ns)
    }

    /// The slot that this task has for this lock.
    #[inline(always)]
    pub(super) fn find(self, lock: u64) -> Option<Slot> {
        (0..HOLD_WAYS)
            .map(|way| Slot { set: self, way })
            .find(|slot| slot.is_of(lock))
    }

    /// True if tasks of this set have holds in their storage.
    #[inline(always)]
    pub(super) fn has_beside(self) -> bool {
        // SAFETY: an aligned word of the set.
        unsafe { self.state().read_volatile() >= HOLD_BESIDE }
    }

    /// There is one more hold in the storage of a task.
    #[inline(always)]
    pub(super) fn one_more_beside(self) {
        // SAFETY: an aligned word of the set.
        unsafe { add(self.state(), HOLD_BESIDE) };
    }

    /// There is one less. Those of a task that ends with holds are never taken off: what that
    /// costs is some time.
    #[inline(always)]
    pub(super) fn one_less_beside(self) {
        // SAFETY: an aligned word of the set.
        unsafe { add(self.state(), HOLD_BESIDE.wrapping_neg()) };
    }

    /// Leaves all slots of the task, which runs no more.
    #[inline(always)]
    pub(super) fn leave_all(self) {
        for way in 0..HOLD_WAYS {
            let slot = Slot { set: self, way };
            // SAFETY: an aligned word of the set.
            if unsafe { slot.owner().read_volatile() } == self.task {
                slot.leave();
            }
        }
    }

    /// The holds in the slots of the task, which may run meanwhile; `None` if there are none.
    #[inline(always)]
    pub(super) fn read(self) -> Option<Holds> {
        let mut holds = Holds::default();
        let mut any = 0;
        for way in 0..HOLD_WAYS {
            let slot = Slot { set: self, way };
            let (lock, since_ns, reads) = slot.read();
            holds.locks[way] = lock;
            holds.since_ns[way] = since_ns;
            holds.reads[way] = reads;
            any |= lock;
        }
        (any != 0).then_some(holds)
    }

    #[inline(always)]
    fn state(self) -> *mut u64 {
        // SAFETY: in bounds.
        unsafe { &raw mut (*self.set).state }
    }
}

/// A slot of a set.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    set: Set,
    way: usize,
}

impl Slot {
    /// Writes the hold for which it was taken.
    #[inline(always)]
    pub(super) fn write(self, lock: u64, since_ns: u64, reads: u32) {
        // Volatile, to stay in this order.
        // SAFETY: this task has the slot.
        unsafe {
            self.since_ns().write_volatile(since_ns);
            self.reads().write_volatile(reads);
            self.lock().write_volatile(lock);
            self.owner().write_volatile(self.set.task);
        }
    }

    /// Leaves it.
    #[inline(always)]
    pub(super) fn leave(self) {
        // SAFETY: this task has the slot. The addition is a full barrier: who takes the slot
        // next writes its owner later.
        unsafe {
            self.owner().write_volatile(0);
            add(self.set.state(), bit(self.way).wrapping_neg());
        }
    }

    /// When the hold began, and how often it is for read.
    #[inline(always)]
    pub(super) fn words(self) -> (*mut u64, *mut u32) {
        (self.since_ns(), self.reads())
    }

    /// True if the task has it for this lock.
    #[inline(always)]
    fn is_of(self, lock: u64) -> bool {
        // SAFETY: aligned words of the set.
        unsafe {
            self.owner().read_volatile() == self.set.task && self.lock().read_volatile() == lock
        }
    }

    /// Lock, since when, and how often for read; a lock of 0 if the task does not have it. What
    /// two holds had one after the other is not mixed: no two begin at the same time.
    #[inline(always)]
    fn read(self) -> (u64, u64, u32) {
        // A second time if it was about to change.
        for _ in 0..2 {
            // SAFETY: aligned words of the set.
            unsafe {
                let since_ns = self.since_ns().read_volatile();
                let owner = self.owner().read_volatile();
                let lock = self.lock().read_volatile();
                let reads = self.reads().read_volatile();
                if owner != self.set.task {
                    break;
                }
                if self.owner().read_volatile() == owner
                    && self.since_ns().read_volatile() == since_ns
                {
                    return (lock, since_ns, reads);
                }
            }
        }
        (0, 0, 0)
    }

    #[inline(always)]
    fn owner(self) -> *mut u64 {
        // SAFETY: in bounds.
        unsafe { &raw mut (*self.slot()).owner }
    }

    #[inline(always)]
    fn lock(self) -> *mut u64 {
        // SAFETY: in bounds.
        unsafe { &raw mut (*self.slot()).lock }
    }

    #[inline(always)]
    fn since_ns(self) -> *mut u64 {
        // SAFETY: in bounds.
        unsafe { &raw mut (*self.slot()).since_ns }
    }

    #[inline(always)]
    fn reads(self) -> *mut u32 {
        // SAFETY: in bounds.
        unsafe { (&raw mut (*self.set.set).reads).cast::<u32>().add(self.way) }
    }

    #[inline(always)]
    fn slot(self) -> *mut HoldSlot {
        // SAFETY: in bounds.
        unsafe {
            (&raw mut (*self.set.set).slots)
                .cast::<HoldSlot>()
                .add(self.way)
        }
    }
}

const fn bit(way: usize) -> u64 {
    1 << way
}

/// Adds to the word. As assembly, to be one that returns what was there, which is a full
/// barrier.
///
/// # Safety
/// `at` must be valid, and aligned.
#[inline(always)]
unsafe fn add(at: *mut u64, by: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{by} = atomic_fetch_add((u64 *)({at} + 0), {by})",
            at = in(reg) at,
            by = inout(reg) by => _,
        );
    }
}
