//! What a page fault holds while it sleeps: the one test that tells a thread that
//! holds mmap_lock in a fault from one that only looks the same.
//!
//! Sources: include/linux/mm_types.h (`enum fault_flag`), mm/filemap.c, mm/memory.c,
//! mm/shmem.c, mm/userfaultfd.c and arch/x86/mm/fault.c of 5.10, 6.1, 6.12, 6.18
//! and 7.3. The flag values are the same on all of them. Of 3.x kernels: include/linux/mm.h,
//! mm/filemap.c and mm/memory.c.

const MKWRITE: u32 = 0x2;
const ALLOW_RETRY: u32 = 0x4;
const RETRY_NOWAIT: u32 = 0x8;
const TRIED: u32 = 0x20;
const REMOTE: u32 = 0x80;
/// Every bit that any kernel defines: a word with others is no flags word.
const KNOWN: u32 = 0x1fff;

/// Functions whose frame holds the `vm_fault`.
pub const FAULT_FRAMES: &[&str] = &["__handle_mm_fault", "handle_mm_fault", "hugetlb_fault"];

/// The same up to 4.9, where the function that asks the file system makes the `vm_fault`.
/// The others are those that it is inlined into.
pub const OLD_FAULT_FRAMES: &[&str] = &[
    "__do_fault",
    "do_read_fault",
    "do_cow_fault",
    "do_shared_fault",
    "do_linear_fault",
    "handle_pte_fault",
    "handle_mm_fault",
    "__handle_mm_fault",
];

/// By which rules a kernel's page faults go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultRules {
    /// `FAULT_FLAG_VMA_LOCK`, 0 where the kernel has none.
    pub vma_lock_flag: u32,
    /// A fault drops its lock before it waits for a page's lock, but not for I/O that it
    /// starts itself (up to 5.0).
    pub keeps_for_io: bool,
    /// The second flag is `FAULT_FLAG_NONLINEAR`, and all others follow one bit higher (up
    /// to 3.19).
    pub has_nonlinear: bool,
}

/// `vm_fault.flags` of a fault that is on a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultFlags {
    /// The raw word.
    pub raw: u32,
    /// The fault holds its VMA's lock, not mmap_lock.
    vma_lock: bool,
    /// The flags as they are numbered since 4.0.
    flags: u32,
    rules: FaultRules,
}

/// What a sleeping fault does with mmap_lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultHold {
    /// Holds it for read.
    Holds,
    /// Does not hold it: dropped it before it slept, or holds only its VMA's lock.
    HoldsNot,
    /// The functions on the stack do not tell.
    Unknown,
}

/// What the functions under the fault do with the fault's lock when the flags
/// allow them to drop it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sleep {
    /// Drops it first.
    Drops,
    /// Keeps it whatever the flags say.
    Keeps,
    /// Never holds it while asleep.
    NeverHolds,
    /// Not known.
    Unknown,
}

impl FaultFlags {
    /// `None` if the word cannot be fault flags.
    pub const fn decode(raw: u32, rules: FaultRules) -> Option<Self> {
        let flags = if rules.has_nonlinear {
            raw & 1 | raw >> 1 & !1
        } else {
            raw
        };
        if flags & !KNOWN != 0 {
            return None;
        }
        Some(Self {
            raw,
            vma_lock: flags & rules.vma_lock_flag != 0,
            flags,
            rules,
        })
    }

    /// Whether the fault still holds mmap_lock, asleep in `functions`: stems from the
    /// innermost outwards, up to and with the one whose frame has the `vm_fault`.
    pub fn hold(self, functions: &[&str]) -> FaultHold {
        if cfg!(feature = "mutation-no-fault-test") {
            return FaultHold::Holds;
        }
        let sleep = if self.rules.keeps_for_io {
            old_sleep_of(functions)
        } else {
            sleep_of(functions)
        };
        if sleep == Sleep::NeverHolds {
            return FaultHold::HoldsNot;
        }
        let is_in = |wanted: &str| functions.contains(&wanted);
        // do_page_mkwrite overwrites the flags while it asks the file system: whether the
        // fault is under its VMA's lock can no longer be read (mm/memory.c, 6.4+).
        let overwritten = self.flags & MKWRITE != 0 || is_in("do_page_mkwrite");
        // A fault under its VMA's lock may try for mmap_lock there (mm/memory.c, 6.8+).
        let may_take_both = self.vma_lock && is_in("__anon_vma_prepare");
        if self.rules.vma_lock_flag != 0 && (overwritten || may_take_both) {
            return FaultHold::Unknown;
        }
        if self.vma_lock {
            return FaultHold::HoldsNot;
        }
        self.keeps(sleep)
    }

