//! Programs of our own (`lockwatch-ebpf/src/probes/floor.rs`): what the hooks cost by themselves,
//! and how often functions are called.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, MapData},
};
use lockwatch::{
    kernel::btf,
    plan::{Hook, Mechanism, Plan, Purpose, Wanted, plan},
    probes::offer,
};
use lockwatch_tests::hook;

static OBJECT: &[u8] = aya::include_bytes_aligned!("../../object/floor.bpf.o");

/// Functions that acquire and release mutexes (kernel/locking/mutex.c), without lock debugging.
const MUTEX_FUNCTIONS: [&str; 5] = [
    "mutex_lock",
    "mutex_lock_interruptible",
    "mutex_lock_killable",
    "mutex_trylock",
    "mutex_unlock",
];

/// What is attached that does nothing, or little.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Floor {
    /// Empty programs where lockwatch tracks holds of all rwsems.
    Holds,
    /// Empty programs where lockwatch tracks holds of `mmap_lock` alone.
    MmapLock,
    /// Empty programs at the begin and the end of waits.
    Contention,
    /// Empty programs at all that `watch` hooks: those, and where tasks come and go on CPUs.
    Watch,
    /// Programs that keep when each wait begins until it ends.
    ContentionKept,
}

/// The places where lockwatch would hook on this kernel, and the kernel's types.
pub(crate) struct Places {
    btf: Btf,
    /// The process whose calls are counted.
    counted: u32,
    all: Plan,
    /// As if nothing could be attached to the return of a function.
    without_fexit: Plan,
    /// Those of [`MUTEX_FUNCTIONS`] that this kernel has.
    of_mutexes: Vec<&'static str>,
}

/// They are attached. Dropped, they are gone.
pub(crate) struct Attached {
    _programs: Vec<Ebpf>,
}

impl Places {
    /// `counted` is the process whose calls are counted.
    pub(crate) fn find(counted: u32) -> Result<Self> {
        let types = btf::Btf::from_sys()?;
        let mut offer = offer::ask(Some(&types));
        let wanted = Wanted::ALL;
        let all = plan(&offer, wanted);
        let why = "it is not wanted".to_owned();
        offer.refused.insert(Mechanism::Fexit, why);
        Ok(Self {
            counted,
            btf: Btf::from_sys_fs().context("the kernel has no BTF")?,
            all,
            without_fexit: plan(&offer, wanted),
            of_mutexes: MUTEX_FUNCTIONS
                .into_iter()
                .filter(|name| types.has_function(name))
                .collect(),
        })
    }

    pub(crate) fn attach(&self, floor: Floor) -> Result<Attached> {
        let empty = |hooks: &[&Hook]| -> Result<Attached> {
            let attach = |hook: &&Hook| {
                let program = match hook.mechanism {
                    Mechanism::Fexit => "nothing_at_exit",
                    Mechanism::Fentry => "nothing_at_entry",
                    _ => "nothing_at_tracepoint",
                };
                self.load(&[(program, &hook.target)])
            };
            hooks
                .iter()
                .map(attach)
                .collect::<Result<_>>()
                .map(|_programs| Attached { _programs })
        };
        match floor {
            Floor::Holds => empty(&self.of_functions().collect::<Vec<_>>()),
            Floor::MmapLock => empty(&hooks(&self.without_fexit, |purpose| {
                matches!(
                    purpose,
                    Purpose::MmapAcquired { .. } | Purpose::MmapReleased { .. }
                )
            })),
            Floor::Contention => empty(&hooks(&self.all, |purpose| {
                matches!(purpose, Purpose::WaitBegin { .. } | Purpose::WaitEnd { .. })
            })),
            Floor::Watch => empty(&hooks(&self.all, |purpose| {
                matches!(
                    purpose,
                    Purpose::WaitBegin { .. }
                        | Purpose::WaitEnd { .. }
                        | Purpose::HolderSwitch { .. }
                        | Purpose::HolderWakeup
                )
            })),
            Floor::ContentionKept => {
                let both = [
                    ("drops_begin", "contention_end"),
                    ("keeps_begin", "contention_begin"),
                ];
                Ok(Attached {
                    _programs: vec![self.load(&both)?],
                })
            }
        }
    }

    /// Hooks at the functions that acquire or release an rwsem.
    fn of_functions(&self) -> impl Iterator<Item = &Hook> {
        hooks(&self.all, |purpose| {
            matches!(
                purpose,
                Purpose::Acquire { .. } | Purpose::Release { .. } | Purpose::Downgrade
            )
        })
        .into_iter()
    }

    /// Attaches programs of one instance of the object.
    fn load(&self, programs: &[(&str, &str)]) -> Result<Ebpf> {
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&self.btf))
            .override_global("COUNTED_TGID", &self.counted, true)
            .load(OBJECT)
            .context("the kernel refuses the object of the floor")?;
        for (name, target) in programs {
            let program = ebpf.program_mut(name);
            hook::attach(
                program.with_context(|| format!("no {name}"))?,
                target,
                &self.btf,
            )?;
        }
        Ok(ebpf)
    }

    /// Counts the process' calls of functions that acquire or release, from now on.
    pub(crate) fn count(&self) -> Result<Calls> {
        let functions = self.of_functions().map(|hook| hook.target.as_str());
        functions
            .chain(self.of_mutexes.iter().copied())
            .map(|function| {
                let mut ebpf = self.load(&[("counts_calls", function)])?;
                let map = ebpf.take_map("CALLS").context("no CALLS")?;
                Ok((function.to_owned(), Array::try_from(map)?, ebpf))
            })
            .collect::<Result<_>>()
            .map(Calls)
    }
}

fn hooks(plan: &Plan, is_wanted: impl Fn(Purpose) -> bool) -> Vec<&Hook> {
    let hooks = plan.hooks.iter();
    hooks.filter(|hook| is_wanted(hook.purpose)).collect()
}

/// Counts of calls, by function.
pub(crate) struct Calls(Vec<(String, Array<MapData, u64>, Ebpf)>);

impl Calls {
    /// How often each was called.
    pub(crate) fn now(&self) -> Result<BTreeMap<String, u64>> {
        let one = |(function, calls, _): &(String, Array<MapData, u64>, Ebpf)| {
            Ok((function.clone(), calls.get(&0, 0)?))
        };
        self.0.iter().map(one).collect()
    }
}
