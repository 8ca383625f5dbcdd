//! How long waits and holds were: counts in log-linear buckets, in a map that is never
//! emptied. User space reads it when it likes and subtracts what it read before.
//!
//! The buckets are those of an `HdrHistogram` of two significant digits whose lowest
//! value is 1 ns, so that a count goes from one into the other without an error.

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{stream::Code, survey::COMM_LEN};

/// Values below this have a bucket each; above, each doubling is cut into half as many.
const SUB_BUCKETS: u64 = 256;
/// Bits of a value that the buckets tell apart: log2 of [`SUB_BUCKETS`].
const SUB_BUCKET_BITS: u32 = 8;

/// The longest time that has a bucket of its own, 1 h in ns; longer ones are counted as that.
pub const LONGEST_NS: u64 = 3_600_000_000_000;

/// The bucket of a time in ns.
#[inline(always)]
pub const fn bucket_of(ns: u64) -> u32 {
    let ns = if ns > LONGEST_NS { LONGEST_NS } else { ns };
    // How far the highest bit lies above those that a bucket tells apart.
    let shift = (u64::BITS - SUB_BUCKET_BITS) - (ns | (SUB_BUCKETS - 1)).leading_zeros();
    (shift << (SUB_BUCKET_BITS - 1)) + (ns >> shift) as u32
}

/// The shortest time in a bucket, in ns.
pub const fn shortest_ns(bucket: u32) -> u64 {
    let half = 1 << (SUB_BUCKET_BITS - 1);
    if bucket < 2 * half {
        return bucket as u64;
    }
    let shift = bucket / half - 1;
    ((bucket % half + half) as u64) << shift
}

/// The longest time in a bucket, in ns.
pub const fn longest_ns(bucket: u32) -> u64 {
    shortest_ns(bucket + 1) - 1
}

/// Buckets there are.
pub const BUCKETS: u32 = bucket_of(LONGEST_NS) + 1;

/// Bit of [`CountKey::how`] beside those of [`crate::stream::flags`]: the lock was held
/// this long, not waited for.
pub const HELD: u32 = 1 << 29;

/// Values of [`CountKey::caller`] that are no address.
pub mod caller {
    /// Its stack shows no function outside of lock code.
    pub const UNKNOWN: u64 = 0;
    /// It was too short for its stack to be looked at.
    pub const SHORT: u64 = 1;
}

/// Values of [`CountKey::class`] from here on are addresses of locks in the kernel's own
/// image; below: 0, nobody knows what contains it, or the number of a [`ClassRule`], from 1.
pub const CLASS_IS_ADDRESS: u64 = 1 << 63;

/// The class of `mmap_lock`: the first [`ClassRule`] is always its.
pub const MMAP_LOCK: u64 = 1;

/// Key of the map `COUNTS`.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct CountKey {
    /// What kind of object the lock is part of.
    pub class: u64,
    /// A return address in the first function outside of lock code, or one of [`caller`].
    pub caller: u64,
    /// The wait's [`crate::stream::flags`], and [`HELD`].
    pub how: u32,
    /// The bucket of how long it was, see [`bucket_of`].
    pub bucket: u32,
}

const _: () = assert!(size_of::<CountKey>() == 2 * 8 + 2 * 4);

/// Value of the map `COUNTS`.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Count {
    /// How many there were.
    pub count: u64,
    /// How long they were together, in ns.
    pub sum_ns: u64,
}

const _: () = assert!(size_of::<Count>() == 2 * 8);

/// Entries of the map `COUNTS` if nobody asks for another number: 64 buckets in use for
/// each of 1,000 series. The map is preallocated and the same for all CPUs: about 104 bytes
/// an entry, 6.5 MiB, on any number of CPUs.
pub const COUNTS_DEFAULT: u32 = 64_000;

/// How to recognise what contains a lock: by a pointer in it that leads back to it.
///
/// With `base` = the lock's address − `lock`, let `found` be `*(base + pointer)`, or
/// `*(*(base + pointer) + hop)` with a hop. The object is of this class if `found` is
/// `base + back`, or, with `same`, what `*(base + same)` is and not 0.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct ClassRule {
    /// Offset of the lock in the object.
    pub lock: u64,
    /// Offset of the pointer in the object.
    pub pointer: u64,
    /// Offset of the second pointer in what the first points at, or [`ClassRule::NONE`].
    pub hop: u64,
    /// What is to be found, from the object's address.
    pub back: u64,
    /// Offset of another pointer that is to be equal, or [`ClassRule::NONE`].
    pub same: u64,
    /// A wait for such a lock has these of the [`crate::stream::flags`] in `mask`.
    pub flags: u32,
    /// 0: the rule is not there.
    pub mask: u32,
}

