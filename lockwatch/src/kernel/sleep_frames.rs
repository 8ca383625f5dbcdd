//! Why a sleeping task sleeps, by the functions it sleeps in.

use super::locks::{RT_SPINLOCK_ASKS, VMA_DRAINS};
use crate::task::StuckClass;

/// Functions that queue a task on a lock. The kernel's own unwinder leaves them out
/// (they lie in `.sched.text`), so the raw words above the stack pointer are asked.
pub const LOCK_SLOW_PATHS: &[&str] = &[
    "rwsem_down_read_slowpath",
    "rwsem_down_write_slowpath",
    // Up to 5.2.
    "rwsem_down_read_failed",
    "rwsem_down_read_failed_killable",
    "rwsem_down_write_failed",
    "rwsem_down_write_failed_killable",
    "__mutex_lock",
    "__mutex_lock_slowpath",
    "__mutex_lock_killable_slowpath",
    "__mutex_lock_interruptible_slowpath",
    "__ww_mutex_lock",
    "percpu_rwsem_wait",
    "percpu_down_write",
    "__down",
    "__down_killable",
    "__down_interruptible",
    "__down_timeout",
    "__down_common",
    "rt_mutex_slowlock",
    "rt_mutex_slowlock_block",
    "__rt_mutex_slowlock_locked",
    "__rwbase_read_lock",
    "rwbase_write_lock",
    "__vma_start_write",
    "__vma_enter_locked",
    "__vma_start_exclude_readers",
    "__vma_exclude_readers_for_detach",
];

/// Whether a function, by its stem, is one of a lock's own rather than its caller. Some of
/// them lie outside of `.sched.text`, and the unwinder shows them: `rt_mutex_schedule`,
/// `percpu_rwsem_wait`, those of mm/mmap_lock.c, `call_rwsem_down_read_failed` (up to 5.0).
pub fn is_lock_function(stem: &str) -> bool {
    LOCK_SLOW_PATHS.contains(&stem)
        || VMA_DRAINS.contains(&stem)
        || RT_SPINLOCK_ASKS.contains(&stem)
        || [
            "rt_mutex_",
            "__rt_mutex_",
            "rwbase_",
            "__rwbase_",
            "call_rwsem_down_",
        ]
        .iter()
        .any(|family| stem.starts_with(family))
}

/// Functions in which an uninterruptible sleep is as user space wants it, by the innermost
/// one: frozen tasks (kernel/freezer.c; up to 6.0 such a sleep looks like any other), and the
/// parent of a vfork, which its child keeps waiting (kernel/fork.c).
const BY_DESIGN: &[&str] = &[
    "__refrigerator",
    "wait_for_vfork_done",
    "kernel_clone",
    "_do_fork",
    "do_fork",
];

/// Whether a task sleeps as user space wants it, by the functions it sleeps in, innermost
/// first.
pub fn sleeps_by_design(functions: &[&str]) -> bool {
    functions
        .iter()
        .find(|function| !is_trampoline(function))
        .is_some_and(|innermost| BY_DESIGN.contains(innermost))
}

/// Functions that take mmap_lock for whoever calls them, and say nothing of why
/// (mm/memory.c, mm/mmap_lock.c, fs/proc/base.c): the caller that a person wants to know is
/// the one outside, `proc_pid_cmdline_read` say.
pub const ASK_FOR_OTHERS: &[&str] = &[
    "__access_remote_vm",
    "access_remote_vm",
    "get_mm_cmdline",
    "lock_mm_and_find_vma",
];

/// Whether a function, by its stem, is there only because somebody traces: fentry's
/// trampolines have such symbols of their own.
pub fn is_trampoline(stem: &str) -> bool {
    stem == "ftrace_trampoline" || stem.starts_with("bpf_trampoline_")
}

/// Whether a function, by its stem, only stands in for a return or a call of another
/// (arch/x86/lib/retpoline.S): its addresses are all over a stack, and say nothing.
pub fn is_thunk(stem: &str) -> bool {
    stem.ends_with("_return_thunk") || stem.starts_with("__x86_indirect_")
}

