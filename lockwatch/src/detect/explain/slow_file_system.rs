//! A file or directory whose holder waits for the storage below it.

use rustc_hash::FxHashMap;

use super::{frame_of, held, slow_storage};
use crate::{
    detect::{Detector, Finding, Scene, Severity},
    lock::{LockAddr, LockClass, LockObject},
};

/// Functions that ask for the lock of a directory (fs/namei.c, fs/readdir.c): a waiter
/// inside one of them says that the inode is one.
const DIRECTORY: &[&str] = &[
    "lookup_slow",
    "open_last_lookups",
    "path_openat",
    "iterate_dir",
    "filename_create",
    "start_creating",
    "start_dirop",
    "do_rmdir",
    "do_unlinkat",
    "lock_rename",
];

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct SlowFileSystem;

impl Detector for SlowFileSystem {
    fn name(&self) -> &'static str {
        "slow-file-system"
    }

    fn check(&self, scene: &Scene<'_>) -> Vec<Finding> {
        // A lock may have very many holders, and very many waiters.
        let mut directories: FxHashMap<LockAddr, bool> = FxHashMap::default();
        held(scene)
            .filter(|(lock, _)| lock.class == LockClass::InodeRwsem)
            .filter_map(|(lock, holder)| {
                let storage = slow_storage(holder.stuck.class)?;
                let Some(LockObject::Inode { fstype, sb, .. }) = &lock.object else {
                    return None;
                };
                let is_directory = *directories.entry(lock.address).or_insert_with(|| {
                    let mut waiters = lock.waiters.iter();
                    waiters.any(|waiter| frame_of(scene, waiter.stack, DIRECTORY).is_some())
                });
                let (what, who) = if is_directory {
                    (
                        "directory",
                        "lists it or looks up a name in it that is not cached",
                    )
                } else {
                    ("file or directory", "changes it")
                };
                let system = if fstype == sb {
                    fstype.clone()
                } else {
                    format!("{fstype}, {sb}")
                };
                Some(Finding {
                    detector: self.name(),
                    severity: Severity::Info,
                    sentence: format!(
                        "the lock is not slow, the file system below it is ({system}): {} waits \
                         for {storage} with the {what} locked, and whoever {who} waits with it",
                        holder.task
                    ),
                    locks: vec![lock.address],
                    tasks: vec![holder.task.key.tid],
                    ..Finding::EMPTY
                })
            })
            .collect()
    }
}
