//! Holders that could go on, and have no CPU: preempted, throttled by their control
//! group, or granted the lock in its queue and not yet run.

use super::{Detector, Finding, Scene, Severity, is_stalled};
use crate::{
    figures::Span,
    lock::{EvidenceKind, Holder, Lock},
    task::{Nanos, TaskState},
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct OffCpuHolder;

impl Detector for OffCpuHolder {
    fn name(&self) -> &'static str {
        "off-cpu-holder"
    }

    fn check(&self, scene: &Scene<'_>) -> Vec<Finding> {
        let stalled = scene.locks.iter();
        stalled
            .filter(|lock| is_stalled(lock, scene.thresholds.wait))
            .flat_map(|lock| {
                let off_cpu = lock.holders.iter().filter(|holder| is_off_cpu(holder));
                off_cpu.map(|holder| self.finding(lock, holder))
            })
            .collect()
    }
}

/// In both looks: whoever is ready in one alone is about to run.
fn is_off_cpu(holder: &Holder) -> bool {
    holder.stood && holder.confidence.carries_weight() && holder.state == TaskState::Runnable
}

impl OffCpuHolder {
    fn finding(self, lock: &Lock, holder: &Holder) -> Finding {
        let granted = holder
            .evidence
            .iter()
            .any(|evidence| evidence.kind == EvidenceKind::Granted);
        let got = if granted { "was granted" } else { "holds" };
        let since = match holder.stuck.since {
            Some(since) if since > Nanos(0) => format!(" for {}", Span(since)),
            _ => String::new(),
        };
        let cgroup = match holder.cgroup.as_deref() {
            None | Some("/") => String::new(),
            Some(path) => format!("; its control group is {path}"),
        };
        Finding {
            detector: self.name(),
            severity: Severity::Warning,
            sentence: format!(
                "{} {got} {} and could run, but has had no CPU{since}: preempted, or throttled \
                 by its control group{cgroup}",
                holder.task, lock.name,
            ),
            locks: vec![lock.address],
            tasks: vec![holder.task.key.tid],
            ..Finding::EMPTY
        }
    }
}