    /// Whether the fault still holds its VMA's lock, asked while a writer has mmap_lock and
    /// waits for that VMA: then no fault has mmap_lock, so one whose flags were overwritten
    /// can have the VMA's lock only.
    pub fn vma_hold(self, functions: &[&str]) -> FaultHold {
        let sleep = sleep_of(functions);
        let overwritten = self.flags & MKWRITE != 0 || functions.contains(&"do_page_mkwrite");
        if sleep == Sleep::NeverHolds || !(self.vma_lock || overwritten) {
            return FaultHold::HoldsNot;
        }
        self.keeps(sleep)
    }

    /// Whether a fault keeps what it holds in such a sleep.
    fn keeps(self, sleep: Sleep) -> FaultHold {
        let may_drop = self.flags & (ALLOW_RETRY | TRIED | RETRY_NOWAIT) == ALLOW_RETRY;
        match (sleep, may_drop) {
            (Sleep::NeverHolds, _) | (Sleep::Drops, true) => FaultHold::HoldsNot,
            (Sleep::Keeps, _) | (_, false) => FaultHold::Holds,
            (Sleep::Unknown, true) => FaultHold::Unknown,
        }
    }

    /// In words for a person: `0xa74: retried, under mmap_lock`.
    pub fn describe(self) -> String {
        if self.flags & MKWRITE != 0 {
            return format!("{:#x}: overwritten for page_mkwrite", self.raw);
        }
        let try_ = match (self.flags & TRIED != 0, self.flags & ALLOW_RETRY != 0) {
            (true, _) => "TRIED",
            (false, true) => "first attempt",
            (false, false) => "no retry allowed",
        };
        let lock = if self.vma_lock {
            "under its VMA lock"
        } else if self.rules.keeps_for_io {
            "which keeps mmap_lock for I/O"
        } else {
            "no VMA lock"
        };
        let remote = if self.flags & REMOTE != 0 {
            ", for another process"
        } else {
            ""
        };
        format!("{:#x}: {try_}, {lock}{remote}", self.raw)
    }
}

/// Judges by the functions from the innermost outwards. What lies further out
/// decides for all it calls (readahead even for the allocation and the block tag it
/// waits for), so the last known function wins; only userfaultfd ends the question.
fn sleep_of(functions: &[&str]) -> Sleep {
    let mut sleep = Sleep::Unknown;
    let mut callee = "";
    for &function in functions {
        sleep = match function {
            "handle_userfault" => return Sleep::NeverHolds,
            // filemap_fault drops the lock before it waits for a page's lock, but not
            // for invalidate_lock or memory; there it depends on what it did before.
            "filemap_fault" if is_page_lock_wait(callee) => Sleep::Drops,
            "filemap_fault" if sleep != Sleep::Drops => Sleep::Unknown,
            "shmem_fault" if callee.is_empty() => Sleep::Drops,
            _ => known_sleep(function).unwrap_or(sleep),
        };
        callee = function;
    }
    sleep
}

/// The same up to 5.0: whoever waits for the lock of a page that somebody else reads drops
/// the fault's lock, nobody else does (`__lock_page_or_retry`, mm/filemap.c). Drivers may.
fn old_sleep_of(functions: &[&str]) -> Sleep {
    let mut sleep = Sleep::Unknown;
    for &function in functions {
        sleep = match function {
            "handle_userfault" => return Sleep::NeverHolds,
            "__lock_page_or_retry" => Sleep::Drops,
            "filemap_fault" | "do_swap_page" if sleep != Sleep::Drops => Sleep::Keeps,
            "do_anonymous_page" | "do_wp_page" | "do_page_mkwrite" | "hugetlb_fault" => {
                Sleep::Keeps
            }
            "migration_entry_wait" | "__migration_entry_wait" | "migration_entry_wait_huge" => {
                Sleep::Keeps
            }
            _ => sleep,
        };
    }
    sleep
}

