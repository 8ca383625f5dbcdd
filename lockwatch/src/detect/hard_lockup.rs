//! CPUs that take no interrupts.

use super::{Detector, Finding, Scene, locked_cpu::LockedCpu};
use crate::{
    figures::{Count, Span},
    lockup::LockupKind,
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct HardLockup;

impl Detector for HardLockup {
    fn name(&self) -> &'static str {
        "hard-lockup"
    }

    fn check(&self, scene: &Scene<'_>) -> Vec<Finding> {
        let threshold = scene.thresholds.hard_lockup;
        LockedCpu::all(scene, LockupKind::Hard, threshold)
            .map(|cpu| cpu.finding(self.name(), what(&cpu)))
            .collect()
    }
}

/// `CPU 2 has taken no interrupt for 12s, with dd[77] on it, last seen in blk_mq_run_hw_queue`
fn what(cpu: &LockedCpu<'_>) -> String {
    let lockup = cpu.lockup;
    let seen = match cpu.within() {
        Some(within) => format!(", last seen in {within}"),
        None => String::new(),
    };
    let sharers = match lockup.sharers.len() {
        0 => String::new(),
        sharers => format!(
            "; {} may share a spinlock with it",
            Count::of(sharers).nouns("task on another CPU", "tasks on other CPUs")
        ),
    };
    format!(
        "CPU {} has taken no interrupt for {}, with {} on it{seen}{sharers}",
        lockup.cpu,
        Span(lockup.lasted),
        cpu.task(),
    )
}
