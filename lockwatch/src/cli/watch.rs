//! Options of `watch` and `record`: what is attached, and from when on something counts.

use std::{path::PathBuf, time::Duration};

use clap::{Args, builder::NonEmptyStringValueParser};

use super::{Detect, Format, Look, duration, tgid};
use crate::{
    detect::Thresholds,
    kernel::watchdogs,
    plan::Mechanism,
    task::{Nanos, Tgid},
};

/// Options of `watch`.
#[derive(Clone, Debug, Args)]
pub struct WatchArgs {
    /// Shorter waits are counted, not reported
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    pub threshold: Duration,
    /// Stop after this long; without it, when interrupted
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub duration: Option<Duration>,
    /// From when on tasks hang.
    #[command(flatten)]
    pub hang: HangArgs,
    /// From when on CPUs hang.
    #[command(flatten)]
    pub lockup: LockupArgs,
    /// What is attached.
    #[command(flatten)]
    pub sources: SourceArgs,
    /// How to write events; json is one line per event
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Only stalls in which a task of this process (or thread) waits or holds; may be repeated
    #[arg(long, value_name = "PID", value_parser = tgid)]
    pub pid: Vec<Tgid>,
    /// Only stalls in which a task with this name waits or holds; may be repeated
    #[arg(long, value_name = "COMM", value_parser = NonEmptyStringValueParser::new())]
    pub comm: Vec<String>,
    /// Only locks whose name contains this, or the lock at this 0x address; may be repeated
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub lock: Vec<String>,
    /// Only locks of this class (mmap_lock, i_rwsem, s_umount, …); may be repeated
    #[arg(long, value_name = "CLASS", value_parser = NonEmptyStringValueParser::new())]
    pub class: Vec<String>,
    /// Which detectors are asked.
    #[command(flatten)]
    pub detect: Detect,
    /// How text looks.
    #[command(flatten)]
    pub look: Look,
}

/// Options of `record`.
#[derive(Clone, Debug, Args)]
pub struct RecordArgs {
    /// The file; made readable by its owner only, for it holds names, paths and addresses
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Replace FILE if it exists
    #[arg(long)]
    pub force: bool,
    /// Take one survey and end, as `diagnose` does; attaches nothing
    #[arg(long, conflicts_with_all = ["duration", "track_holds", "without"])]
    pub once: bool,
    /// Waits this long or longer are stalls: they are recorded with their exact ends, and
    /// surveys are taken while they stand
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    pub threshold: Duration,
    /// Stop after this long; without it, when interrupted
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub duration: Option<Duration>,
    /// From when on tasks hang.
    #[command(flatten)]
    pub hang: HangArgs,
    /// From when on CPUs hang.
    #[command(flatten)]
    pub lockup: LockupArgs,
    /// What is attached.
    #[command(flatten)]
    pub sources: SourceArgs,
}

/// From when on tasks hang.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct HangArgs {
    /// Tasks this long in uninterruptible sleep (state D) hang; 0s: none does. Without it
    /// the kernel's own setting counts (kernel.hung_task_timeout_secs), 120s if it has none
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub hung_task: Option<Duration>,
}

/// From when on CPUs hang.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct LockupArgs {
    /// A CPU this long in the kernel, while others should run there, is locked up; 0s: none
    /// is. Without it the kernel's own setting counts (2 × kernel.watchdog_thresh), 20s if
    /// it has none
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub soft_lockup: Option<Duration>,
    /// A CPU this long without a timer interrupt is locked up; 0s: none is. Without it the
    /// kernel's own setting counts (kernel.watchdog_thresh), 10s if it has none
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub hard_lockup: Option<Duration>,
}

/// From when on something counts: what the user says, else as the kernel is set. Without
/// `lockup`, CPUs are not looked at.
pub fn thresholds(wait: Duration, hang: HangArgs, lockup: Option<LockupArgs>) -> Thresholds {
    let of_kernel = watchdogs::thresholds(Nanos::from_duration(wait), lockup.is_some());
    let lockup = lockup.unwrap_or_default();
    let chosen = |asked: Option<Duration>, of_kernel: Option<Nanos>| match asked {
        Some(asked) => (!asked.is_zero()).then(|| Nanos::from_duration(asked)),
        None => of_kernel,
    };
    Thresholds {
        hung_task: chosen(hang.hung_task, of_kernel.hung_task),
        soft_lockup: chosen(lockup.soft_lockup, of_kernel.soft_lockup),
        hard_lockup: chosen(lockup.hard_lockup, of_kernel.hard_lockup),
        ..of_kernel
    }
}

/// What `watch` and `record` attach.
#[derive(Clone, Debug, Args)]
pub struct SourceArgs {
    /// Know the holders of rwsems exactly, with their hold times, from their acquiring
    ///
    /// Without it, a survey of the stalled host finds holders by what they leave on their
    /// stacks, which names most and can leave some unnamed. With it, every acquiring and
    /// releasing of an rwsem on this host, contended or not, runs a program in the kernel
    /// that notes it: about 0.1 µs more for each pair.
    #[arg(long)]
    pub track_holds: bool,
    /// With --track-holds, remember the last holds of each class of lock that were this long,
    /// so that a report of a later stall of the same lock, by diagnose, too, can say who had
    /// it before; 0s: none
    #[arg(long, value_name = "DURATION", default_value = "10ms", value_parser = duration,
          requires = "track_holds")]
    pub long_hold: Duration,
    /// Run as a real-time task of this priority (SCHED_FIFO, 1 to 99), so that busy CPUs do
    /// not keep lockwatch from telling of them
    #[arg(long, value_name = "PRIORITY", value_parser = clap::value_parser!(u8).range(1..=99))]
    pub priority: Option<u8>,
    /// Do without this way of hooking (tp_btf, raw_tp, fentry, fexit, kprobe), as if the
    /// kernel refused it: for tests, and for kernels on which it does harm; may be repeated
    #[arg(long, value_name = "MECHANISM", value_parser = mechanism, hide = true)]
    pub without: Vec<Mechanism>,
}

fn mechanism(text: &str) -> Result<Mechanism, String> {
    let mut all = Mechanism::ALL.into_iter();
    all.find(|mechanism| mechanism.name() == text)
        .ok_or_else(|| "no way of hooking has this name".to_owned())
}