fn known_sleep(function: &str) -> Option<Sleep> {
    let sleep = match function {
        "filemap_read_folio"
        | "filemap_read_page"
        | "page_cache_ra_unbounded"
        | "page_cache_ra_order"
        | "page_cache_sync_ra"
        | "page_cache_async_ra"
        | "ondemand_readahead"
        | "force_page_cache_ra"
        | "do_sync_mmap_readahead"
        | "do_async_mmap_readahead" => Sleep::Drops,
        "__folio_lock_or_retry" | "__lock_page_or_retry" | "shmem_falloc_wait" => Sleep::Drops,
        "balance_dirty_pages"
        | "balance_dirty_pages_ratelimited"
        | "balance_dirty_pages_ratelimited_flags" => Sleep::Drops,
        "migration_entry_wait"
        | "__migration_entry_wait"
        | "pmd_migration_entry_wait"
        | "migration_entry_wait_huge"
        | "migration_entry_wait_on_locked"
        | "softleaf_entry_wait_on_locked" => Sleep::Keeps,
        "swapin_readahead"
        | "swap_cluster_readahead"
        | "swap_vma_readahead"
        | "swap_read_folio"
        | "swap_readpage"
        | "swapin_sync" => Sleep::Keeps,
        "do_page_mkwrite" | "hugetlb_fault" => Sleep::Keeps,
        "try_to_free_pages"
        | "try_to_compact_pages"
        | "__alloc_pages_direct_compact"
        | "try_to_free_mem_cgroup_pages" => Sleep::Keeps,
        _ => return None,
    };
    Some(sleep)
}

/// Waits for the lock of a page; who asked for the page decides what is held.
fn is_page_lock_wait(function: &str) -> bool {
    matches!(
        function,
        "__folio_lock"
            | "__folio_lock_killable"
            | "folio_wait_bit_common"
            | "__lock_page"
            | "__lock_page_killable"
    )
}

#[cfg(test)]
#[cfg(not(feature = "mutation-no-fault-test"))]
mod tests {
    use super::*;

    const NOW: FaultRules = FaultRules {
        vma_lock_flag: 0x1000,
        keeps_for_io: false,
        has_nonlinear: false,
    };
    const BEFORE_6_4: FaultRules = FaultRules {
        vma_lock_flag: 0,
        ..NOW
    };
    const BEFORE_4_0: FaultRules = FaultRules {
        vma_lock_flag: 0,
        keeps_for_io: true,
        has_nonlinear: true,
    };

    fn hold(raw: u32, functions: &[&str]) -> FaultHold {
        let flags = FaultFlags::decode(raw, NOW).unwrap();
        flags.hold(functions)
    }

    /// On a kernel without VMA locks.
    fn hold_before_6_4(raw: u32, functions: &[&str]) -> FaultHold {
        let flags = FaultFlags::decode(raw, BEFORE_6_4).unwrap();
        flags.hold(functions)
    }

    #[test]
    fn flags_that_page_mkwrite_overwrote_say_nothing_where_vma_locks_exist() {
        let mkwrite = [
            "folio_wait_writeback",
            "fuse_page_mkwrite",
            "do_page_mkwrite",
            "__handle_mm_fault",
        ];
        assert_eq!(hold(0x3, &mkwrite), FaultHold::Unknown);
        assert_eq!(hold(0x3, &mkwrite[..2]), FaultHold::Unknown, "inlined");
        assert_eq!(hold_before_6_4(0x3, &mkwrite), FaultHold::Holds);
    }

    #[test]
    fn a_fault_beside_a_writer_of_its_vma_can_only_have_the_vma() {
        let vma_hold =
            |raw, functions: &[&str]| FaultFlags::decode(raw, NOW).unwrap().vma_hold(functions);
        let mkwrite = ["fuse_page_mkwrite", "do_page_mkwrite", "__handle_mm_fault"];
        assert_eq!(vma_hold(0x3, &mkwrite), FaultHold::Holds);
        let migration = ["migration_entry_wait_on_locked", "do_swap_page"];
        assert_eq!(vma_hold(0x1254, &migration), FaultHold::Holds);
        assert_eq!(vma_hold(0x254, &migration), FaultHold::HoldsNot);
        let read = ["fuse_read_folio", "filemap_read_folio", "filemap_fault"];
        assert_eq!(vma_hold(0x1a54, &read), FaultHold::HoldsNot, "dropped");
        let user = ["handle_userfault", "do_anonymous_page"];
        assert_eq!(vma_hold(0x1254, &user), FaultHold::HoldsNot);
    }

    #[test]
    fn a_huge_page_keeps_the_lock_and_userfaultfd_never_does() {
        let first = 0x254;
        assert_eq!(
            hold(first, &["io_schedule", "hugetlb_fault"]),
            FaultHold::Holds
        );
        assert_eq!(
            hold(0x274, &["handle_userfault", "hugetlb_fault"]),
            FaultHold::HoldsNot
        );
        assert_eq!(
            hold(0x1254, &["down_write", "__anon_vma_prepare"]),
            FaultHold::Unknown
        );
    }

