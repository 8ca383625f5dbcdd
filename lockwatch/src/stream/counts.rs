//! What is counted in the kernel, decoded into distributions.

use std::{cell::RefCell, io, sync::Arc};

use lockwatch_ebpf::{
    counts::{
        COUNTS_DEFAULT, CountConfig, CountKey, HELD, WANTED, Wanted, caller as no_caller, lost,
    },
    stream::Code,
    survey::COMM_LEN,
};
use rustc_hash::FxHashMap;

use crate::{
    kernel::{
        arch::{IMAGE, is_image_address},
        layout::Layout,
        lock_classes,
        symbols::{CodeBounds, Symbols},
    },
    latency::{Caller, Measure, SeriesKey, Snapshot},
    lock::LockClass,
    probes::counts::{CountGlobals, CountsMap, code},
    stream::event::{comm_bytes, lock_kind, lock_mode},
    task::{Nanos, Tgid},
};

/// What to count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountOptions {
    /// Entries of the map, each a bucket in use of a series.
    pub entries: u32,
    /// What was shorter is not told apart by its caller: a look at the stack costs some µs.
    pub callers_from: Nanos,
    /// Of which tasks and locks.
    pub wanted: CountsWanted,
}

impl Default for CountOptions {
    fn default() -> Self {
        Self {
            entries: COUNTS_DEFAULT,
            callers_from: Nanos(10_000),
            wanted: CountsWanted::default(),
        }
    }
}

/// Which waits and holds are counted: those with one of the values of each kind; a kind
/// without a value does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CountsWanted {
    /// Processes, or threads.
    pub pids: Vec<Tgid>,
    /// Names of tasks.
    pub comms: Vec<String>,
    /// Control groups (v2) that the tasks are in, by their id; not those below them.
    pub cgroups: Vec<u64>,
    /// Lock classes by name.
    pub classes: Vec<String>,
    /// Functions that ask for the lock.
    pub callers: Vec<String>,
}

/// Why something cannot be asked for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WantedError {
    /// More values than the programs compare with.
    #[error("at most {WANTED} values of {0} can be asked for at once")]
    TooMany(&'static str),
    /// A caller that no function of the kernel is.
    #[error("the running kernel has no function {0} (in /proc/kallsyms)")]
    NoFunction(String),
    /// A class that nothing tells.
    #[error(
        "waits cannot be counted by the class {0}: it is none of those that are told on this \
         kernel ({1}), and no symbol"
    )]
    NoClass(String, String),
    /// Names of functions are not known.
    #[error(
        "callers cannot be asked for: /proc/kallsyms shows no addresses (see `lockwatch check`)"
    )]
    NoSymbols,
}

/// Everything that the programs are loaded with for these options.
///
/// # Errors
/// When more is asked for than they can compare with, or something that is not there.
pub fn globals(
    options: &CountOptions,
    layout: &Layout,
    symbols: Option<&Symbols>,
) -> Result<CountGlobals, WantedError> {
    let mut globals = classes_alone(layout);
    globals.config = CountConfig {
        callers_from_ns: options.callers_from.0,
        on: 1,
        own_tgid: std::process::id(),
        tracers: 1,
        _pad: 0,
    };
    globals.entries = options.entries;
    let lock_code = symbols.map_or_else(Vec::new, lock_classes::lock_code);
    for (slot, range) in globals.lock_code.iter_mut().zip(&lock_code) {
        *slot = code(range);
    }
    let mut classes = options.wanted.classes.iter();
    if classes.any(|name| lock_classes::is_told_by_caller(name)) {
        // The short ones would not be found to be of the class.
        globals.config.callers_from_ns = 0;
    }
    if lock_code.is_empty() {
        // A caller is what is behind a lock's own functions.
        globals.config.callers_from_ns = u64::MAX;
    }
    globals.wanted = wanted(&options.wanted, &lock_classes::classes(layout), symbols)?;
    Ok(globals)
}

/// Nothing is counted, but the programs know the class of a lock.
pub fn classes_alone(layout: &Layout) -> CountGlobals {
    let mut globals = CountGlobals::OFF;
    globals.image = code(&IMAGE);
    for (slot, (rule, _)) in globals.rules.iter_mut().zip(lock_classes::rules(layout)) {
        *slot = rule;
    }
    globals
}

