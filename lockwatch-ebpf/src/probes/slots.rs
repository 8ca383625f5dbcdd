//! Open waits in slots that each task finds by its thread id: no hash, no lock, no allocator.
//!
//! Only for programs of kernels from 5.12 on, which can compare and swap. What finds no slot
//! goes to the hash, as does what user space enters.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use lockwatch_ebpf::{
    stream::{OpenWait, WAIT_IS_WRITTEN, WAIT_SETS, WAIT_WAYS, WaitKey, WaitSet, WaitSlot},
    survey::COMM_LEN,
};

use super::atomic::swap;

/// User space maps it. As many as the loader says: [`WAIT_SETS`], or 1 where nothing here runs.
#[map]
static WAIT_SLOTS: Array<WaitSet> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The slots of one task and those it shares them with.
#[derive(Clone, Copy)]
pub(super) struct Set(*mut WaitSlot);

impl Set {
    /// `None` where there are none.
    #[inline(always)]
    pub(super) fn of(tid: u32) -> Option<Self> {
        WAIT_SLOTS
            .get_ptr_mut(tid & (WAIT_SETS - 1))
            .map(|set| Self(set.cast()))
    }

    /// The open wait of this task on this lock.
    #[inline(always)]
    pub(super) fn find(self, key: &WaitKey) -> Option<Slot> {
        for way in 0..WAIT_WAYS {
            let slot = self.slot(way);
            // SAFETY: a plain load from the map's value.
            let id = unsafe { (&raw const (*slot).id).read_volatile() };
            if id >> 32 == u64::from(key.tid)
                && id & WAIT_IS_WRITTEN != 0
                // SAFETY: as above.
                && unsafe { (&raw const (*slot).lock).read_volatile() } == key.lock
            {
                return Some(Slot { slot, id });
            }
        }
        None
    }

    /// Takes a free slot for a wait; `None` if there is none.
    #[inline(always)]
    pub(super) fn take(self, id: u64) -> Option<Slot> {
        for way in 0..WAIT_WAYS {
            let slot = self.slot(way);
            // Most often taken slots are told by a plain load.
            // SAFETY: an aligned word of the map's value.
            if unsafe {
                (&raw const (*slot).id).read_volatile() == 0 && swap(&raw mut (*slot).id, 0, id)
            } {
                return Some(Slot { slot, id });
            }
        }
        None
    }

    #[inline(always)]
    fn slot(self, way: usize) -> *mut WaitSlot {
        // SAFETY: in bounds.
        unsafe { self.0.add(way) }
    }
}

/// A slot that the running task has.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    slot: *mut WaitSlot,
    /// By what it has it.
    id: u64,
}

impl Slot {
    /// The wait in it.
    #[inline(always)]
    pub(super) fn wait(self) -> *mut OpenWait {
        // SAFETY: in bounds.
        unsafe { &raw mut (*self.slot).wait }
    }

    /// Writes the wait for which it was taken, but the task's name as the words in `comm`.
    #[inline(always)]
    pub(super) fn write(self, lock: u64, wait: &OpenWait, comm: [u64; COMM_LEN / 8]) {
        // Volatile, to stay in this order.
        // SAFETY: this task has the slot; names are aligned in it.
        unsafe {
            (&raw mut (*self.slot).lock).write_volatile(lock);
            let to = self.wait();
            (&raw mut (*to).since_ns).write_volatile(wait.since_ns);
            (&raw mut (*to).start_time_ns).write_volatile(wait.start_time_ns);
            (&raw mut (*to).tgid).write_volatile(wait.tgid);
            (&raw mut (*to).flags).write_volatile(wait.flags);
            let name = (&raw mut (*to).comm).cast::<u64>();
            name.write_volatile(comm[0]);
            name.add(1).write_volatile(comm[1]);
            (&raw mut (*self.slot).id).write_volatile(self.id | WAIT_IS_WRITTEN);
        }
    }

    /// Leaves it, unless user space has taken the wait out.
    #[inline(always)]
    pub(super) fn leave(self) {
        // SAFETY: an aligned word of the map's value.
        unsafe { swap(&raw mut (*self.slot).id, self.id, 0) };
    }
}