/// How a stem is matched.
enum Match {
    /// The whole stem.
    Is(&'static str),
    /// Its beginning: a family of one subsystem.
    Begins(&'static str),
}
use Match::{Begins, Is};

/// Decided by the innermost function that matches.
const SLEEPS: &[(Match, StuckClass)] = &[
    (Begins("fuse_"), StuckClass::Fuse),
    (Is("request_wait_answer"), StuckClass::Fuse),
    (Is("__fuse_simple_request"), StuckClass::Fuse),
    (Is("__fuse_request_send"), StuckClass::Fuse),
    (Begins("nfs_"), StuckClass::NetworkFs),
    (Begins("nfs3_"), StuckClass::NetworkFs),
    (Begins("nfs4_"), StuckClass::NetworkFs),
    (Begins("rpc_"), StuckClass::NetworkFs),
    (Begins("cifs_"), StuckClass::NetworkFs),
    (Begins("smb2_"), StuckClass::NetworkFs),
    (Begins("ceph_"), StuckClass::NetworkFs),
    (Begins("p9_client_"), StuckClass::NetworkFs),
    (Is("wait_for_response"), StuckClass::NetworkFs),
    (Is("handle_userfault"), StuckClass::User),
    (Is("ptrace_stop"), StuckClass::User),
    (Is("do_signal_stop"), StuckClass::User),
    (Is("do_freezer_trap"), StuckClass::User),
    (Is("__refrigerator"), StuckClass::User),
    (Is("throttle_direct_reclaim"), StuckClass::Reclaim),
    (Is("reclaim_throttle"), StuckClass::Reclaim),
    (Is("try_to_free_pages"), StuckClass::Reclaim),
    (Is("try_to_free_mem_cgroup_pages"), StuckClass::Reclaim),
    (Is("mem_cgroup_handle_over_high"), StuckClass::Reclaim),
    (Is("try_to_compact_pages"), StuckClass::Reclaim),
    (Is("congestion_wait"), StuckClass::Reclaim),
    (Begins("shrink_"), StuckClass::Reclaim),
    (Is("bt_get"), StuckClass::BlockIo),
    (Begins("blk_"), StuckClass::BlockIo),
    (Begins("blkdev_"), StuckClass::BlockIo),
    (Begins("submit_bio"), StuckClass::BlockIo),
    (Is("rq_qos_wait"), StuckClass::BlockIo),
    (Is("balance_dirty_pages"), StuckClass::BlockIo),
    (Is("__wait_on_buffer"), StuckClass::BlockIo),
    (Is("jbd2_log_wait_commit"), StuckClass::BlockIo),
    (Is("jbd2_journal_commit_transaction"), StuckClass::BlockIo),
    (Is("wait_transaction_locked"), StuckClass::BlockIo),
    (Is("xfs_buf_iowait"), StuckClass::BlockIo),
    (Begins("xlog_"), StuckClass::BlockIo),
    (Begins("iomap_dio_"), StuckClass::BlockIo),
    (Is("dm_wait_for_completion"), StuckClass::BlockIo),
    (Is("synchronize_rcu"), StuckClass::Completion),
    (Is("synchronize_rcu_expedited"), StuckClass::Completion),
    (Is("__wait_rcu_gp"), StuckClass::Completion),
    (Is("synchronize_srcu"), StuckClass::Completion),
    (Is("__synchronize_srcu"), StuckClass::Completion),
    (Is("__flush_work"), StuckClass::Completion),
    (Is("__flush_workqueue"), StuckClass::Completion),
    (Is("cmd_completion"), StuckClass::Completion),
    (Is("devtmpfs_submit_req"), StuckClass::Completion),
    (Is("hrtimer_nanosleep"), StuckClass::Sleep),
    (Is("msleep"), StuckClass::Sleep),
    (Is("msleep_interruptible"), StuckClass::Sleep),
    (Is("usleep_range_state"), StuckClass::Sleep),
    (Is("coredump_task_exit"), StuckClass::Exit),
];

/// Waits for a page or buffer: block I/O, unless an outer function shows the file
/// system that has to bring it.
const PAGE_WAITS: &[&str] = &[
    "folio_wait_bit",
    "folio_wait_bit_common",
    "folio_wait_bit_killable",
    "folio_wait_writeback",
    "folio_wait_stable",
    "__folio_lock",
    "__folio_lock_killable",
    "__lock_page",
    "__lock_page_killable",
    "wait_on_page_bit",
    "wait_on_page_bit_common",
    "wait_on_page_writeback",
    "out_of_line_wait_on_bit",
    "filemap_read_folio",
];

/// The class of a sleep whose frames say nothing, by the functions that the unwinder has
/// left out (they lie in `.sched.text`) and those it shows, both innermost first:
/// `wait_on_bit_io` (include/linux/wait_bit.h) is all that a wait for a buffer leaves.
pub fn classify_hidden<'a>(hidden: &[&'a str], shown: &[&'a str]) -> Option<(StuckClass, &'a str)> {
    let mut asleep = hidden
        .iter()
        .skip_while(|&&function| function != "schedule");
    // A saved register in between can look like a function.
    let waits_for_io = (asleep.by_ref().skip(1).take(2))
        .any(|function| ["bit_wait_io", "io_schedule"].contains(function));
    let wait = *asleep.find(|function| PAGE_WAITS.contains(function))?;
    let functions = [&[wait], shown].concat();
    classify(&functions).filter(|_| waits_for_io)
}

/// Whether a function, by its stem, brings a page back from swap or waits for a page that is
/// being moved (mm/memory.c, mm/shmem.c, mm/swap_state.c, mm/migrate.c): the page that is
/// waited for belongs to no file then.
pub fn is_swap_wait(stem: &str) -> bool {
    [
        "do_swap_page",
        "swapin_readahead",
        "swap_cluster_readahead",
        "swap_vma_readahead",
        "shmem_swapin_folio",
        "shmem_swapin_page",
        "shmem_swapin",
        "unuse_pte_range",
        "migration_entry_wait",
        "migration_entry_wait_on_locked",
    ]
    .contains(&stem)
}

/// Whether a function, by its stem, waits for a page or buffer.
pub fn is_page_wait(stem: &str) -> bool {
    PAGE_WAITS.contains(&stem)
}

/// The class of a sleep and the function that decides it, from the functions on the
/// stack, innermost first.
pub fn classify<'a>(functions: &[&'a str]) -> Option<(StuckClass, &'a str)> {
    let mut page_wait = None;
    for &function in functions {
        if let Some(class) = class_of(function) {
            return Some((class, page_wait.unwrap_or(function)));
        }
        if page_wait.is_none() && PAGE_WAITS.contains(&function) {
            page_wait = Some(function);
        }
    }
    page_wait.map(|function| (StuckClass::BlockIo, function))
}

