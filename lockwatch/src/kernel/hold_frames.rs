//! Which functions hold which lock for read while they sleep.
//!
//! A pointer on a stack is not a hold; being inside one of these functions, with
//! the lock or its object in that function's frame or deeper, is. Writers need no
//! table: the lock names them. Sources per entry: fs/namei.c, fs/readdir.c,
//! fs/super.c, fs/sync.c, mm/mmap.c, mm/vma.c, mm/madvise.c, mm/readahead.c,
//! fs/proc/task_mmu.c of 5.10, 6.1, 6.12, 6.18 and 7.3.

use crate::lock::LockClass;

/// One function that holds a class of lock for read from before it calls others
/// until after.
#[derive(Clone, Copy, Debug)]
pub struct HoldFrame {
    /// Stem of its name.
    pub function: &'static str,
    /// Stems of callees that run before the lock is taken or after it is released.
    not_in: &'static [&'static str],
    /// It always means the mmap_lock of the task's own mm.
    pub own_mm: bool,
}

const fn holds(function: &'static str) -> HoldFrame {
    HoldFrame {
        function,
        not_in: &[],
        own_mm: false,
    }
}

const fn holds_own(function: &'static str) -> HoldFrame {
    HoldFrame {
        function,
        not_in: &[],
        own_mm: true,
    }
}

/// `i_rwsem` of a directory (lookup on a cache miss, getdents) or a file (direct I/O).
const INODE: &[HoldFrame] = &[
    // Called with the directory locked, by lookup_slow for read.
    holds("__lookup_slow"),
    HoldFrame {
        function: "iterate_dir",
        not_in: &[
            "security_file_permission",
            "rw_verify_area",
            "fsnotify",
            "__fsnotify_parent",
            "fsnotify_perm",
        ],
        own_mm: false,
    },
    // open() without O_CREAT of a name that is not cached.
    holds("lookup_open"),
    holds("ext4_dio_read_iter"),
    holds("ext4_dio_write_iter"),
    holds("xfs_file_dio_read"),
    holds("xfs_file_buffered_read"),
];

/// `mmap_lock`, besides page faults, which have a test of their own.
const MMAP: &[HoldFrame] = &[
    holds("__access_remote_vm"),
    holds("access_remote_vm"),
    // munmap and its kin: taken for write, downgraded before pages are freed.
    holds_own("vms_clear_ptes"),
    holds_own("unmap_region"),
    holds("exit_mmap"),
    holds_own("madvise_vma_behavior"),
    holds_own("madvise_cold"),
    holds_own("madvise_pageout"),
    holds("walk_page_range"),
    holds("walk_page_range_mm"),
    holds("walk_page_vma"),
    holds("populate_vma_page_range"),
    holds("__get_user_pages_remote"),
    holds("do_migrate_pages"),
    holds("queue_pages_range"),
    holds("ksm_scan_thread"),
    holds("hpage_collapse_scan_pmd"),
];

/// `s_umount`.
const SUPER: &[HoldFrame] = &[
    holds("iterate_supers"),
    holds("__iterate_supers"),
    holds("iterate_supers_type"),
    holds("sync_filesystem"),
    holds("sync_inodes_sb"),
    holds("writeback_sb_inodes"),
    holds("super_cache_scan"),
    holds("get_super"),
    holds("user_get_super"),
];

/// `invalidate_lock` of a mapping.
const INVALIDATE: &[HoldFrame] = &[
    holds("page_cache_ra_unbounded"),
    holds("page_cache_ra_order"),
    holds("filemap_create_folio"),
    holds("filemap_create_page"),
];

impl HoldFrame {
    /// Whether the lock is held while this function is in `callee`.
    pub fn holds_in(&self, callee: &str) -> bool {
        !self.not_in.contains(&callee)
    }
}

/// The functions that hold a class of lock for read.
pub const fn of_class(class: &LockClass) -> &'static [HoldFrame] {
    match class {
        LockClass::InodeRwsem => INODE,
        LockClass::MmapLock => MMAP,
        LockClass::SuperUmount => SUPER,
        LockClass::InvalidateLock => INVALIDATE,
        LockClass::Symbol(_) | LockClass::KernelData | LockClass::Unknown => &[],
    }
}

/// Sleeps in which no task holds a lock for read that its stack may still point to:
/// user space put it there, or it waits for other tasks with all locks released.
pub fn holds_nothing(function: &str) -> bool {
    matches!(
        function,
        "futex_wait_queue"
            | "futex_wait_queue_me"
            | "futex_wait"
            | "__futex_wait"
            | "futex_do_wait"
            | "hrtimer_nanosleep"
            | "common_nsleep"
            | "do_nanosleep"
            | "do_poll"
            | "do_sys_poll"
            | "do_select"
            | "ep_poll"
            | "do_epoll_wait"
            | "do_wait"
            | "kernel_wait4"
            | "pipe_read"
            | "anon_pipe_read"
            | "unix_stream_read_generic"
            | "sigsuspend"
            | "do_sigtimedwait"
            | "__do_sys_pause"
            | "ptrace_stop"
            | "do_signal_stop"
            | "worker_thread"
            | "rescuer_thread"
            | "kthread"
            | "smpboot_thread_fn"
            | "fuse_dev_do_read"
    )
}
