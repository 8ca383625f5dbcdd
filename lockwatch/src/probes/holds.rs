//! The programs that keep who holds which rwsem, attached to the functions that acquire
//! and release.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _},
    process,
};

use aya::{
    Btf, Ebpf,
    maps::{HashMap, MapData, PerCpuArray},
    programs::{Iter, Program},
};
use lockwatch_ebpf::{
    holds::{HOLD_SET_CLOSED, HOLD_SETS, HoldSet, TASKS_MAX, TaskHolds, counter},
    survey::TaskLayout,
};
use zerocopy::FromBytes as _;

use crate::{
    kernel::bpf_files,
    plan::{Hook, Mechanism, Plan, Purpose, State},
    probes::{
        LoadError,
        counts::{self, CountGlobals, CountsMap},
        hook::{Hooks, Refused},
        iterator,
        loader::loader,
        log,
        long_holds::{self, LongHoldGlobals},
        map, pod,
    },
};

static IN_TASK_STORAGE: &[u8] = aya::include_bytes_aligned!("object/holds.bpf.o");
static BY_TID: &[u8] = aya::include_bytes_aligned!("object/holds_by_tid.bpf.o");

/// The iterator over the tasks' storage.
const TASK_HOLDS: &str = "task_holds";

pod!(Layout(TaskLayout), Entry(TaskHolds), Set(HoldSet));

/// Where the slots are.
const SLOTS: &str = ".bss";

/// The programs and their state. Dropping it detaches all, as the end of the process
/// does: nothing is pinned.
pub struct HoldProbes {
    /// `None`: in slots and task storage.
    by_tid: Option<HashMap<MapData, u32, Entry>>,
    releases: HashMap<MapData, u64, u64>,
    counters: PerCpuArray<MapData, u64>,
    /// `None` once taken.
    counts: Option<CountsMap>,
    hooks: Hooks,
    ebpf: Ebpf,
}

impl std::fmt::Debug for HoldProbes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HoldProbes").finish_non_exhaustive()
    }
}

/// Why there is no hold tracking.
#[derive(Debug, thiserror::Error)]
pub enum HoldsError {
    /// The kernel refused a hook of the plan.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It refused something else.
    #[error(transparent)]
    Load(#[from] LoadError),
}

impl HoldProbes {
    /// Loads the programs that the plan asks for, `None` if it asks for none.
    /// `mmap_lock`: its offset in an `mm_struct`.
    ///
    /// # Errors
    /// When the kernel refuses a program or a map.
    pub fn load(
        plan: &Plan,
        layout: &TaskLayout,
        mmap_lock: u64,
        counts: &CountGlobals,
        long_holds: &LongHoldGlobals,
        btf: &Btf,
    ) -> Result<Option<Self>, HoldsError> {
        let by_tid = plan.state == State::Hash;
        let hooks = programs(&plan.hooks)?;
        if hooks.is_empty() {
            return Ok(None);
        }
        let memcg_path = u32::from(plan.has_memcg_path());
        // Without anybody who tells of tasks that end, their slots would be taken for those of
        // others.
        let closed = (!by_tid && !hooks.iter().any(|(_, hook)| is_exit(hook))).then(closed_sets);
        let hooks = Hooks::new(hooks);
        let layout = Layout(*layout);
        let from_ns = from_ns(counts, long_holds);
        let log_level = log::level();
        let count_globals = counts::Globals::new(counts);
        let mut loader = loader();
        count_globals.put(&mut loader);
        let long_globals = long_holds::Globals::new(long_holds);
        long_globals.put(&mut loader);
        loader
            .allow_unsupported_maps()
            .override_global("TASK_LAYOUT", &layout, true)
            .override_global("HOLDS_FROM_NS", &from_ns, true)
            .override_global("MMAP_LOCK", &mmap_lock, true)
            .override_global("MEMCG_PATH", &memcg_path, true);
        log::configure(&mut loader, &log_level);
        if let Some(closed) = &closed {
            loader.override_global("HOLD_SETS", closed.as_slice(), true);
        }
        let mut ebpf = loader.load(object(plan.state)).map_err(LoadError::object)?;
        if !by_tid {
            let tasks: &mut Iter = iterator::program(&mut ebpf, TASK_HOLDS)?;
            tasks.load("task", btf).map_err(LoadError::program)?;
        }
        hooks.load(&mut ebpf, btf)?;
        // The programs have it. aya keeps beside it what was in it first.
        drop(ebpf.take_map(SLOTS));
        let typed = |error| LoadError::Map(io::Error::other(error));
        let entries = if by_tid {
            Some(HashMap::try_from(map(&mut ebpf, "HOLDS")?).map_err(typed)?)
        } else {
            None
        };
        Ok(Some(Self {
            by_tid: entries,
            releases: HashMap::try_from(map(&mut ebpf, "RELEASES")?).map_err(typed)?,
            counters: PerCpuArray::try_from(map(&mut ebpf, "HOLD_COUNTERS")?).map_err(typed)?,
            counts: Some(CountsMap::take(&mut ebpf)?),
            hooks,
            ebpf,
        }))
    }

    /// The counts of holds, to be read apart from the rest; `None` if they were taken before.
    pub fn take_counts(&mut self) -> Option<CountsMap> {
        self.counts.take()
    }

