//! What the holds object keeps: which rwsems each task holds, and since when.
//!
//! Nothing is sent: user space reads the state of all tasks when somebody asks.

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most rwsems that one task is known to hold at once; more are counted as lost.
pub const SLOTS: usize = 8;

/// Bit of [`Holds::reads`]: the task has acquired the lock again since. Either it has it
/// more than once, or a release was missed, and it was not held all the time.
pub const AGAIN: u32 = 1 << 31;

/// The rwsems that a task holds, in no particular order.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Holds {
    /// Addresses; 0 = the slot is free. Written last when a slot is taken.
    pub locks: [u64; SLOTS],
    /// `CLOCK_MONOTONIC` ns at which each was acquired; a downgrade keeps it.
    pub since_ns: [u64; SLOTS],
    /// How often it is held for read, beside [`AGAIN`]; 0 = held for write.
    pub reads: [u32; SLOTS],
}

const _: () = assert!(size_of::<Holds>() == SLOTS * (2 * 8 + 4));

/// The holds of one task: what the iterator writes for each task that has any, and
/// the value of the map `HOLDS` where that is a hash by tid.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TaskHolds {
    /// Start time of the task in ns since boot: with the tid it identifies it for good.
    pub start_time_ns: u64,
    /// Thread id in the initial PID namespace.
    pub tid: u32,
    /// Thread group id in the initial PID namespace.
    pub tgid: u32,
    /// Its holds.
    pub holds: Holds,
}

const _: () = assert!(size_of::<TaskHolds>() == 8 + 2 * 4 + size_of::<Holds>());

/// Slots of a [`HoldSet`].
pub const HOLD_WAYS: usize = 4;

/// Elements of `HOLD_SETS`, 512 KiB: each task has one, see [`offset_of_set`], and shares it with
/// others. A power of 2.
pub const HOLD_SETS: usize = 4 * 1024;

const _: () = assert!(HOLD_SETS.is_power_of_two());

/// What [`HoldSet::state`] counts holds in the storage of tasks by.
pub const HOLD_BESIDE: u64 = 1 << 8;

/// A [`HoldSet::state`] with which all goes to the storage of tasks: no slot is free.
pub const HOLD_SET_CLOSED: u64 = HOLD_BESIDE | ((1 << HOLD_WAYS) - 1);

/// Holds of the tasks that share an element of `HOLD_SETS`. What finds no slot there is in the
/// storage of its task.
///
/// Who takes a slot swaps its bit into `state`, writes the slot, and its owner last; who leaves
/// it writes 0 for the owner, and takes the bit out last. So no task ever finds itself the owner
/// of a slot whose lock it does not hold, whatever others do in between.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct HoldSet {
    /// A bit for each slot that is taken, from bit 0 on; from [`HOLD_BESIDE`] on, how many holds
    /// of these tasks are in their storage. 0: nobody here holds anything.
    pub state: u64,
    /// As [`Holds::reads`], by slot.
    pub reads: [u32; HOLD_WAYS],
    /// The slots.
    pub slots: [HoldSlot; HOLD_WAYS],
    /// Explicit padding to 128 bytes, 0.
    pub _pad: u64,
}

const _: () = assert!(size_of::<HoldSet>() == 128);

/// A slot for a hold.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct HoldSlot {
    /// Address of the `task_struct`; 0: nobody's.
    pub owner: u64,
    /// Address of the lock.
    pub lock: u64,
    /// As [`Holds::since_ns`].
    pub since_ns: u64,
}

/// Where in `HOLD_SETS` the [`HoldSet`] of a task is, in bytes, by the lower half of the address
/// of its `task_struct`: the number of its 8 KiB, for those lie some thousand bytes apart, in
/// slabs of 32 KiB.
#[inline(always)]
pub const fn offset_of_set(half: u32) -> usize {
    const SIZE: usize = size_of::<HoldSet>();
    const { assert!(SIZE.is_power_of_two()) };
    (half >> (13 - SIZE.ilog2())) as usize & ((HOLD_SETS - 1) * SIZE)
}

/// Most tasks whose holds are known where the state is a hash by tid. The map is
/// preallocated, about 4 MiB.
pub const TASKS_MAX: u32 = 16 * 1024;

/// Releases by a task that was not known to hold the lock that are remembered, the
/// latest by lock.
pub const RELEASES_MAX: u32 = 8 * 1024;

/// Indexes into the per-CPU array `HOLD_COUNTERS`.
pub mod counter {
    /// Acquisitions that found no room.
    pub const LOST_HOLD: u32 = 0;
    /// Releases by a task that was not known to hold the lock.
    pub const FOREIGN_RELEASE: u32 = 1;
    /// Number of counters.
    pub const COUNT: u32 = 2;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_spread_over_the_sets() {
        // Two, three or more `task_struct`s to a slab of eight pages, as SLUB lays them.
        for size in [3328, 9792, 13_696] {
            let per_slab = 32 * 1024 / size;
            let mut used = [0u8; HOLD_SETS];
            for task in 0..HOLD_SETS as u64 {
                let address =
                    0xffff_8881_0320_0000 + task / per_slab * 32 * 1024 + task % per_slab * size;
                used[offset_of_set(address as u32) / size_of::<HoldSet>()] += 1;
            }
            let most = used.iter().max();
            assert!(most <= Some(&4), "{size}: {most:?}");
            let some = used.iter().filter(|&&tasks| tasks > 0).count();
            assert!(some >= HOLD_SETS / 4, "{size}: {some}");
        }
    }
}
