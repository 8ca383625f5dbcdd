//! The counts of waits and holds that two of the objects keep, each in a map of its own.

use std::{io, ops::Range};

use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, MapData, PerCpuArray},
};
use lockwatch_ebpf::{
    counts::{CLASSES, ClassRule, Count, CountConfig, CountKey, LOCK_CODE, NO_CODE, Wanted, lost},
    stream::Code,
};

use crate::probes::{LoadError, map, pod};

pod!(
    Config(CountConfig),
    LockCode([Code; LOCK_CODE]),
    Rules([ClassRule; CLASSES]),
    Image(Code),
    Asked(Wanted),
    Key(CountKey),
    Value(Count)
);

/// What an object that counts is loaded with.
#[derive(Clone, Copy, Debug)]
pub struct CountGlobals {
    /// What is counted, and how.
    pub config: CountConfig,
    /// Code of the locks, by address, with [`NO_CODE`] behind.
    pub lock_code: [Code; LOCK_CODE],
    /// What contains a lock.
    pub rules: [ClassRule; CLASSES],
    /// Where the kernel's image lies.
    pub image: Code,
    /// What is asked for.
    pub wanted: Wanted,
    /// Entries of the map.
    pub entries: u32,
}

impl CountGlobals {
    /// Nothing is counted: the verifier drops all that counting is.
    pub const OFF: Self = Self {
        config: CountConfig {
            callers_from_ns: 0,
            on: 0,
            own_tgid: 0,
            tracers: 0,
            _pad: 0,
        },
        lock_code: [NO_CODE; LOCK_CODE],
        rules: [ClassRule::ABSENT; CLASSES],
        image: Code { start: 0, len: 0 },
        wanted: Wanted::NONE,
        entries: 1,
    };
}

/// A range as the programs want it.
pub(crate) fn code(range: &Range<u64>) -> Code {
    Code {
        start: range.start,
        len: range.end - range.start,
    }
}

/// The globals as the loader wants them, to live as long as it.
pub(super) struct Globals {
    config: Config,
    lock_code: LockCode,
    rules: Rules,
    image: Image,
    wanted: Asked,
    entries: u32,
}

impl Globals {
    pub(super) fn new(globals: &CountGlobals) -> Self {
        Self {
            config: Config(globals.config),
            lock_code: LockCode(globals.lock_code),
            rules: Rules(globals.rules),
            image: Image(globals.image),
            wanted: Asked(globals.wanted),
            entries: globals.entries,
        }
    }

    pub(super) fn put<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader
            .override_global("COUNT_CONFIG", &self.config, true)
            .override_global("LOCK_CODE_AT", &self.lock_code, true)
            .override_global("CLASS_RULES", &self.rules, true)
            .override_global("KERNEL_IMAGE", &self.image, true)
            .override_global("WANTED", &self.wanted, true)
            .map_max_entries("COUNTS", self.entries);
    }
}

/// The counts of one object.
pub struct CountsMap {
    counts: HashMap<MapData, Key, Value>,
    lost: PerCpuArray<MapData, u64>,
    tracers: HashMap<MapData, u64, u8>,
}

impl std::fmt::Debug for CountsMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CountsMap").finish_non_exhaustive()
    }
}

impl CountsMap {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        let typed = |error| LoadError::Map(io::Error::other(error));
        Ok(Self {
            counts: HashMap::try_from(map(ebpf, "COUNTS")?).map_err(typed)?,
            lost: PerCpuArray::try_from(map(ebpf, "COUNTS_LOST")?).map_err(typed)?,
            tracers: HashMap::try_from(map(ebpf, "TRACERS")?).map_err(typed)?,
        })
    }

    /// Callers are looked for outside of these pages, too, given by number; what finds no
    /// room may be named as a caller.
    pub fn leave_out(&mut self, pages: impl IntoIterator<Item = u64>) {
        for page in pages {
            if let Err(error) = self.tracers.insert(page, 1, 0) {
                tracing::debug!("no room for a tracer's page: {error}");
                return;
            }
        }
    }

    /// Reads all counts. Entries are never removed, so that none is missed.
    ///
    /// # Errors
    /// When the kernel does not let the map be read.
    pub fn read(&self, mut each: impl FnMut(CountKey, Count)) -> io::Result<()> {
        for entry in &self.counts {
            let (key, count) = entry.map_err(io::Error::other)?;
            each(key.0, count.0);
        }
        Ok(())
    }

    /// What found no room, by [`lost`].
    pub fn lost(&self) -> [u64; lost::COUNT as usize] {
        std::array::from_fn(|index| {
            self.lost
                .get(&(index as u32), 0)
                .map_or(0, |values| values.iter().sum())
        })
    }
}