/// As [`classify`], for the functions on the stack of a task that is switched out, from
/// the tracepoint outwards. That stack shows the scheduler and lock functions, too, and
/// in front of them how the tracer came to be called. Where no function is known: the
/// one that called the scheduler, and an unknown reason.
pub fn of_switch<'a>(functions: &[&'a str]) -> Option<(StuckClass, &'a str)> {
    let is_scheduler = |function: &&str| {
        ["schedule", "__schedule", "io_schedule", "preempt_schedule"]
            .iter()
            .any(|prefix| function.starts_with(prefix))
    };
    let inner = functions.iter().rposition(is_scheduler)? + 1;
    let sleeper = &functions[inner..];
    for (index, &function) in sleeper.iter().enumerate() {
        if LOCK_SLOW_PATHS.contains(&function) && classify(&sleeper[..index]).is_none() {
            return Some((StuckClass::Lock, function));
        }
    }
    classify(sleeper).or_else(|| {
        let named = sleeper.iter().find(|function| !function.is_empty())?;
        Some((StuckClass::Unknown, named))
    })
}

fn class_of(function: &str) -> Option<StuckClass> {
    SLEEPS
        .iter()
        .find(|(pattern, _)| match *pattern {
            Is(name) => function == name,
            Begins(prefix) => function.starts_with(prefix),
        })
        .map(|&(_, class)| class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_for_a_buffer_is_told_by_what_the_unwinder_leaves_out() {
        let shown = ["__ext4_find_entry", "ext4_lookup"];
        let hidden = |sleep| {
            [
                "__schedule",
                "__pfx_bit_wait_io",
                "schedule",
                sleep,
                "__wait_on_bit",
                "out_of_line_wait_on_bit",
            ]
        };
        let io = Some((StuckClass::BlockIo, "out_of_line_wait_on_bit"));
        assert_eq!(classify_hidden(&hidden("bit_wait_io"), &shown), io);
        assert_eq!(classify_hidden(&hidden("io_schedule"), &shown), io);
        assert_eq!(classify_hidden(&hidden("bit_wait"), &shown), None);
        let nfs = classify_hidden(&hidden("bit_wait_io"), &["nfs_wait_on_request"]);
        assert_eq!(nfs.map(|(class, _)| class), Some(StuckClass::NetworkFs));
        let stale = [
            "schedule",
            "schedule_timeout",
            "wait_for_completion",
            "bit_wait_io",
            "out_of_line_wait_on_bit",
        ];
        assert_eq!(classify_hidden(&stale, &shown), None);
    }

    #[test]
    fn the_innermost_known_function_decides() {
        assert_eq!(
            classify(&[
                "bt_get",
                "blk_mq_get_tag",
                "ext4_readpages",
                "filemap_fault"
            ]),
            Some((StuckClass::BlockIo, "bt_get"))
        );
        assert_eq!(
            classify(&[
                "request_wait_answer",
                "__fuse_simple_request",
                "filemap_read_folio"
            ]),
            Some((StuckClass::Fuse, "request_wait_answer"))
        );
        assert_eq!(classify(&["something_new"]), None);
    }

    #[test]
    fn a_switch_is_told_by_who_called_the_scheduler() {
        let switch = |sleeper: &[&'static str]| {
            let mut functions = vec!["", "bpf_trace_run4", "__schedule", "schedule"];
            functions.extend(sleeper);
            of_switch(&functions)
        };
        assert_eq!(
            switch(&["request_wait_answer", "fuse_mkdir"]),
            Some((StuckClass::Fuse, "request_wait_answer"))
        );
        assert_eq!(
            switch(&["rwsem_down_write_slowpath", "down_write", "fuse_mkdir"]),
            Some((StuckClass::Lock, "rwsem_down_write_slowpath"))
        );
        assert_eq!(
            switch(&["", "something_new"]),
            Some((StuckClass::Unknown, "something_new"))
        );
        assert_eq!(of_switch(&["cut", "short"]), None);
    }

    #[test]
    fn a_page_wait_belongs_to_the_file_system_that_shows() {
        assert_eq!(
            classify(&["folio_wait_bit_common", "filemap_fault"]),
            Some((StuckClass::BlockIo, "folio_wait_bit_common"))
        );
        assert_eq!(
            classify(&[
                "folio_wait_bit_common",
                "fuse_wait_on_page_writeback",
                "fuse_flush"
            ]),
            Some((StuckClass::Fuse, "folio_wait_bit_common"))
        );
    }
}
