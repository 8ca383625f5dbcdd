//! Which functions hold which lock for read while they sleep.
//!
//! A pointer on a stack is not a hold; being inside one of these functions, with
//! the lock or its object in that function's frame or deeper, is. Writers need no
//! table: the lock names them. From fs/namei.c, fs/readdir.c, fs/super.c,
//! fs/sync.c, fs/ext4/file.c, mm/mmap.c, mm/vma.c, mm/madvise.c, mm/readahead.c and
//! mm/filemap.c; run on 6.18 only. A function that is missing here costs certainty,
//! a wrong one accuses the innocent: when in doubt, leave it out.

use crate::lock::LockClass;

/// One function that holds a class of lock for read while it is in certain callees.
#[derive(Clone, Copy, Debug)]
pub struct HoldFrame {
    /// Stem of its name.
    pub function: &'static str,
    /// In which callees, by their stems.
    callees: Callees,
    /// It always means the mmap_lock of the task's own mm.
    pub own_mm: bool,
}

#[derive(Clone, Copy, Debug)]
enum Callees {
    /// The lock is taken before the first and released after the last of them.
    All,
    /// These run before it is taken, or take it.
    AllBut(&'static [&'static str]),
    /// The lock is held in these alone.
    Only(&'static [&'static str]),
}

const fn holds(function: &'static str, callees: Callees) -> HoldFrame {
    HoldFrame {
        function,
        callees,
        own_mm: false,
    }
}

const fn holds_own(function: &'static str) -> HoldFrame {
    HoldFrame {
        function,
        callees: Callees::All,
        own_mm: true,
    }
}

/// `i_rwsem` of a directory (lookup on a cache miss, getdents) or a file (direct I/O).
const INODE: &[HoldFrame] = &[
    // Called with the directory locked, by lookup_slow for read.
    holds("__lookup_slow", Callees::All),
    // open() of a name that is not cached; for read without O_CREAT.
    holds("lookup_open", Callees::All),
    holds(
        "iterate_dir",
        Callees::AllBut(&[
            "security_file_permission",
            "rw_verify_area",
            "fsnotify",
            "__fsnotify_parent",
        ]),
    ),
    holds(
        "ext4_dio_read_iter",
        Callees::Only(&["iomap_dio_rw", "__iomap_dio_rw"]),
    ),
    holds(
        "ext4_file_read_iter",
        Callees::Only(&["iomap_dio_rw", "__iomap_dio_rw"]),
    ),
    holds(
        "ext4_dio_write_iter",
        Callees::Only(&["iomap_dio_rw", "__iomap_dio_rw"]),
    ),
    holds(
        "xfs_file_dio_read",
        Callees::Only(&["iomap_dio_rw", "__iomap_dio_rw"]),
    ),
    holds(
        "xfs_file_buffered_read",
        Callees::Only(&["generic_file_read_iter", "filemap_read"]),
    ),
];

/// `mmap_lock`, besides page faults, which have a test of their own. Walkers that may
/// hold only a VMA's lock on newer kernels (smaps, MADV_DONTNEED) are left out, and so
/// are the daemons that drop the lock inside (ksmd, khugepaged).
const MMAP: &[HoldFrame] = &[
    holds("__access_remote_vm", Callees::All),
    holds("populate_vma_page_range", Callees::All),
    // munmap and its kin: taken for write, downgraded before pages are freed.
    holds_own("vms_clear_ptes"),
    holds_own("unmap_region"),
    // Also for another process (process_madvise), so the mm has to be shown.
    holds("madvise_cold", Callees::All),
    holds("madvise_pageout", Callees::All),
];

/// `mmap_lock` of the address space whose memory area the function keeps in its own frame,
/// where the address space itself may be shown nowhere. A BPF iterator over areas keeps
/// the lock from one area to the next, also while its program sleeps
/// (`task_vma_seq_get_next`, kernel/bpf/task_iter.c, 5.12 and later).
const MMAP_OF_AREA: &[HoldFrame] = &[holds(
    "task_vma_seq_show",
    Callees::Only(&["bpf_iter_run_prog"]),
)];

/// Find a super block by its device and lock it.
const USTAT_LOCKERS: Callees = Callees::AllBut(&["user_get_super", "get_super", "super_lock"]);

