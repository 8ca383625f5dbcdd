//! The last long holds: what the programs keep of them, and those of every lockwatch that
//! runs on this host.
//!
//! Nothing is pinned: the maps are found among all that are loaded, by name and form, and
//! read by `bpf(2)` alone, which waits for no lock that a stall could hold.

use std::{
    fmt, io,
    os::fd::{FromRawFd as _, OwnedFd},
};

use aya::{
    EbpfLoader,
    maps::{Array, Map, MapData, MapInfo, MapType, loaded_maps},
    programs::loaded_programs,
};
use lockwatch_ebpf::long_holds::{
    LongHold, LongHoldConfig, MAP, OBJECT_WORDS, ObjectWord, RINGS, ROWS, SLOTS, check_of, ring_of,
};
use zerocopy::transmute_ref;

use crate::probes::pod;

pod!(
    Config(LongHoldConfig),
    ObjectWords([[ObjectWord; OBJECT_WORDS]; ROWS]),
    Slot(LongHold)
);

/// `BPF_MAP_GET_FD_BY_ID` (include/uapi/linux/bpf.h, 4.13+).
const MAP_GET_FD_BY_ID: libc::c_int = 14;

/// `BPF_F_RDONLY`: the descriptor reads only.
const RDONLY: u32 = 1 << 3;

/// `BPF_PROG_TYPE_RAW_TRACEPOINT` and `BPF_PROG_TYPE_TRACING`: to load one takes privileges
/// that to make a map need not take.
const KEEPERS: [u32; 2] = [17, 26];

/// Which long holds the programs keep.
#[derive(Clone, Copy, Debug)]
pub struct LongHoldGlobals {
    /// How long is long.
    pub config: LongHoldConfig,
    /// By what objects are told apart, by the numbers of classes.
    pub object_words: [[ObjectWord; OBJECT_WORDS]; ROWS],
}

impl LongHoldGlobals {
    /// None is kept: the verifier drops all that keeping is.
    pub const OFF: Self = Self {
        config: LongHoldConfig {
            least_ns: 0,
            seed: 0,
            own_tgid: 0,
            _pad: 0,
        },
        object_words: [[ObjectWord::ABSENT; OBJECT_WORDS]; ROWS],
    };
}

/// The globals as the loader wants them, to live as long as it.
pub(super) struct Globals {
    config: Config,
    object_words: ObjectWords,
    slots: u32,
}

impl Globals {
    pub(super) fn new(globals: &LongHoldGlobals) -> Self {
        Self {
            config: Config(globals.config),
            object_words: ObjectWords(globals.object_words),
            slots: if globals.config.least_ns == 0 {
                1
            } else {
                RINGS * SLOTS
            },
        }
    }

    pub(super) fn put<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader
            .override_global("LONG_HOLDS", &self.config, true)
            .override_global("OBJECT_WORDS_OF", &self.object_words, true)
            .map_max_entries(MAP, self.slots);
    }
}

/// Whoever has kept long holds.
pub trait LongHolds {
    /// The holds of locks of the class with this number that are written whole, in no order.
    /// `meaning`: what numbers of classes mean to the caller; to whom they mean other things
    /// is not heard.
    fn of_class(&self, class: u64, meaning: u64) -> Vec<LongHold>;
}

/// What every lockwatch on this host that tracks holds has kept.
pub struct Recorders(Vec<Array<MapData, Slot>>);

impl fmt::Debug for Recorders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Recorders").field(&self.0.len()).finish()
    }
}

impl Recorders {
    /// Those that run now. None where there are none, or we may not look: that takes
    /// `CAP_SYS_ADMIN`.
    pub fn find() -> Self {
        let maps: Vec<MapInfo> = loaded_maps()
            .map_while(|map| match map {
                Ok(map) => Some(Some(map)),
                Err(error) if is_gone(&error) => Some(None),
                Err(error) => {
                    tracing::debug!("the maps of other recorders cannot be listed: {error}");
                    None
                }
            })
            .flatten()
            .filter(|map| Form::of(map).is_ours())
            .collect();
        if maps.is_empty() {
            return Self(Vec::new());
        }
        // Anybody may call a map so where unprivileged programs are allowed.
        let kept = in_use();
        let found = maps
            .iter()
            .filter(|map| kept.contains(&map.id()))
            .filter_map(|map| match open(map.id()) {
                Ok(slots) => Some(slots),
                Err(error) => {
                    tracing::debug!("a recorder of long holds cannot be read: {error}");
                    None
                }
            });
        Self(found.collect())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

impl LongHolds for Recorders {
    fn of_class(&self, class: u64, meaning: u64) -> Vec<LongHold> {
        let holds = self.0.iter().flat_map(|slots| {
            let read = |slot| slots.get(&slot, 0).ok().map(|slot: Slot| slot.0);
            whole(ring_of(class), meaning, read)
        });
        holds.filter(|hold| hold.class == class).collect()
    }
}

/// The holds of a ring that are written whole: those that check, and read the same twice.
fn whole(ring: u32, meaning: u64, mut read: impl FnMut(u32) -> Option<LongHold>) -> Vec<LongHold> {
    let slots = ring * SLOTS..(ring + 1) * SLOTS;
    let holds = slots.filter_map(|slot| {
        let hold = read(slot)?;
        let is_whole = hold.check != 0
            && hold.check == check_of(transmute_ref!(&hold), meaning)
            && read(slot)? == hold;
        is_whole.then_some(hold)
    });
    holds.collect()
}

/// What a map looks like from outside.
#[derive(Clone, Copy, Debug)]
struct Form<'a> {
    name: &'a [u8],
    is_array: bool,
    key_size: u32,
    value_size: u32,
    entries: u32,
}

impl<'a> Form<'a> {
    fn of(map: &'a MapInfo) -> Self {
        Self {
            name: map.name(),
            is_array: map.map_type().is_ok_and(|kind| kind == MapType::Array),
            key_size: map.key_size(),
            value_size: map.value_size(),
            entries: map.max_entries(),
        }
    }

