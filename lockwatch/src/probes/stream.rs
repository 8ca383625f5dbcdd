//! The stream's programs: attached where the plan says, reading nothing but what they
//! are handed.

use std::{
    io,
    ops::Range,
    os::fd::{AsFd as _, BorrowedFd},
};

use aya::{
    Btf, Ebpf,
    maps::{Array, HashMap, MapData, PerCpuArray, RingBuf},
};
use lockwatch_ebpf::{
    stream::{
        Code, Event, OpenWait, RT_WRITERS, StreamConfig, WAIT_SETS, WAIT_SITES, WAITS_MAX, WaitKey,
        WaitSite, Watched, counter, flags, outcome,
    },
    survey::TaskLayout,
};
use zerocopy::FromBytes as _;

use crate::{
    lock::{LockKind, LockMode},
    plan::{Awaited, Hook, Mechanism, Outcome, Plan, Purpose},
    probes::{
        LoadError,
        counts::{self, CountGlobals, CountsMap, code},
        hook::{Hooks, Refused},
        loader::loader,
        log, map, pod,
        slots::WaitSlots,
    },
};

pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!("object/stream.bpf.o");

/// `BPF_NOEXIST`: insert, never replace.
const NOEXIST: u64 = 1;

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum StreamLoadError {
    /// The plan sees no waits begin.
    #[error("this kernel shows no waits as they begin")]
    NoWaits,
    /// The kernel refused a hook of the plan.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It refused something else.
    #[error(transparent)]
    Load(#[from] LoadError),
}

pod!(
    Layout(TaskLayout),
    Config(StreamConfig),
    Key(WaitKey),
    Wait(OpenWait),
    Times(Watched),
    Sites([WaitSite; WAIT_SITES]),
    Codes([Code; RT_WRITERS])
);

/// The loaded programs and their maps. Dropping it detaches all, as
/// the end of the process does: nothing is pinned.
pub struct StreamProbes {
    /// `None` where functions tell of waits, not tracepoints.
    slots: Option<WaitSlots>,
    waits: HashMap<MapData, Key, Wait>,
    /// Whether `waits` may have any beside the slots.
    hashed: Array<MapData, u32>,
    events: RingBuf<MapData>,
    counters: PerCpuArray<MapData, u64>,
    watched: HashMap<MapData, u32, Times>,
    watching: Array<MapData, u32>,
    /// `None` once taken.
    counts: Option<CountsMap>,
    hooks: Hooks,
    log: log::ProgramLog,
    ebpf: Ebpf,
}

impl std::fmt::Debug for StreamProbes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamProbes").finish_non_exhaustive()
    }
}

impl StreamProbes {
    /// Loads the programs that the plan asks for. `rt_writers`: the code through which tasks
    /// ask for an rwsem of `PREEMPT_RT` for write; none elsewhere.
    ///
    /// # Errors
    /// When the plan has no hook for waits, or the kernel refuses a program or a map.
    pub fn load(
        plan: &Plan,
        layout: &TaskLayout,
        config: &StreamConfig,
        counts: &CountGlobals,
        rt_writers: &[Range<u64>],
        btf: &Btf,
    ) -> Result<Self, StreamLoadError> {
        let (hooks, sites) = programs(&plan.hooks)?;
        let begins = |(_, hook): &(String, Hook)| matches!(hook.purpose, Purpose::WaitBegin { .. });
        if !hooks.iter().any(begins) {
            return Err(StreamLoadError::NoWaits);
        }
        let (layout, config, sites) = (Layout(*layout), Config(*config), Sites(sites));
        let rt_writers = Codes(codes(rt_writers));
        let log_level = log::level();
        let has_slots = hooks.iter().any(|(_, hook)| uses_slots(hook));
        let count_globals = counts::Globals::new(counts);
        let mut loader = loader();
        count_globals.put(&mut loader);
        loader
            .override_global("TASK_LAYOUT", &layout, true)
            .override_global("STREAM_CONFIG", &config, true)
            .override_global("WAIT_SITES", &sites, true)
            .override_global("RT_WRITERS", &rt_writers, true);
        if has_slots {
            loader.map_max_entries("WAIT_SLOTS", WAIT_SETS);
        }
        log::configure(&mut loader, &log_level);
        let mut ebpf = loader.load(OBJECT).map_err(LoadError::object)?;
        let hooks = Hooks::new(hooks);
        hooks.load(&mut ebpf, btf)?;

        let log = log::ProgramLog::open(&mut ebpf);
        let typed = |error| LoadError::Map(io::Error::other(error));
        Ok(Self {
            slots: has_slots.then(|| WaitSlots::new(&ebpf)).transpose()?,
            hashed: Array::try_from(map(&mut ebpf, ".data.hashed")?).map_err(typed)?,
            waits: HashMap::try_from(map(&mut ebpf, "WAITS")?).map_err(typed)?,
            events: RingBuf::try_from(map(&mut ebpf, "EVENTS")?).map_err(typed)?,
            counters: PerCpuArray::try_from(map(&mut ebpf, "COUNTERS")?).map_err(typed)?,
            watched: HashMap::try_from(map(&mut ebpf, "WATCHED")?).map_err(typed)?,
            watching: Array::try_from(map(&mut ebpf, ".data.watching")?).map_err(typed)?,
            counts: Some(CountsMap::take(&mut ebpf)?),
            hooks,
            log,
            ebpf,
        })
    }

