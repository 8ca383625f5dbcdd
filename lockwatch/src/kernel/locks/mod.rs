//! The kernel's sleeping locks, as data: for each primitive where its words and its
//! queue lie, which functions queue a task on it, and how its words are read.
//!
//! Everything is chosen by the members that BTF shows, never by a version number.

mod layout;
mod word;

pub use layout::{
    EntryLayout, EntryMode, Granted, LockLayout, LockLayouts, PiLayout, QueueLink, RtRwsemLayout,
    VmaLockLayout,
};
pub use word::{LockWord, OwnerIs, WordLayout};

/// Functions that queue a task on an rwsem, or wait there for it.
pub const RWSEM_SLOW_PATHS: &[&str] = &[
    "rwsem_down_read_slowpath",
    "rwsem_down_write_slowpath",
    // Up to 5.2.
    "rwsem_down_read_failed",
    "rwsem_down_read_failed_killable",
    "rwsem_down_write_failed",
    "rwsem_down_write_failed_killable",
];

/// The same for mutexes.
pub const MUTEX_SLOW_PATHS: &[&str] = &["__mutex_lock", "__mutex_lock_common", "__ww_mutex_lock"];

/// The same for counting semaphores.
pub const SEMAPHORE_SLOW_PATHS: &[&str] = &[
    "__down",
    "__down_killable",
    "__down_interruptible",
    "__down_timeout",
    "__down_common",
    "___down_common",
];

/// The same for per-CPU rwsems.
pub const PERCPU_SLOW_PATHS: &[&str] = &["percpu_rwsem_wait"];

/// Where a writer that has a per-CPU rwsem's `block` waits for its readers.
pub const PERCPU_DRAINS: &[&str] = &["percpu_down_write"];

/// Where a writer that has the rt_mutex of a PREEMPT_RT rwsem waits for its readers.
pub const RT_RWSEM_DRAINS: &[&str] = &[
    "rwbase_write_lock",
    "down_write",
    "down_write_killable",
    "down_write_nested",
    "__down_write_common",
];

/// Where a writer waits for those who hold a VMA without mmap_lock (mm/mmap_lock.c 6.16+).
pub const VMA_DRAINS: &[&str] = &[
    "__vma_start_write",
    "__vma_enter_locked",
    "__vma_start_exclude_readers",
    "vma_mark_detached",
    "__vma_mark_detached",
    "__vma_exclude_readers_for_detach",
];

/// Functions through which a PREEMPT_RT task asks for an rwsem.
pub const RT_RWSEM_ASKS: &[&str] = &[
    "__rwbase_read_lock",
    "rwbase_read_lock",
    "rwbase_write_lock",
    "__down_read_common",
    "__down_write_common",
    "down_read",
    "down_read_killable",
    "down_read_interruptible",
    "down_write",
    "down_write_killable",
];

/// What each level of a freeze stops (`SB_FREEZE_WRITE` and on, include/linux/fs.h), in the
/// order of `s_writers.rw_sem`.
pub const FREEZE_LEVELS: [&str; 3] = ["write", "page fault", "file system"];

/// Whether `s_writers.frozen` says that a freeze is complete: its locks are then held
/// across system calls, and by no task (`SB_FREEZE_COMPLETE`; an int, a short on some).
pub const fn is_frozen(word: u32) -> bool {
    word & 0xffff == 4
}

/// Whether a function waits for the rt_mutex behind a futex (kernel/futex).
pub fn is_pi_futex(stem: &str) -> bool {
    stem.starts_with("futex_")
}

/// Functions of fs/pipe.c that ask for a pipe's mutex (3.10–7.3). Whole names: drivers have
/// functions, and mutexes, for pipes and FIFOs of their own.
const PIPE_ASKS: &[&str] = &[
    "anon_pipe_read",
    "anon_pipe_write",
    "fifo_open",
    "fifo_pipe_read",
    "fifo_pipe_write",
    "pipe_double_lock",
    "pipe_fasync",
    "pipe_fcntl",
    "pipe_ioctl",
    "pipe_lock",
    "pipe_lock_nested",
    "pipe_read",
    "pipe_release",
    "pipe_wait",
    "pipe_wait_readable",
    "pipe_wait_writable",
    "pipe_write",
];

/// Whether a function of fs/pipe.c asks for a pipe's mutex, by its stem.
pub fn locks_a_pipe(stem: &str) -> bool {
    PIPE_ASKS.contains(&stem)
}

/// Whether a function asks for the rwsem of a VMA (6.4–6.15: mm/memory.c, mm/mmap.c and
/// `vma_start_write`, inlined nearly everywhere), by its stem.
pub fn locks_a_vma(stem: &str) -> bool {
    ["__vma_start_write", "vma_start_write"].contains(&stem)
}

/// Functions through which a PREEMPT_RT task asks for a mutex.
pub const RT_MUTEX_ASKS: &[&str] = &[
    "mutex_lock",
    "mutex_lock_killable",
    "mutex_lock_interruptible",
    "mutex_lock_io",
    "_mutex_lock_killable",
    "_mutex_lock_interruptible",
    "_mutex_lock",
    "ww_mutex_lock",
    "ww_mutex_lock_interruptible",
];

/// Functions through which a PREEMPT_RT task asks for a spinlock or rwlock
/// (kernel/locking/spinlock_rt.c): it sleeps for them.
pub const RT_SPINLOCK_ASKS: &[&str] = &[
    "rt_spin_lock",
    "rt_spin_lock_nested",
    "rt_read_lock",
    "rt_write_lock",
    "rtlock_slowlock",
    "rtlock_slowlock_locked",
];

/// Functions through which a task asks for an rt_mutex as such.
pub const RT_MUTEX_ITSELF_ASKS: &[&str] = &[
    "rt_mutex_lock",
    "rt_mutex_lock_interruptible",
    "rt_mutex_lock_killable",
    "rt_mutex_wait_proxy_lock",
];