/// `s_umount`. Walks over all super blocks (iterate_supers) are left out: they keep the
/// one before in a register.
const SUPER: &[HoldFrame] = &[
    // Called with it held.
    holds("sync_filesystem", Callees::All),
    holds("sync_inodes_sb", Callees::All),
    // For one super block the flusher relies on its submitter's hold; on its own it
    // takes each by trylock.
    holds(
        "__writeback_inodes_wb",
        Callees::Only(&["writeback_sb_inodes"]),
    ),
    // ustat(2): asks the file system while it holds it.
    holds("vfs_ustat", USTAT_LOCKERS),
    holds("__do_sys_ustat", USTAT_LOCKERS),
    // Trylock: never asleep for it.
    holds("super_cache_scan", Callees::All),
];

/// `invalidate_lock` of a mapping.
const INVALIDATE: &[HoldFrame] = &[
    holds("page_cache_ra_unbounded", Callees::All),
    holds(
        "page_cache_ra_order",
        Callees::AllBut(&["do_page_cache_ra", "page_cache_ra_unbounded"]),
    ),
    holds(
        "filemap_create_folio",
        Callees::Only(&["filemap_read_folio", "filemap_add_folio"]),
    ),
];

/// The lock of a VMA, besides page faults. Asked only while a writer waits for the VMA: it
/// has mmap_lock for write, so whoever works on the VMA meanwhile has the VMA's own lock.
const VMA: &[HoldFrame] = &[
    // MADV_DONTNEED, MADV_FREE (mm/madvise.c 6.16+).
    holds("zap_page_range_single_batched", Callees::All),
    holds("zap_page_range_single", Callees::All),
    holds("madvise_free_single_vma", Callees::All),
    // /proc/PID/maps from 6.17, smaps and numa_maps later (fs/proc/task_mmu.c).
    holds("show_map_vma", Callees::All),
    holds("show_smap", Callees::All),
    holds("smap_gather_stats", Callees::All),
];

impl HoldFrame {
    /// Whether the lock is held while this function is in `callee` (empty: asleep in
    /// the function itself).
    pub fn holds_in(&self, callee: &str) -> bool {
        match self.callees {
            Callees::All => true,
            Callees::AllBut(others) => !others.contains(&callee),
            Callees::Only(these) => these.contains(&callee),
        }
    }
}

/// The functions that hold a class of lock for read.
pub const fn of_class(class: &LockClass) -> &'static [HoldFrame] {
    if cfg!(feature = "mutation-no-hand-frames") {
        return &[];
    }
    match class {
        LockClass::InodeRwsem => INODE,
        LockClass::MmapLock => MMAP,
        LockClass::SuperUmount => SUPER,
        LockClass::InvalidateLock => INVALIDATE,
        LockClass::VmaLock => VMA,
        LockClass::SuperWriters
        | LockClass::InodeMmapRwsem
        | LockClass::AnonVma
        | LockClass::FilePosition
        | LockClass::Pipe
        | LockClass::Symbol(_)
        | LockClass::KernelData
        | LockClass::Unknown => &[],
    }
}

/// The functions that hold the `mmap_lock` of an area that they keep in their frame.
pub const fn of_areas() -> &'static [HoldFrame] {
    if cfg!(feature = "mutation-no-hand-frames") {
        return &[];
    }
    MMAP_OF_AREA
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_before_the_lock_is_taken_holds_nothing() {
        let iterate_dir = INODE
            .iter()
            .find(|known| known.function == "iterate_dir")
            .unwrap();
        assert!(iterate_dir.holds_in("fuse_readdir"));
        assert!(!iterate_dir.holds_in("security_file_permission"));
        let ustat = SUPER
            .iter()
            .find(|known| known.function == "vfs_ustat")
            .unwrap();
        assert!(ustat.holds_in("statfs_by_dentry"));
        assert!(
            !ustat.holds_in("user_get_super"),
            "it waits for the lock it seems to hold"
        );
        let flusher = SUPER
            .iter()
            .find(|known| known.function == "__writeback_inodes_wb")
            .unwrap();
        assert!(flusher.holds_in("writeback_sb_inodes") && !flusher.holds_in(""));
    }
}