    /// The counts of waits, to be read apart from the rest; `None` if they were taken before.
    pub fn take_counts(&mut self) -> Option<CountsMap> {
        self.counts.take()
    }

    /// Attaches them.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn attach(&mut self) -> Result<(), Refused> {
        self.hooks.attach(&mut self.ebpf)
    }

    /// What becomes readable when the kernel wants its events read.
    pub fn events_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Takes the events that are there, oldest first; returns how many had another
    /// size than [`Event`].
    pub fn drain(&mut self, mut each: impl FnMut(Event)) -> u64 {
        let mut malformed = 0;
        while let Some(item) = self.events.next() {
            match Event::read_from_bytes(&item) {
                Ok(event) => each(event),
                Err(_) => malformed += 1,
            }
        }
        self.log.flush();
        malformed
    }

    /// Reads the open waits; false if the walk was cut short by changes under it.
    ///
    /// Waits that stand still during the walk are all found if the result is true:
    /// when the entry under the cursor goes, the kernel starts over from the first.
    pub fn read_waits(&self, mut each: impl FnMut(WaitKey, OpenWait)) -> bool {
        if let Some(slots) = &self.slots {
            slots.read(&mut each);
            // An error is no answer: look.
            if self.hashed.get(&0, 0).is_ok_and(|hashed| hashed == 0) {
                return true;
            }
        }
        let steps_max = 4 * WAITS_MAX as usize;
        for (step, key) in self.waits.keys().enumerate() {
            let Ok(key) = key else { return false };
            if step == steps_max {
                return false;
            }
            // Gone in between: ended.
            if let Ok(wait) = self.waits.get(&key, 0) {
                each(key.0, wait.0);
            }
        }
        true
    }

    /// The open wait of this task on this lock.
    pub fn wait(&self, key: WaitKey) -> Option<OpenWait> {
        let in_slot = self.slots.as_ref().and_then(|slots| slots.find(key));
        in_slot.or_else(|| self.waits.get(&Key(key), 0).ok().map(|wait| wait.0))
    }

    /// Adds an open wait that began before the programs were attached; false if the
    /// task has one on this lock already, or there is no room.
    pub fn insert_wait(&mut self, key: WaitKey, wait: OpenWait) -> bool {
        let Some(slots) = &self.slots else {
            return self.waits.insert(Key(key), Wait(wait), NOEXIST).is_ok();
        };
        // The flag first: a wait that begins after this takes ours out.
        if slots.find(key).is_some()
            || self.hashed.set(0, 1, 0).is_err()
            || self.waits.insert(Key(key), Wait(wait), NOEXIST).is_err()
        {
            return false;
        }
        if slots.find(key).is_some() {
            // It began in between.
            let _ = self.waits.remove(&Key(key));
            return false;
        }
        true
    }

    /// Takes out an open wait that has proved wrong, if it is still that which began then.
    pub fn remove_wait(&mut self, key: WaitKey, since_ns: u64) {
        if let Some(slots) = &self.slots
            && slots.remove(key, since_ns)
        {
            return;
        }
        // Not there: it ended just now, which is as good.
        let _ = self.waits.remove(&Key(key));
    }

    /// The counters, summed over CPUs, indexed by [`counter`].
    pub fn counters(&self) -> [u64; counter::COUNT as usize] {
        std::array::from_fn(|index| {
            self.counters
                .get(&(index as u32), 0)
                .map_or(0, |values| values.iter().sum())
        })
    }

    /// Begins to keep the times of a task; false if there is no room.
    pub fn watch(&mut self, tid: u32, initial: Watched) -> bool {
        self.watched.insert(tid, Times(initial), NOEXIST).is_ok()
            && self.watching.set(0, 1, 0).is_ok()
    }

    /// The times of a watched task.
    pub fn watched(&self, tid: u32) -> Option<Watched> {
        self.watched.get(&tid, 0).ok().map(|times| times.0)
    }

    /// Stops keeping the times of a task. `last`: no other is watched now.
    pub fn unwatch(&mut self, tid: u32, last: bool) {
        if last {
            // Without the flag the programs only cost more: nothing to do about it.
            let _ = self.watching.set(0, 0, 0);
        }
        let _ = self.watched.remove(&tid);
    }
}

