//! The last long holds of each class of lock: a recorder that is always on where holds are
//! tracked, and that others read, too.
//!
//! A map of slots, `SLOTS` for each of `RINGS` rings; a class has a ring of its own, locks in
//! the kernel's own data share the last rings by their address. Nothing keeps two writers
//! from one slot: programs here have no lock, and Linux 5.10 no atomic that tells what was
//! there. So each slot carries a check over all that is in it, which its writer makes of its
//! own copy: what two have written, or one has not ended, does not check.

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    counts::{CLASS_IS_ADDRESS, CLASSES},
    survey::COMM_LEN,
};

/// Name of the map of slots, with the version of what is in it: others look for it by that.
pub const MAP: &str = "LONG_HOLDS_1";

/// Rings there are.
pub const RINGS: u32 = 64;

/// The first ring of those that locks in the kernel's own data share.
const FIRST_SHARED: u32 = CLASSES as u32 + 1;

/// Holds that a ring keeps: the last ones.
pub const SLOTS: u32 = 16;

/// Return addresses that are kept of a release, innermost first.
pub const FRAMES: usize = 16;

/// Words of the object around a lock by which it is told from another one that lay there
/// before.
pub const OBJECT_WORDS: usize = 3;

/// Holds this long are kept if nobody says otherwise: 10 ms, in ns.
pub const LEAST_DEFAULT_NS: u64 = 10_000_000;

/// The ring of a class, see [`crate::counts::CountKey::class`].
#[inline(always)]
pub const fn ring_of(class: u64) -> u32 {
    if class >= CLASS_IS_ADDRESS {
        // Locks of the kernel's data are aligned, and some lie side by side.
        let mixed = (class >> 3).wrapping_mul(PRIME) >> 40;
        FIRST_SHARED + (mixed as u32) % (RINGS - FIRST_SHARED)
    } else if class < FIRST_SHARED as u64 {
        class as u32
    } else {
        0
    }
}

/// A hold that was long, written when it ended.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct LongHold {
    /// [`check_of`] the rest; 0: the slot is empty, or somebody writes it.
    pub check: u64,
    /// Address of the lock.
    pub lock: u64,
    /// Its class, see [`crate::counts::CountKey::class`].
    pub class: u64,
    /// `CLOCK_MONOTONIC` ns at which it was acquired.
    pub since_ns: u64,
    /// `CLOCK_MONOTONIC` ns at which it was released.
    pub until_ns: u64,
    /// `CLOCK_BOOTTIME` less `CLOCK_MONOTONIC` when it was released, in ns.
    pub asleep_ns: u64,
    /// Start time of the task in ns since boot: with the tid it identifies it for good.
    pub start_time_ns: u64,
    /// Thread id in the initial PID namespace.
    pub tid: u32,
    /// Thread group id in the initial PID namespace.
    pub tgid: u32,
    /// Name of the task, padded with 0; the words of its bytes in memory.
    pub comm: [u64; COMM_LEN / 8],
    /// What lay in the object around the lock, see [`ObjectWord`].
    pub object: [u64; OBJECT_WORDS],
    /// How it was held: one of [`crate::stream::flags`]' modes.
    pub how: u32,
    /// Explicit padding, 0.
    pub _pad: u32,
    /// The stack at the release, 0 behind its end.
    pub frames: [u64; FRAMES],
}

/// Words of a [`LongHold`].
pub const WORDS: usize = 8 + COMM_LEN / 8 + OBJECT_WORDS + 1 + FRAMES;

const _: () = assert!(size_of::<LongHold>() == WORDS * 8);

/// One word more of a slot taken into its check.
#[inline(always)]
pub const fn mix(check: u64, word: u64) -> u64 {
    (check ^ word).wrapping_mul(PRIME).rotate_left(29)
}

/// 2^64 divided by the golden ratio, made odd.
const PRIME: u64 = 0x9e37_79b9_7f4a_7c15;

/// The check that the words of a slot should have, its own, the first one, left out. Never 0.
/// `seed`: of the loader whose program wrote it.
pub const fn check_of(words: &[u64; WORDS], seed: u64) -> u64 {
    let mut check = seed;
    let mut index = 1;
    while index < WORDS {
        check = mix(check, words[index]);
        index += 1;
    }
    check | 1
}

/// A word of the object around a lock.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct ObjectWord {
    /// Where it is, from the address of the lock; may wrap.
    pub at: u64,
    /// The bits that count; 0: there is no such word.
    pub mask: u64,
}

impl ObjectWord {
    /// No word.
    pub const ABSENT: Self = Self { at: 0, mask: 0 };
}

/// Classes of which the table of [`ObjectWord`]s has a row, by their numbers: a power of 2.
pub const ROWS: usize = 16;

const _: () = assert!(ROWS > CLASSES && ROWS.is_power_of_two());

/// Which holds are kept. Set once, before loading, as a read-only global.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct LongHoldConfig {
    /// Those this long or longer, in ns; 0: none.
    pub least_ns: u64,
    /// What the check begins with: it stands for what the numbers of classes mean, so that
    /// whoever gives them other meanings takes no slot for valid.
    pub seed: u64,
    /// Holds of this thread group are not kept: our own process, or 0.
    pub own_tgid: u32,
    /// Explicit padding, 0.
    pub _pad: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_a_ring() {
        for class in 0..=CLASSES as u64 {
            assert_eq!(u64::from(ring_of(class)), class);
        }
        let shared: [u32; 200] =
            core::array::from_fn(|index| ring_of(0xffff_ffff_8200_0000 + 40 * index as u64));
        assert!(
            shared
                .iter()
                .all(|ring| (FIRST_SHARED..RINGS).contains(ring))
        );
        let used = (FIRST_SHARED..RINGS).filter(|ring| shared.contains(ring));
        assert!(used.count() > 40, "{shared:?}");
    }

    #[test]
    fn a_check_tells_each_word_and_its_place() {
        let words: [u64; WORDS] = core::array::from_fn(|index| index as u64);
        let check = check_of(&words, 7);
        assert_ne!(check, 0);
        assert_ne!(check, check_of(&words, 8));
        for index in 1..WORDS {
            let mut other = words;
            other[index] ^= 1 << 40;
            assert_ne!(check_of(&other, 7), check, "word {index}");
            other = words;
            other.swap(index, if index == 1 { 2 } else { index - 1 });
            assert_ne!(check_of(&other, 7), check, "word {index}");
        }
        let mut own = words;
        own[0] = 99;
        assert_eq!(check_of(&own, 7), check, "its own word does not count");
    }
}