fn wanted(
    asked: &CountsWanted,
    classes: &[LockClass],
    symbols: Option<&Symbols>,
) -> Result<Wanted, WantedError> {
    let mut wanted = Wanted::NONE;
    let pids: Vec<u32> = asked.pids.iter().map(|pid| pid.0).collect();
    wanted.pid_count = fill(&mut wanted.pids, &pids, "--pid")?;
    let comms: Vec<_> = asked.comms.iter().map(|comm| words_of(comm)).collect();
    wanted.comm_count = fill(&mut wanted.comms, &comms, "--comm")?;
    wanted.cgroup_count = fill(&mut wanted.cgroups, &asked.cgroups, "--cgroup")?;
    let mut numbers = Vec::new();
    for name in &asked.classes {
        numbers.extend(numbers_of(name, classes, symbols)?);
    }
    // All that is told by callers is one number.
    numbers.sort_unstable();
    numbers.dedup();
    if !asked.classes.is_empty() {
        wanted.class_count = fill(&mut wanted.classes, &numbers, "--class")?;
    }
    if !asked.callers.is_empty() {
        let symbols = symbols.ok_or(WantedError::NoSymbols)?;
        let mut ranges: Vec<Code> = Vec::new();
        for caller in &asked.callers {
            let found = symbols.ranges_of(&[caller.as_str()]);
            if found.is_empty() {
                return Err(WantedError::NoFunction(caller.clone()));
            }
            ranges.extend(found.iter().map(code));
        }
        wanted.caller_count = fill(&mut wanted.callers, &ranges, "--caller")?;
    }
    Ok(wanted)
}

fn fill<T: Copy>(
    slots: &mut [T; WANTED],
    values: &[T],
    what: &'static str,
) -> Result<u32, WantedError> {
    if values.len() > WANTED {
        return Err(WantedError::TooMany(what));
    }
    for (slot, value) in slots.iter_mut().zip(values) {
        *slot = *value;
    }
    Ok(values.len() as u32)
}

/// The words of a task's name in memory, cut as the kernel cuts it.
fn words_of(comm: &str) -> [u64; COMM_LEN / 8] {
    let bytes = comm_bytes(comm);
    let (words, _) = bytes.as_chunks::<8>();
    std::array::from_fn(|index| u64::from_ne_bytes(words[index]))
}

/// All by which the programs may know a class. 0, what no rule tells, is among them where
/// the class is told by its callers: that a count is of the class is looked at once more
/// when it is read.
fn numbers_of(
    name: &str,
    classes: &[LockClass],
    symbols: Option<&Symbols>,
) -> Result<Vec<u64>, WantedError> {
    let mut numbers: Vec<u64> = classes
        .iter()
        .zip(1..)
        .filter(|(class, _)| class.to_string() == name)
        .map(|(_, number)| number)
        .collect();
    if let Some(address) = symbols.and_then(|symbols| symbols.address_of(name)) {
        numbers.push(address);
    }
    if lock_classes::is_told_by_caller(name) {
        numbers.push(0);
    }
    if numbers.is_empty() {
        let mut told: Vec<String> = classes.iter().map(LockClass::to_string).collect();
        told.extend(lock_classes::TOLD_BY_CALLERS.map(|class| class.to_string()));
        told.dedup();
        return Err(WantedError::NoClass(name.to_owned(), told.join(", ")));
    }
    Ok(numbers)
}

/// Callers outside of the kernel's own code, as they were called when they were first seen:
/// modules and programs come and go in the course of a run.
#[derive(Debug, Default)]
struct Outside {
    names: FxHashMap<u64, Caller>,
    /// As they are now; read for the first unknown one of a snapshot.
    now: Option<(Symbols, CodeBounds)>,
}

impl Outside {
    fn caller(&mut self, address: u64) -> Caller {
        if let Some(caller) = self.names.get(&address) {
            return caller.clone();
        }
        if self.now.is_none() {
            self.now = Symbols::from_proc().ok().map(|symbols| {
                let bounds = CodeBounds::from_proc(&symbols);
                (symbols, bounds)
            });
        }
        let caller = match &self.now {
            Some((symbols, bounds)) if bounds.is_module(address.wrapping_sub(1)) => {
                named(symbols, address)
            }
            _ => Caller::Unknown,
        };
        self.names.insert(address, caller.clone());
        caller
    }
}

/// The function that this address returns into, if tasks ask for locks there.
fn named(symbols: &Symbols, address: u64) -> Caller {
    match symbols.stem_of_return(address) {
        "" => Caller::Unknown,
        stem if lock_classes::is_tracer(stem) => Caller::Unknown,
        stem => Caller::Function(stem.to_owned()),
    }
}

/// What is counted in the kernel.
#[derive(Debug)]
pub struct Counts {
    maps: Vec<CountsMap>,
    /// Of class n + 1.
    classes: Vec<LockClass>,
    symbols: Option<Arc<Symbols>>,
    bounds: CodeBounds,
    outside: RefCell<Outside>,
    /// Asked for by name.
    wanted: Vec<String>,
}

impl Counts {
    /// Of these maps, whose programs were loaded with the globals of these options.
    pub fn new(
        maps: Vec<CountsMap>,
        options: &CountOptions,
        layout: &Layout,
        symbols: Option<Arc<Symbols>>,
    ) -> Self {
        let bounds = symbols.as_deref().map(CodeBounds::from_proc);
        Self {
            maps,
            classes: lock_classes::classes(layout),
            bounds: bounds.unwrap_or_default(),
            outside: RefCell::default(),
            symbols,
            wanted: options.wanted.classes.clone(),
        }
    }