/// As the programs want it; what finds no room is not recognised.
fn codes(ranges: &[Range<u64>]) -> [Code; RT_WRITERS] {
    std::array::from_fn(|index| ranges.get(index).map_or(Code::default(), code))
}

/// Programs with the hooks that they serve, in the plan's order.
pub(super) type Served = Vec<(String, Hook)>;

/// The programs that serve the hooks of this object, and what those at functions need to
/// know.
///
/// # Errors
/// When a hook has no program, or there are more places than programs.
pub(super) fn programs(hooks: &[Hook]) -> Result<(Served, [WaitSite; WAIT_SITES]), Refused> {
    let mut sites = [WaitSite::default(); WAIT_SITES];
    let mut targets: Vec<&str> = Vec::new();
    let mut served = Vec::new();
    for hook in hooks {
        let (awaited, outcome) = match hook.purpose {
            Purpose::WaitBegin { awaited, .. } => (awaited, None),
            Purpose::WaitEnd { awaited, outcome } => (awaited, Some(outcome)),
            Purpose::HolderSwitch { .. } | Purpose::HolderWakeup => (None, None),
            // Of the holds object.
            Purpose::Acquire { .. }
            | Purpose::Release { .. }
            | Purpose::Downgrade
            | Purpose::MmapAcquired { .. }
            | Purpose::MmapReleased { .. }
            | Purpose::TaskExit => continue,
        };
        let name = match awaited {
            None => hook.tracepoint_program(),
            Some(awaited) => {
                let known = targets.iter().position(|target| *target == hook.target);
                let index = known.unwrap_or(targets.len());
                if known.is_none() {
                    targets.push(&hook.target);
                }
                sites.get_mut(index).and_then(|site| {
                    site.flags = wait_flags(awaited);
                    if let Some(outcome) = outcome {
                        site.outcome = outcome_code(outcome);
                        // Of a function that returns nothing, nothing may be read.
                        if outcome != Outcome::Always {
                            site.parameters = hook.parameters.into();
                        }
                    }
                    let kind = wait_program(hook.mechanism)?;
                    Some(format!("{kind}_{index}"))
                })
            }
        };
        served.push((name.ok_or_else(|| hook.unserved())?, hook.clone()));
    }
    Ok((served, sites))
}

/// Whether the program at this hook keeps its waits in slots.
fn uses_slots(hook: &Hook) -> bool {
    matches!(hook.purpose, Purpose::WaitBegin { awaited: None, .. })
}

fn wait_program(mechanism: Mechanism) -> Option<&'static str> {
    match mechanism {
        Mechanism::Fentry => Some("wait_begin"),
        Mechanism::Fexit => Some("wait_end"),
        Mechanism::Kprobe => Some("wait_kprobe"),
        Mechanism::TpBtf | Mechanism::RawTp => None,
    }
}

/// What `contention_begin` would say of such a wait.
fn wait_flags(awaited: Awaited) -> u32 {
    let mode = match awaited.mode {
        Some(LockMode::Read) => flags::READ,
        Some(LockMode::Write) => flags::WRITE,
        None => flags::READ | flags::WRITE,
    };
    match awaited.kind {
        LockKind::Mutex => flags::MUTEX,
        LockKind::RtMutex => flags::RT,
        LockKind::PercpuRwsem => flags::PERCPU | mode,
        LockKind::Semaphore => 0,
        _ => mode,
    }
}

fn outcome_code(outcome: Outcome) -> u32 {
    match outcome {
        Outcome::Always => outcome::ALWAYS,
        Outcome::ZeroIsSuccess => outcome::ZERO,
        Outcome::PointerIsSuccess => outcome::POINTER,
        Outcome::OneIsSuccess => outcome::TRUE,
    }
}