    /// Attaches them: from here on, what is acquired is known.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn attach(&mut self) -> Result<(), Refused> {
        self.hooks.attach(&mut self.ebpf)
    }

    /// The tasks that hold something that they acquired since the programs are attached,
    /// our own left out.
    ///
    /// # Errors
    /// When the kernel refuses the iterator or a read fails.
    pub fn snapshot(&mut self) -> Result<Vec<TaskHolds>, LoadError> {
        let mut found = match &self.by_tid {
            None => {
                let mut words = Vec::new();
                iterator::read(&mut self.ebpf, TASK_HOLDS, &mut |some| {
                    words.extend_from_slice(some);
                })?;
                <[TaskHolds]>::ref_from_bytes(zerocopy::IntoBytes::as_bytes(words.as_slice()))
                    .map_err(|error| LoadError::Iterate(io::Error::other(error.to_string())))?
                    .to_vec()
            }
            Some(by_tid) => by_tid
                .keys()
                // A walk can start over when the entry under it goes.
                .take(4 * TASKS_MAX as usize)
                .filter_map(|tid| Some(by_tid.get(&tid.ok()?, 0).ok()?.0))
                .filter(|task| task.holds.locks.iter().any(|&lock| lock != 0))
                .collect(),
        };
        found.retain(|task| task.tgid != process::id());
        Ok(found)
    }

    /// When a task that was not known to hold this lock released it last, in
    /// `CLOCK_MONOTONIC` ns; `None` if none has.
    pub fn released_at(&self, lock: u64) -> Option<u64> {
        self.releases.get(&lock, 0).ok()
    }

    /// Acquisitions that found no room.
    pub fn lost(&self) -> u64 {
        self.counter(counter::LOST_HOLD)
    }

    /// Runs at releases that the kernel has skipped: one of the same program was preempted
    /// on that CPU (kernel/bpf/trampoline.c, `__bpf_prog_enter_recur`, 5.12+).
    pub fn missed(&self) -> u64 {
        let of = |program: &Program| -> Option<u64> {
            let fd = program.fd().ok()?.as_fd().as_raw_fd();
            let text = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
            bpf_files::number(&text, bpf_files::MISSES)
        };
        self.hooks
            .iter()
            .filter(|(_, hook)| {
                matches!(
                    hook.purpose,
                    Purpose::Release { .. } | Purpose::Downgrade | Purpose::MmapReleased { .. }
                )
            })
            .filter_map(|(name, _)| of(self.ebpf.program(name)?))
            .sum()
    }

    /// Releases by tasks that were not known to hold the lock.
    pub fn foreign_releases(&self) -> u64 {
        self.counter(counter::FOREIGN_RELEASE)
    }

    fn counter(&self, index: u32) -> u64 {
        self.counters
            .get(&index, 0)
            .map_or(0, |values| values.iter().sum())
    }
}

pub(super) fn object(state: State) -> &'static [u8] {
    match state {
        State::TaskStorage => IN_TASK_STORAGE,
        State::Hash => BY_TID,
    }
}

/// The programs that serve the hooks of this object, in the plan's order but for what tells of
/// tasks that end.
///
/// # Errors
/// When a hook has no program.
pub(super) fn programs(hooks: &[Hook]) -> Result<Vec<(String, Hook)>, Refused> {
    let mut served = Vec::new();
    for hook in hooks {
        let name = match hook.purpose {
            Purpose::MmapAcquired { .. } | Purpose::MmapReleased { .. } | Purpose::TaskExit => {
                hook.tracepoint_program()
            }
            Purpose::Acquire { .. } | Purpose::Release { .. } | Purpose::Downgrade => {
                function_program(hook)
            }
            // Of the stream object.
            Purpose::WaitBegin { .. }
            | Purpose::WaitEnd { .. }
            | Purpose::HolderSwitch { .. }
            | Purpose::HolderWakeup => continue,
        };
        served.push((name.ok_or_else(|| hook.unserved())?, hook.clone()));
    }
    // First of all, or a task could end in between that has acquired something.
    served.sort_by_key(|(_, hook)| !is_exit(hook));
    Ok(served)
}

fn is_exit(hook: &Hook) -> bool {
    hook.purpose == Purpose::TaskExit
}

/// How long holds are at least that anything is to be done with when they end.
fn from_ns(counts: &CountGlobals, long_holds: &LongHoldGlobals) -> i64 {
    if counts.config.on != 0 {
        return i64::MIN;
    }
    match long_holds.config.least_ns {
        0 => i64::MAX,
        least_ns => least_ns.try_into().unwrap_or(i64::MAX),
    }
}

/// Slots of which none can be taken.
fn closed_sets() -> Vec<Set> {
    let closed = Set(HoldSet {
        state: HOLD_SET_CLOSED,
        ..HoldSet::default()
    });
    vec![closed; HOLD_SETS]
}

/// The program for a function, at the end of it that the purpose wants.
fn function_program(hook: &Hook) -> Option<String> {
    let is_acquire = matches!(hook.purpose, Purpose::Acquire { .. });
    let wanted = if is_acquire {
        Mechanism::Fexit
    } else {
        Mechanism::Fentry
    };
    // A name that begins with an underscore is no program's.
    (hook.mechanism == wanted).then(|| hook.target.trim_start_matches('_').to_owned())
}