    /// True if it can be what this version makes, and something is kept there.
    fn is_ours(&self) -> bool {
        self.name == MAP.as_bytes()
            && self.is_array
            && self.key_size as usize == size_of::<u32>()
            && self.value_size as usize == size_of::<LongHold>()
            && self.entries == RINGS * SLOTS
    }
}

/// The ids of the maps that programs of the keepers' types have.
fn in_use() -> Vec<u32> {
    let programs = loaded_programs().flatten();
    let keepers = programs.filter(|program| KEEPERS.contains(&(program.program_type() as u32)));
    keepers
        .filter_map(|program| program.map_ids().ok().flatten())
        .flatten()
        .collect()
}

/// It was unloaded between being listed and being asked.
fn is_gone(error: &aya::maps::MapError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.raw_os_error() == Some(libc::ENOENT);
        }
        cause = error.source();
    }
    false
}

/// Opens a map for reading only.
fn open(id: u32) -> io::Result<Array<MapData, Slot>> {
    /// The part of `union bpf_attr` for this command.
    #[repr(C)]
    struct GetFdById {
        id: u32,
        next_id: u32,
        open_flags: u32,
    }
    let attributes = GetFdById {
        id,
        next_id: 0,
        open_flags: RDONLY,
    };
    // SAFETY: the kernel reads as much as is said, from memory that is there.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            MAP_GET_FD_BY_ID,
            &raw const attributes,
            size_of::<GetFdById>(),
        )
    };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that is ours.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let map = MapData::from_fd(fd).map_err(io::Error::other)?;
    Array::try_from(Map::Array(map)).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use zerocopy::IntoBytes as _;

    use super::*;

    const MEANING: u64 = 77;
    const RING: u32 = 3;

    fn hold(until_ns: u64) -> LongHold {
        let mut hold = LongHold {
            lock: 0xffff_8880_0000_1040,
            class: RING.into(),
            since_ns: 5,
            until_ns,
            tid: 4442,
            frames: [0xffff_ffff_8100_0000; 16],
            ..LongHold::default()
        };
        hold.check = check_of(transmute_ref!(&hold), MEANING);
        hold
    }

    /// As the programs write: the n-th hold of a ring goes here.
    fn slot(number: u32) -> u32 {
        RING * SLOTS + number % SLOTS
    }

    fn ends(slots: &BTreeMap<u32, LongHold>) -> Vec<u64> {
        let read = |slot| Some(slots.get(&slot).copied().unwrap_or_default());
        let mut ends: Vec<u64> = whole(RING, MEANING, read)
            .iter()
            .map(|hold| hold.until_ns)
            .collect();
        ends.sort_unstable();
        ends
    }

    #[test]
    fn a_ring_has_the_last_holds_of_its_class_only() {
        let mut slots = BTreeMap::new();
        assert!(ends(&slots).is_empty());
        for number in 0..SLOTS + 5 {
            slots.insert(slot(number), hold(100 + u64::from(number)));
        }
        slots.insert((RING + 1) * SLOTS, hold(7));
        slots.insert(RING * SLOTS - 1, hold(8));
        let last: Vec<u64> = (105..100 + u64::from(SLOTS) + 5).collect();
        assert_eq!(ends(&slots), last);
    }

    #[test]
    fn what_two_have_written_is_not_told() {
        let (one, other) = (hold(100), hold(200));
        let words = |hold: &LongHold| -> Vec<u8> { hold.as_bytes().to_vec() };
        let len = size_of::<LongHold>();
        // However far one came before the other wrote all, and whichever check came last.
        for at in (8..len).step_by(8) {
            let mut mixed = words(&one);
            mixed[at..].copy_from_slice(&words(&other)[at..]);
            for check in [0, one.check, other.check] {
                mixed[..8].copy_from_slice(&check.to_ne_bytes());
                let mixed: LongHold = zerocopy::FromBytes::read_from_bytes(&mixed[..]).unwrap();
                if mixed == one || mixed == other {
                    continue;
                }
                assert!(ends(&BTreeMap::from([(slot(0), mixed)])).is_empty());
            }
        }
    }

    #[test]
    fn what_changes_while_it_is_read_is_not_told() {
        let mut reads = 0;
        let read = |_| {
            reads += 1;
            Some(hold(reads))
        };
        assert_eq!(whole(RING, MEANING, read), []);
    }

    #[test]
    fn whoever_numbers_classes_otherwise_is_not_heard() {
        let read = |_| Some(hold(1));
        assert_eq!(whole(RING, MEANING, read).len(), SLOTS as usize);
        assert_eq!(whole(RING, MEANING + 1, read), []);
    }

    #[test]
    fn foreign_maps_of_the_same_name_are_left_alone() {
        let ours = Form {
            name: MAP.as_bytes(),
            is_array: true,
            key_size: 4,
            value_size: 240,
            entries: RINGS * SLOTS,
        };
        assert!(ours.is_ours());
        let foreign = [
            Form {
                name: b"LONG_HOLDS_2",
                ..ours
            },
            Form {
                name: b"LONG_HOLDS_1X",
                ..ours
            },
            Form {
                is_array: false,
                ..ours
            },
            Form {
                key_size: 8,
                ..ours
            },
            Form {
                value_size: 232,
                ..ours
            },
            // One that keeps nothing.
            Form { entries: 1, ..ours },
        ];
        for form in foreign {
            assert!(!form.is_ours(), "{form:?}");
        }
    }
}