const _: () = assert!(size_of::<ClassRule>() == 5 * 8 + 2 * 4);

impl ClassRule {
    /// There is no such pointer.
    pub const NONE: u64 = u64::MAX;
    /// No rule.
    pub const ABSENT: Self = Self {
        lock: 0,
        pointer: 0,
        hop: 0,
        back: 0,
        same: 0,
        flags: 0,
        mask: 0,
    };
}

/// Rules there is room for.
pub const CLASSES: usize = 10;

/// Pieces of code there is room for that ask for locks on behalf of a caller; with
/// [`NO_CODE`] behind the last.
pub const LOCK_CODE: usize = 24;

/// No piece of code, behind all that are.
pub const NO_CODE: Code = Code {
    start: u64::MAX,
    len: 0,
};

/// Values of each kind that can be asked for at once.
pub const WANTED: usize = 8;

/// What is counted. Set once, before loading, as a read-only global.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct CountConfig {
    /// Stacks of what was shorter than this, in ns, are not looked at.
    pub callers_from_ns: u64,
    /// 1: count.
    pub on: u32,
    /// Waits and holds of this thread group are not counted: our own process, or 0.
    pub own_tgid: u32,
    /// 1: `TRACERS` has pages.
    pub tracers: u32,
    /// Explicit padding, 0.
    pub _pad: u32,
}

const _: () = assert!(size_of::<CountConfig>() == 8 + 4 * 4);

/// Pages that the map `TRACERS` has room for: two for each function that is hooked, and some
/// for what others hook.
pub const TRACERS_MAX: u32 = 512;

/// Which waits and holds are counted: those with one of the values of each kind that was
/// asked for; a kind of which no value was asked for does not matter.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Wanted {
    /// Ids of cgroups (v2).
    pub cgroups: [u64; WANTED],
    /// Values of [`CountKey::class`].
    pub classes: [u64; WANTED],
    /// Code of callers.
    pub callers: [Code; WANTED],
    /// Names of tasks, padded with 0; the words of their bytes in memory.
    pub comms: [[u64; COMM_LEN / 8]; WANTED],
    /// Thread ids or thread group ids in the initial PID namespace.
    pub pids: [u32; WANTED],
    /// How many of `cgroups` are asked for.
    pub cgroup_count: u32,
    /// How many of `classes`.
    pub class_count: u32,
    /// How many of `callers`.
    pub caller_count: u32,
    /// How many of `comms`.
    pub comm_count: u32,
    /// How many of `pids`.
    pub pid_count: u32,
    /// Explicit padding, 0.
    pub _pad: u32,
}

const _: () = assert!(size_of::<Wanted>() == WANTED * (2 * 8 + 16 + COMM_LEN + 4) + 6 * 4);

impl Wanted {
    /// All are counted.
    pub const NONE: Self = Self {
        cgroups: [0; WANTED],
        classes: [0; WANTED],
        callers: [Code { start: 0, len: 0 }; WANTED],
        comms: [[0; COMM_LEN / 8]; WANTED],
        pids: [0; WANTED],
        cgroup_count: 0,
        class_count: 0,
        caller_count: 0,
        comm_count: 0,
        pid_count: 0,
        _pad: 0,
    };
}

/// Indexes into the per-CPU array `COUNTS_LOST`.
pub mod lost {
    /// Waits that found no entry in the map, or could not be kept while they were open.
    pub const WAITS: u32 = 0;
    /// The same of holds.
    pub const HOLDS: u32 = 1;
    /// Number of counters.
    pub const COUNT: u32 = 2;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bucket_begins_where_the_one_before_it_ends() {
        assert_eq!(bucket_of(0), 0);
        for bucket in 0..BUCKETS {
            let (shortest, longest) = (shortest_ns(bucket), longest_ns(bucket));
            assert!(shortest <= longest);
            assert_eq!(bucket_of(shortest), bucket);
            if longest <= LONGEST_NS {
                assert_eq!(bucket_of(longest), bucket);
                assert_eq!(
                    bucket_of(longest + 1).min(BUCKETS - 1),
                    (bucket + 1).min(BUCKETS - 1)
                );
            }
        }
    }

    #[test]
    fn a_bucket_is_never_wider_than_a_hundredth_of_its_times() {
        for bucket in 256..BUCKETS {
            let width = longest_ns(bucket) - shortest_ns(bucket) + 1;
            assert!(width * 100 <= shortest_ns(bucket), "bucket {bucket}");
        }
    }

    #[test]
    fn what_is_longer_than_the_longest_is_counted_as_that() {
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert_eq!(bucket_of(LONGEST_NS), BUCKETS - 1);
    }
}
