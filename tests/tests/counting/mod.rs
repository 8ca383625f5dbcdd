//! lockwatch's counting, attached in the test's own process.

#![allow(dead_code, reason = "not each of the tests asks for all of it")]

use std::sync::Arc;

use lockwatch::{
    kernel::{btf::Btf, layout::Layout, locks::RT_RWSEM_DRAINS, symbols::Symbols},
    latency::{Distribution, SeriesKey, Snapshot},
    plan::{Plan, Purpose, Wanted, plan},
    probes::{holds::HoldProbes, long_holds::LongHoldGlobals, offer, stream::StreamProbes},
    stream::counts::{self, CountOptions, Counts},
};
use lockwatch_ebpf::stream::StreamConfig;

/// The programs that count, attached. Dropped, they are gone.
pub(crate) struct Counting {
    counts: Counts,
    plan: Plan,
    is_rt: bool,
    _waits: StreamProbes,
    _holds: Option<HoldProbes>,
}

impl Counting {
    /// Counts waits, those of our own process, too; with `holds`, also these, where they can
    /// be tracked.
    pub(crate) fn attach(options: &CountOptions, holds: bool) -> Self {
        let types = Btf::from_sys().unwrap();
        let layout = Layout::from_btf(&types).unwrap();
        let symbols = Arc::new(Symbols::from_proc().unwrap());
        let btf = aya::Btf::from_sys_fs().unwrap();
        let wanted = Wanted {
            holds,
            holder_times: false,
        };
        let plan = plan(&offer::ask(Some(&types)), wanted);
        let is_end = |purpose: &Purpose| matches!(purpose, Purpose::WaitEnd { .. });
        assert!(
            plan.hooks.iter().any(|hook| is_end(&hook.purpose)),
            "no program sees waits end here: {:?}",
            plan.gaps
        );
        let config = StreamConfig {
            ends_from_ns: u64::MAX,
            begins: 0,
            own_tgid: 0,
        };
        let mut globals = counts::globals(options, &layout, Some(&symbols)).unwrap();
        globals.config.own_tgid = 0;
        let is_rt = layout.locks.rt_rwsem.is_some();
        let rt_writers = if is_rt {
            symbols.ranges_of(RT_RWSEM_DRAINS)
        } else {
            Vec::new()
        };
        let task = &layout.task;
        let mut waits =
            StreamProbes::load(&plan, task, &config, &globals, &rt_writers, &btf).unwrap();
        let mut holds = HoldProbes::load(
            &plan,
            task,
            layout.mm.mmap_lock,
            &globals,
            &LongHoldGlobals::OFF,
            &btf,
        )
        .unwrap();
        let of_waits = waits.take_counts();
        let of_holds = holds.as_mut().and_then(HoldProbes::take_counts);
        waits.attach().unwrap();
        if let Some(holds) = &mut holds {
            holds.attach().unwrap();
        }
        let maps = of_waits.into_iter().chain(of_holds).collect();
        let mut counts = Counts::new(maps, options, &layout, Some(symbols));
        if plan.calls_from_trampolines() {
            counts.leave_tracers_out();
        }
        Self {
            counts,
            plan,
            is_rt,
            _waits: waits,
            _holds: holds,
        }
    }

    /// What is attached.
    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// On `PREEMPT_RT`.
    pub(crate) fn is_rt(&self) -> bool {
        self.is_rt
    }

    /// What was counted so far.
    pub(crate) fn read(&self) -> Snapshot {
        self.counts.snapshot().unwrap()
    }
}

/// All distributions of some series together.
pub(crate) fn total(snapshot: &Snapshot, is_it: impl Fn(&SeriesKey) -> bool) -> Distribution {
    let mut total = Distribution::default();
    for (key, distribution) in &snapshot.series {
        if is_it(key) {
            total.merge(distribution);
        }
    }
    total
}
