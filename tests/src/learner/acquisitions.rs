//! The programs that keep with which stack each lock was acquired and released
//! (`lockwatch-ebpf/src/probes/acquisitions.rs`).

use std::{
    collections::{BTreeMap, HashMap as Known},
    fmt, fs,
};

use anyhow::{Context, Result};
use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{HashMap, MapData, StackTraceMap},
};
use lockwatch::plan::{Plan, Purpose};
use lockwatch_ebpf::acquisitions::{Acquisition, Ended, Hold};
use lockwatch_tests::hook;

static OBJECT: &[u8] = aya::include_bytes_aligned!("../../object/acquisitions.bpf.o");

/// A stack as long as this may have been cut off (`PERF_MAX_STACK_DEPTH`).
const LONGEST: usize = 127;

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Key(Hold);

// SAFETY: `repr(C)`, only integers, explicit padding.
unsafe impl aya::Pod for Key {}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct How(Acquisition);

// SAFETY: `repr(C)`, only integers, explicit padding.
unsafe impl aya::Pod for How {}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Pair(Ended);

// SAFETY: `repr(C)`, only integers.
unsafe impl aya::Pod for Pair {}

/// The programs, attached. Dropped, they are gone.
pub(crate) struct Acquisitions {
    acquired: HashMap<MapData, Key, How>,
    ended: HashMap<MapData, Pair, u64>,
    stacks: StackTraceMap<MapData>,
    known: Known<u32, Option<Vec<u64>>>,
    _ebpf: Ebpf,
}

impl fmt::Debug for Acquisitions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acquisitions").finish_non_exhaustive()
    }
}

impl Acquisitions {
    /// Attaches them where this plan tracks holds.
    pub(crate) fn attach(plan: &Plan, mmap_lock: u64, btf: &Btf) -> Result<Self> {
        let mut ebpf = EbpfLoader::new()
            .btf(Some(btf))
            .override_global("MMAP_LOCK", &mmap_lock, true)
            .override_global("MEMCG_PATH", &u32::from(plan.has_memcg_path()), true)
            .load(OBJECT)
            .context("the kernel refuses the learner's object")?;
        for hook in &plan.hooks {
            if matches!(
                hook.purpose,
                Purpose::Acquire { .. }
                    | Purpose::Release { .. }
                    | Purpose::MmapAcquired { .. }
                    | Purpose::MmapReleased { .. }
            ) {
                attach(&mut ebpf, btf, &hook.target)?;
            }
        }
        let mut map = |name: &str| ebpf.take_map(name).with_context(|| format!("no {name}"));
        let (acquired, ended, stacks) = (map("ACQUISITIONS")?, map("ENDED")?, map("STACKS")?);
        Ok(Self {
            acquired: HashMap::try_from(acquired)?,
            ended: HashMap::try_from(ended)?,
            stacks: StackTraceMap::try_from(stacks)?,
            known: Known::new(),
            _ebpf: ebpf,
        })
    }

    /// The locks that are held, with how they were acquired.
    pub(crate) fn now(&self) -> Vec<(Hold, Acquisition)> {
        self.acquired
            .iter()
            .flatten()
            .map(|(key, how)| (key.0, how.0))
            .collect()
    }

    /// The ids of the stacks with which locks were acquired and released.
    pub(crate) fn ended(&self) -> Vec<(u32, u32)> {
        self.ended
            .keys()
            .flatten()
            .map(|pair| (pair.0.acquired, pair.0.released))
            .collect()
    }

    /// A stack, innermost first; `None` if it is not known whole.
    pub(crate) fn stack(&mut self, id: u32) -> Option<Vec<u64>> {
        let read = || {
            let trace = self.stacks.get(&id, 0).ok()?;
            let frames: Vec<u64> = trace.frames().iter().map(|frame| frame.ip).collect();
            (frames.len() < LONGEST).then_some(frames)
        };
        self.known.entry(id).or_insert_with(read).clone()
    }
}

/// How often the kernel has left out each program of this process, by the program's id, as it
/// was running on that processor already: for a task that was put aside in the middle of
/// it. From 5.12 on.
pub(crate) fn missed() -> BTreeMap<u32, u64> {
    let number = |text: &str, key: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().parse().ok()
    };
    fs::read_dir("/proc/self/fdinfo")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path()).ok())
        .filter_map(|text| {
            let id = u32::try_from(number(&text, "prog_id:")?).ok()?;
            Some((id, number(&text, "recursion_misses:")?))
        })
        .collect()
}

/// The program that bears the function's or the tracepoint's name.
fn attach(ebpf: &mut Ebpf, btf: &Btf, target: &str) -> Result<()> {
    // What the object leaves out (lock debugging, releases by non-owners) the tracker of
    // lockwatch knows: it is asked as well.
    let Some(program) = ebpf.program_mut(target) else {
        return Ok(());
    };
    hook::attach(program, target, btf)
}