    /// Flags as measured on real kernels; functions from the innermost outwards.
    #[test]
    fn the_retry_holds_and_the_first_attempt_does_not() {
        let read = [
            "request_wait_answer",
            "fuse_read_folio",
            "filemap_read_folio",
            "filemap_fault",
            "__do_fault",
        ];
        assert_eq!(
            hold(0xa74, &read),
            FaultHold::Holds,
            "6.1 and later: retried under mmap_lock"
        );
        assert_eq!(
            hold(0x1a54, &read),
            FaultHold::HoldsNot,
            "6.12 and later: first attempt"
        );
        assert_eq!(
            hold(0xa54, &read),
            FaultHold::HoldsNot,
            "6.1: first attempt"
        );
        assert_eq!(
            hold(0x254, &read),
            FaultHold::HoldsNot,
            "5.10: first attempt"
        );
        assert_eq!(hold(0x274, &read), FaultHold::Holds, "5.10: retried");
        assert_eq!(
            hold(0x880, &read),
            FaultHold::Holds,
            "for another process, no retry allowed"
        );
    }

    #[test]
    fn what_sleeps_under_the_fault_decides_the_first_attempt() {
        let first = 0x254;
        assert_eq!(
            hold(first, &["migration_entry_wait_on_locked", "do_swap_page"]),
            FaultHold::Holds
        );
        assert_eq!(
            hold_before_6_4(
                first,
                &["jbd2_journal_start", "ext4_page_mkwrite", "do_page_mkwrite"]
            ),
            FaultHold::Holds
        );
        assert_eq!(
            hold(
                first,
                &[
                    "folio_wait_bit_common",
                    "__folio_lock_killable",
                    "filemap_fault"
                ]
            ),
            FaultHold::HoldsNot
        );
        assert_eq!(
            hold(
                first,
                &[
                    "bt_get",
                    "blk_mq_get_tag",
                    "page_cache_ra_unbounded",
                    "filemap_fault"
                ]
            ),
            FaultHold::HoldsNot
        );
        assert_eq!(
            hold(
                first,
                &[
                    "try_to_free_pages",
                    "page_cache_ra_unbounded",
                    "filemap_fault"
                ]
            ),
            FaultHold::HoldsNot
        );
        assert_eq!(
            hold(first, &["try_to_free_pages", "filemap_fault"]),
            FaultHold::Unknown
        );
        assert_eq!(
            hold(first, &["filemap_fault"]),
            FaultHold::Unknown,
            "invalidate_lock"
        );
        assert_eq!(hold(first, &["some_driver_fault"]), FaultHold::Unknown);
        assert_eq!(
            hold(first, &["try_to_free_pages", "do_anonymous_page"]),
            FaultHold::Holds
        );
    }

    /// ALLOW_RETRY 8, KILLABLE 0x20, TRIED 0x40, USER 0x80.
    #[test]
    fn up_to_5_0_only_a_wait_for_a_pages_lock_drops_it() {
        let old =
            |raw, functions: &[&str]| FaultFlags::decode(raw, BEFORE_4_0).unwrap().hold(functions);
        let readahead = ["bt_get", "ext4_readpages", "ra_submit", "filemap_fault"];
        let page_lock = ["wait_on_page_bit", "__lock_page_or_retry", "filemap_fault"];
        assert_eq!(old(0xa8, &readahead), FaultHold::Holds, "first attempt");
        assert_eq!(old(0xe0, &readahead), FaultHold::Holds, "retried");
        assert_eq!(old(0xa8, &page_lock), FaultHold::HoldsNot);
        assert_eq!(old(0xe0, &page_lock), FaultHold::Holds);
        assert_eq!(old(0xa8, &["ttm_bo_vm_fault"]), FaultHold::Unknown);
        assert_eq!(
            old(0xa8, &["handle_userfault", "do_anonymous_page"]),
            FaultHold::HoldsNot
        );
        let flags = FaultFlags::decode(0xa8, BEFORE_4_0).unwrap();
        assert_eq!(
            flags.describe(),
            "0xa8: first attempt, which keeps mmap_lock for I/O"
        );
        let from_4_0 = FaultRules {
            has_nonlinear: false,
            ..BEFORE_4_0
        };
        let retried = FaultFlags::decode(0x70, from_4_0).unwrap();
        assert_eq!(retried.hold(&page_lock), FaultHold::Holds);
    }

    #[test]
    fn a_word_with_unknown_bits_is_no_flags_word() {
        assert_eq!(FaultFlags::decode(0x8000_0000, NOW), None);
        assert_eq!(FaultFlags::decode(0xffff_8881, NOW), None);
    }
}
