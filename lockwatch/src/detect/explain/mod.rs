//! Explanations: stalls of a known pattern, each in a sentence for somebody who has not
//! met it before. Their findings have the severity `info`; the text shows them under `why`.

mod fault_under_mmap_lock;
mod fork_of_huge_process;
mod lost_wakeup;
mod slow_file_system;
mod umount_waits;

pub use fault_under_mmap_lock::FaultUnderMmapLock;
pub use fork_of_huge_process::ForkOfHugeProcess;
pub use lost_wakeup::LostWakeup;
pub use slow_file_system::SlowFileSystem;
pub use umount_waits::UmountWaits;

use rustc_hash::FxHashSet;

use super::{Scene, is_stalled};
use crate::{
    daemon::Daemon,
    lock::{Holder, Lock, StackId, function_of},
    task::{StuckClass, TaskKey},
};

/// The stalled locks with their holders that carry weight and wait for no lock themselves,
/// directly or through a daemon: what those are stuck in explains the stall.
fn held<'a>(scene: &'a Scene<'a>) -> impl Iterator<Item = (&'a Lock, &'a Holder)> {
    let threshold = scene.thresholds.wait;
    let chains = scene.chains.iter().filter(|chain| !chain.cycle);
    let roots: FxHashSet<TaskKey> = chains.map(|chain| chain.root.key).collect();
    // A daemon that is a root stands for those that wait for it.
    let is_root = |daemon: &&Daemon| daemon.serving().any(|it| roots.contains(&it.task.key));
    let clients = scene.daemons.iter().filter(is_root);
    let clients = clients.flat_map(|daemon| daemon.clients.iter().map(|it| it.task.key));
    let ends: FxHashSet<TaskKey> = roots.iter().copied().chain(clients).collect();
    let holders = scene
        .locks
        .iter()
        .filter(move |lock| is_stalled(lock, threshold))
        .flat_map(|lock| lock.holders.iter().map(move |holder| (lock, holder)));
    holders.filter(move |(_, holder)| {
        holder.confidence.carries_weight() && ends.contains(&holder.task.key)
    })
}

/// The first of these functions that is on the stack, innermost first.
fn frame_of(scene: &Scene<'_>, stack: StackId, functions: &[&'static str]) -> Option<&'static str> {
    scene.stacks.frames(stack).iter().find_map(|frame| {
        let name = function_of(frame);
        // `do_fault.isra.0`, `copy_process.part.5`
        let stem = name.split('.').next().unwrap_or(name);
        functions
            .iter()
            .find(|&&function| function == stem)
            .copied()
    })
}

/// What is slow, where it is a file system or the device below it.
fn slow_storage(class: StuckClass) -> Option<&'static str> {
    match class {
        StuckClass::BlockIo => Some("a block device"),
        StuckClass::Fuse => Some("a FUSE daemon"),
        StuckClass::NetworkFs => Some("a network file system's server"),
        _ => None,
    }
}