    /// Callers are not looked for in what tracers have put round lock functions by now: to be
    /// called when all is attached.
    pub fn leave_tracers_out(&mut self) {
        match Symbols::from_proc() {
            Ok(symbols) => {
                let pages = lock_classes::tracer_pages(&symbols);
                for map in &mut self.maps {
                    map.leave_out(pages.iter().copied());
                }
            }
            Err(error) => tracing::debug!("tracers may be named as callers: {error}"),
        }
    }

    /// All that was counted so far.
    ///
    /// # Errors
    /// When the kernel does not let the maps be read.
    pub fn snapshot(&self) -> io::Result<Snapshot> {
        let mut snapshot = Snapshot::default();
        // Most entries are buckets of few series, whose names cost most.
        let mut keys: FxHashMap<CountKey, Option<SeriesKey>> = FxHashMap::default();
        for map in &self.maps {
            map.read(|raw, counted| {
                let series = CountKey { bucket: 0, ..raw };
                let key = keys
                    .entry(series)
                    .or_insert_with(|| Some(self.key(raw)).filter(|key| self.is_wanted(key)));
                if let Some(key) = key {
                    let distribution = snapshot.series.entry(key.clone()).or_default();
                    distribution.add(raw.bucket, counted);
                }
            })?;
            let lost_here = map.lost();
            snapshot.lost.waits += lost_here[lost::WAITS as usize];
            snapshot.lost.holds += lost_here[lost::HOLDS as usize];
        }
        self.outside.borrow_mut().now = None;
        snapshot
            .series
            .retain(|_, distribution| !distribution.is_empty());
        Ok(snapshot)
    }

    fn is_wanted(&self, key: &SeriesKey) -> bool {
        self.wanted.is_empty() || self.wanted.contains(&key.class.to_string())
    }

    fn key(&self, raw: CountKey) -> SeriesKey {
        let measure = if raw.how & HELD == 0 {
            Measure::Wait
        } else {
            Measure::Hold
        };
        let kind = lock_kind(raw.how);
        let caller = self.caller(raw.caller);
        let class = match (raw.class, &caller) {
            (0, Caller::Function(name)) => lock_classes::by_caller(kind, name),
            (0, _) => LockClass::Unknown,
            (address, _) if is_image_address(address) => {
                let symbol = self
                    .symbols
                    .as_ref()
                    .and_then(|symbols| symbols.exact(address));
                symbol.map_or(LockClass::KernelData, |name| {
                    LockClass::Symbol(name.to_owned())
                })
            }
            (number, _) => {
                let index = usize::try_from(number - 1).unwrap_or(usize::MAX);
                self.classes
                    .get(index)
                    .cloned()
                    .unwrap_or(LockClass::Unknown)
            }
        };
        SeriesKey {
            measure,
            class,
            kind,
            mode: lock_mode(raw.how),
            caller,
        }
    }

    fn caller(&self, address: u64) -> Caller {
        match address {
            no_caller::UNKNOWN => Caller::Unknown,
            no_caller::SHORT => Caller::Short,
            address => match &self.symbols {
                Some(symbols) if self.bounds.is_kernel(address.wrapping_sub(1)) => {
                    named(symbols, address)
                }
                Some(_) => self.outside.borrow_mut().caller(address),
                None => Caller::Unknown,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbols() -> Symbols {
        let text = "ffffffff81000000 T pipe_read\nffffffff83000000 d cgroup_mutex\n";
        Symbols::parse(text.to_owned()).expect("addresses")
    }

    #[test]
    fn a_class_that_nothing_tells_is_refused() {
        let (symbols, classes) = (symbols(), [LockClass::MmapLock, LockClass::SuperWriters]);
        let numbers = |name| numbers_of(name, &classes, Some(&symbols));
        assert_eq!(numbers("s_writers"), Ok(vec![2]));
        assert_eq!(numbers("pipe"), Ok(vec![0]));
        assert_eq!(numbers("cgroup_mutex"), Ok(vec![0xffff_ffff_8300_0000]));
        let told = "mmap_lock, s_writers, pipe, vma_lock, unknown".to_owned();
        let refused = WantedError::NoClass("sb_writers".to_owned(), told);
        assert_eq!(numbers("sb_writers"), Err(refused));
    }

    #[test]
    fn nobody_asks_for_locks_in_a_tracer() {
        let text = "ffffffffc0000000 t bpf_trampoline_6442\t[bpf]\n\
            ffffffffc0001000 t bpf_prog_ab_x\t[bpf]\nffffffffc0002000 t xfs_ilock\t[xfs]\n";
        let symbols = Symbols::parse(text.to_owned()).expect("addresses");
        let caller = |address| named(&symbols, address);
        assert_eq!(caller(0xffff_ffff_c000_0010), Caller::Unknown);
        assert_eq!(caller(0xffff_ffff_c000_1010), Caller::Unknown);
        let function = Caller::Function("xfs_ilock".to_owned());
        assert_eq!(caller(0xffff_ffff_c000_2010), function);
    }
}
