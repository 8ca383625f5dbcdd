//! CPUs that take interrupts and give no other task a turn.

use super::{Detector, Finding, Scene, locked_cpu::LockedCpu};
use crate::{
    figures::Span,
    lockup::{Context, LockupKind},
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct SoftLockup;

impl Detector for SoftLockup {
    fn name(&self) -> &'static str {
        "soft-lockup"
    }

    fn check(&self, scene: &Scene<'_>) -> Vec<Finding> {
        let threshold = scene.thresholds.soft_lockup;
        LockedCpu::all(scene, LockupKind::Soft, threshold)
            .map(|cpu| cpu.finding(self.name(), what(&cpu)))
            .collect()
    }
}

/// `CPU 3 has run nothing but tar[412] in the kernel for 24s, in ext4_find_entry`
fn what(cpu: &LockedCpu<'_>) -> String {
    let lockup = cpu.lockup;
    let number = lockup.cpu;
    let long = Span(lockup.lasted);
    match &lockup.context {
        Context::Task => {
            let within = match cpu.within() {
                Some(within) => format!(", in {within}"),
                None => String::new(),
            };
            format!(
                "CPU {number} has run nothing but {} in the kernel for {long}{within}",
                cpu.task()
            )
        }
        Context::Softirq {
            vector,
            callback,
            callbacks,
        } => {
            let softirq = match vector {
                Some(vector) => format!("softirq {vector}"),
                None => "a softirq".to_owned(),
            };
            let many = *callbacks > 1;
            let callback = callback.as_deref().filter(|_| !many);
            let callback = callback.map(|callback| format!("callback {callback}"));
            let within: Vec<String> = callback.into_iter().chain(lockup.program.clone()).collect();
            let within = if within.is_empty() {
                String::new()
            } else {
                format!(" ({})", within.join(", in it "))
            };
            let piled = cpu
                .piled_up()
                .map_or_else(String::new, |it| format!(": {it}"));
            format!(
                "CPU {number} has been in {softirq}{within} for {long}{}{piled}",
                cpu.on_top_of()
            )
        }
        Context::Interrupt { handler } => {
            let handler = match handler {
                Some(handler) => format!(" ({handler})"),
                None => String::new(),
            };
            format!(
                "CPU {number} has been in an interrupt's handler{handler} for {long}{}",
                cpu.on_top_of()
            )
        }
        Context::Unknown => format!(
            "CPU {number} has given no other task a turn for {long}, with {} on it; whether that \
             runs, or an interrupt on top of it, is not known",
            cpu.task()
        ),
    }
}
