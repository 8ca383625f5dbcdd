//! Hold tracking, attached as `lockwatch watch` does.

use std::fs;

use aya::maps::{HashMap, Map, MapData, MapType, loaded_maps};
use lockwatch::{
    kernel::{btf::Btf, layout::Layout},
    lock::LockAddr,
    plan::{Mechanism, Offer, Plan, Purpose, Wanted, plan},
    probes::{counts::CountGlobals, holds::HoldProbes, long_holds::LongHoldGlobals, offer},
    stream::TracedHolds,
    survey::{HoldSource, TracedHold},
};
use lockwatch_ebpf::holds::TaskHolds;
use lockwatch_tests::{edge::agitator::Means, truth::Tid};

/// Why some edges cannot be made there.
pub(crate) const NOT_ON_RT: &str = "PREEMPT_RT takes no lock with interrupts off";

/// The programs, attached. Dropped, they are gone.
pub(crate) struct Tracker {
    holds: TracedHolds,
    /// What the kernel allows, for whoever watches beside.
    pub(crate) means: Means,
    /// Offset in an `mm_struct`.
    pub(crate) mmap_lock: u64,
    pub(crate) preempt_rt: bool,
    pub(crate) plan: Plan,
}

impl Tracker {
    pub(crate) fn attach() -> Self {
        Self::attach_by(|_| {})
    }

    /// As by a kernel that offers less.
    pub(crate) fn attach_by(less: impl FnOnce(&mut Offer)) -> Self {
        let types = Btf::from_sys().unwrap();
        let layout = Layout::from_btf(&types).unwrap();
        let btf = aya::Btf::from_sys_fs().unwrap();
        let mut offer = offer::ask(Some(&types));
        less(&mut offer);
        let plan = plan(&offer, Wanted::ALL);
        let mmap_lock = layout.mm.mmap_lock;
        let mut probes = HoldProbes::load(
            &plan,
            &layout.task,
            mmap_lock,
            &CountGlobals::OFF,
            &LongHoldGlobals::OFF,
            &btf,
        )
        .unwrap()
        .unwrap_or_else(|| panic!("nothing tracks holds here: {plan:#?}"));
        probes.attach().unwrap();
        Self {
            holds: TracedHolds::new(probes),
            means: means(&plan),
            mmap_lock,
            preempt_rt: offer.preempt_rt,
            plan,
        }
    }

    /// False where only `mmap_lock` is tracked.
    pub(crate) fn sees_all(&self) -> bool {
        self.means == Means::Functions
    }

    pub(crate) fn all(&mut self) -> Vec<TracedHold> {
        self.holds.holds().unwrap()
    }

    pub(crate) fn of_task(&mut self, tid: Tid) -> Vec<TracedHold> {
        let mut holds = self.all();
        holds.retain(|hold| hold.task.tid.0 == tid.0 as u32);
        holds
    }

    pub(crate) fn of_lock(&mut self, lock: u64) -> Vec<TracedHold> {
        let mut holds = self.all();
        holds.retain(|hold| hold.lock == LockAddr(lock));
        holds
    }
}

/// The number of tasks that live.
pub(crate) fn live_tasks() -> usize {
    let folders = |path: &str| fs::read_dir(path).into_iter().flatten().flatten();
    folders("/proc")
        .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
        .map(|entry| folders(&entry.path().join("task").to_string_lossy()).count())
        .sum()
}

fn means(plan: &Plan) -> Means {
    let success = plan.hooks.iter().find_map(|hook| match hook.purpose {
        Purpose::MmapAcquired { success, .. } => Some(success),
        _ => None,
    });
    match success {
        Some(success) => Means::Tracepoints {
            success_argument: success.into(),
        },
        None => {
            assert!(
                plan.hooks
                    .iter()
                    .any(|hook| hook.mechanism == Mechanism::Fexit)
            );
            Means::Functions
        }
    }
}

/// How many tasks the tracker keeps the state of, where it keeps it in a hash.
pub(crate) fn entries() -> Option<usize> {
    let own: Vec<u32> = fs::read_dir("/proc/self/fdinfo")
        .unwrap()
        .filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok())
        .filter_map(|text| {
            let id = text.lines().find_map(|line| line.strip_prefix("map_id:"))?;
            id.trim().parse().ok()
        })
        .collect();
    let map = loaded_maps().flatten().find(|map| {
        own.contains(&map.id())
            && map.name() == b"HOLDS"
            && map.map_type().is_ok_and(|kind| kind == MapType::Hash)
    })?;
    let map = Map::HashMap(MapData::from_id(map.id()).unwrap());
    let map = HashMap::<_, u32, [u8; size_of::<TaskHolds>()]>::try_from(map).unwrap();
    Some(map.keys().count())
}
