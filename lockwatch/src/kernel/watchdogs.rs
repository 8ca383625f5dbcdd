//! How the kernel's own detectors of hanging tasks and CPUs are set.

use std::fs;

use crate::{detect::Thresholds, kernel_log::KernelDetectors, task::Nanos};

const SECOND: u64 = 1_000_000_000;

/// Reads the settings of the running kernel (/proc/sys/kernel; sysctl names in
/// kernel/hung_task.c and kernel/watchdog.c, the same from 4.x to 7.3).
pub fn detectors() -> KernelDetectors {
    detectors_by(setting)
}

/// The same, with the settings of the hung-task detector as they are by now. It alone is read
/// again and again: its files take no lock, and the kernel counts its warnings down. Whoever
/// changes a setting of the lockup watchdogs has `watchdog_mutex` (kernel/watchdog.c), which
/// their readers take too, until every CPU has answered: one that is locked up does not.
pub fn with_hung_task_now(detectors: KernelDetectors) -> KernelDetectors {
    KernelDetectors {
        hung_task: hung_task_by(setting),
        hung_task_warnings: hung_task_warnings_by(setting),
        ..detectors
    }
}

/// From when on something counts, as the running kernel is set: its timeouts alone count,
/// not whether its detectors are switched on. A timeout of 0 is off; one that the kernel does
/// not have is the usual one. Of CPUs only if those are asked for: see [`with_hung_task_now`].
pub fn thresholds(wait: Nanos, of_cpus: bool) -> Thresholds {
    thresholds_by(wait, |name| {
        let is_asked = of_cpus || name != WATCHDOG_THRESH;
        is_asked.then(|| setting(name))?
    })
}

/// The setting of both lockup watchdogs.
const WATCHDOG_THRESH: &str = "watchdog_thresh";

fn setting(name: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()
}

fn thresholds_by(wait: Nanos, read: impl Fn(&str) -> Option<String>) -> Thresholds {
    let usual = Thresholds::of_waits(wait);
    let seconds = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let or = |usual, seconds: Option<u64>, times: u64| match seconds {
        None => usual,
        Some(0) => None,
        Some(seconds) => Some(Nanos(seconds.saturating_mul(times * SECOND))),
    };
    let thresh = seconds(WATCHDOG_THRESH);
    Thresholds {
        hung_task: or(usual.hung_task, seconds("hung_task_timeout_secs"), 1),
        soft_lockup: or(usual.soft_lockup, thresh, 2),
        hard_lockup: or(usual.hard_lockup, thresh, 1),
        ..usual
    }
}

fn hung_task_by(read: impl Fn(&str) -> Option<String>) -> Option<Nanos> {
    let seconds: u64 = read("hung_task_timeout_secs")?.trim().parse().ok()?;
    (seconds != 0).then(|| Nanos(seconds.saturating_mul(SECOND)))
}

/// `None` also for -1: without end.
fn hung_task_warnings_by(read: impl Fn(&str) -> Option<String>) -> Option<u64> {
    read("hung_task_warnings")?.trim().parse().ok()
}

fn detectors_by(read: impl Fn(&str) -> Option<String>) -> KernelDetectors {
    let number = |name: &str| read(name)?.trim().parse::<i64>().ok();
    // A switch that this kernel does not have does not switch it off.
    let is_on = |name: &str| number(name).is_none_or(|value| value != 0);
    let seconds = |name: &str| number(name).and_then(|value| u64::try_from(value).ok());
    let thresh = seconds(WATCHDOG_THRESH).filter(|_| is_on("watchdog"));
    let after = |seconds: u64| (seconds != 0).then(|| Nanos(seconds.saturating_mul(SECOND)));
    KernelDetectors {
        hung_task: hung_task_by(&read),
        hung_task_warnings: hung_task_warnings_by(&read),
        soft_lockup: thresh
            .filter(|_| is_on("soft_watchdog"))
            .and_then(|seconds| after(seconds.saturating_mul(2))),
        hard_lockup: thresh.filter(|_| is_on("nmi_watchdog")).and_then(after),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Settings = &'static [(&'static str, &'static str)];

    fn set(settings: Settings) -> impl Fn(&str) -> Option<String> {
        |name| {
            let (_, value) = settings.iter().find(|(known, _)| *known == name)?;
            Some(format!("{value}\n"))
        }
    }

    fn of(settings: Settings) -> KernelDetectors {
        detectors_by(set(settings))
    }

    #[test]
    fn the_timeouts_alone_are_thresholds() {
        const WAIT: Nanos = Nanos(SECOND);
        let thresholds = thresholds_by(
            WAIT,
            set(&[
                ("hung_task_timeout_secs", "0"),
                ("watchdog_thresh", "30"),
                ("nmi_watchdog", "0"),
            ]),
        );
        let expected = Thresholds {
            wait: WAIT,
            hung_task: None,
            soft_lockup: Some(Nanos(60 * SECOND)),
            hard_lockup: Some(Nanos(30 * SECOND)),
        };
        assert_eq!(thresholds, expected);
        assert_eq!(thresholds_by(WAIT, set(&[])), Thresholds::of_waits(WAIT));
    }

    #[test]
    fn the_usual_settings() {
        let detectors = of(&[
            ("hung_task_timeout_secs", "120"),
            ("hung_task_warnings", "10"),
            ("watchdog", "1"),
            ("soft_watchdog", "1"),
            ("nmi_watchdog", "0"),
            ("watchdog_thresh", "10"),
        ]);
        let expected = KernelDetectors {
            hung_task: Some(Nanos(120 * SECOND)),
            hung_task_warnings: Some(10),
            soft_lockup: Some(Nanos(20 * SECOND)),
            hard_lockup: None,
        };
        assert_eq!(detectors, expected);
    }

    #[test]
    fn zero_is_off_and_minus_one_is_without_end() {
        let detectors = of(&[
            ("hung_task_timeout_secs", "0"),
            ("hung_task_warnings", "-1"),
            ("watchdog_thresh", "0"),
        ]);
        assert_eq!(detectors, KernelDetectors::default());
    }

    #[test]
    fn a_kernel_without_them_has_none() {
        assert_eq!(of(&[]), KernelDetectors::default());
    }
}
