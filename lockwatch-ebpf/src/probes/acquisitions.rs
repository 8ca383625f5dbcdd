//! With which stack a task has acquired each rwsem that it holds, and with which it
//! releases it (kernel/locking/rwsem.c, the same from 5.10 to 7.3).
//!
//! Each program runs on every operation, contended or not, and unwinds the stack: some
//! microseconds. None emits anything.

use aya_ebpf::{
    EbpfContext,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_stackid, bpf_ktime_get_ns},
    },
    macros::{btf_tracepoint, fentry, fexit, map},
    maps::{HashMap, StackTrace},
    programs::{BtfTracePointContext, FEntryContext, FExitContext},
};
use lockwatch_ebpf::acquisitions::{Acquisition, Ended, Hold};

use super::{argument::word, global::global};

/// Where `mmap_lock` lies in an `mm_struct`.
#[unsafe(no_mangle)]
static MMAP_LOCK: u64 = 0;

/// 1: a `memcg_path` stands between `mm` and the rest of a tracepoint's arguments (up to
/// 6.15).
#[unsafe(no_mangle)]
static MEMCG_PATH: u32 = 0;

/// Each stack once. One whose place is taken has no id, and what came of it is not known.
#[map]
static STACKS: StackTrace = StackTrace::with_max_entries(8192, 0);

/// How a task has acquired a lock, the last time if it reads recursively.
/// Preallocated, so that an insert never calls the allocator.
#[map]
static ACQUISITIONS: HashMap<Hold, Acquisition> = HashMap::with_max_entries(16 * 1024, 0);

/// How often a lock that was acquired with one stack was released with another.
#[map]
static ENDED: HashMap<Ended, u64> = HashMap::with_max_entries(16 * 1024, 0);

/// fexit of a function that acquires: always, or if what it returns, the word behind its
/// only parameter, says so.
macro_rules! acquire {
    ($function:ident, $name:literal) => {
        #[doc = concat!("fexit of `void ", $name, "(struct rw_semaphore *sem)`, 5.10+.")]
        #[fexit(function = $name)]
        fn $function(ctx: FExitContext) -> i32 {
            acquired(&ctx, ctx.arg(0));
            0
        }
    };
    ($function:ident, $name:literal, |$result:ident| $acquired:expr) => {
        #[doc = concat!("fexit of `int ", $name, "(struct rw_semaphore *sem)`, 5.10+.")]
        #[fexit(function = $name)]
        fn $function(ctx: FExitContext) -> i32 {
            let $result: i32 = ctx.arg(1);
            if $acquired {
                acquired(&ctx, ctx.arg(0));
            }
            0
        }
    };
}

macro_rules! release {
    ($function:ident, $name:literal) => {
        #[doc = concat!("fentry of `void ", $name, "(struct rw_semaphore *sem)`, 5.10+.")]
        #[fentry(function = $name)]
        fn $function(ctx: FEntryContext) -> i32 {
            released(&ctx, ctx.arg(0));
            0
        }
    };
}

acquire!(down_read, "down_read");
acquire!(
    down_read_interruptible,
    "down_read_interruptible",
    |error| error == 0
);
acquire!(down_read_killable, "down_read_killable", |error| error == 0);
acquire!(down_read_trylock, "down_read_trylock", |success| success
    & 0xff
    != 0);
acquire!(down_write, "down_write");
acquire!(down_write_killable, "down_write_killable", |error| error
    == 0);
acquire!(down_write_trylock, "down_write_trylock", |success| success
    & 0xff
    != 0);
release!(up_read, "up_read");
release!(up_write, "up_write");

/// Tracepoint `mmap_lock_acquire_returned(struct mm_struct *mm, [const char *memcg_path,]
/// bool write, bool success)`, 5.11+: where functions may not be watched. A downgrade
/// counts as an acquisition.
#[btf_tracepoint(function = "mmap_lock_acquire_returned")]
fn mmap_lock_acquire_returned(ctx: BtfTracePointContext) -> i32 {
    let success = if global!(MEMCG_PATH) == 0 {
        word::<16>(&ctx)
    } else {
        word::<24>(&ctx)
    };
    if success & 0xff != 0 {
        acquired(&ctx, mmap_lock(&ctx));
    }
    0
}

/// Tracepoint `mmap_lock_released(struct mm_struct *mm, [const char *memcg_path,] bool
/// write)`, 5.11+.
#[btf_tracepoint(function = "mmap_lock_released")]
fn mmap_lock_released(ctx: BtfTracePointContext) -> i32 {
    released(&ctx, mmap_lock(&ctx));
    0
}

#[inline(always)]
fn mmap_lock(ctx: &BtfTracePointContext) -> u64 {
    ctx.arg::<u64>(0).wrapping_add(global!(MMAP_LOCK))
}

#[inline(always)]
fn acquired(ctx: &impl EbpfContext, lock: u64) {
    let hold = hold(lock);
    match stack(ctx) {
        Some(stack) => {
            let acquisition = Acquisition {
                // SAFETY: no preconditions.
                at_ns: unsafe { bpf_ktime_get_ns() },
                stack,
                _pad: 0,
            };
            let _ = ACQUISITIONS.insert(hold, acquisition, 0);
        }
        // What was known of it is old.
        None => {
            let _ = ACQUISITIONS.remove(hold);
        }
    }
}

#[inline(always)]
fn released(ctx: &impl EbpfContext, lock: u64) {
    let hold = hold(lock);
    let Some(acquired) = ACQUISITIONS.get_ptr(hold) else {
        return;
    };
    // SAFETY: a plain load from the entry.
    let acquired = unsafe { (*acquired).stack };
    let _ = ACQUISITIONS.remove(hold);
    let Some(released) = stack(ctx) else {
        return;
    };
    let ended = Ended { acquired, released };
    match ENDED.get_ptr_mut(ended) {
        // SAFETY: a plain store to the entry; a count that is lost to a race does no harm.
        Some(times) => unsafe { *times += 1 },
        None => {
            let _ = ENDED.insert(ended, 1, 0);
        }
    }
}

#[inline(always)]
fn hold(lock: u64) -> Hold {
    Hold {
        lock,
        tid: bpf_get_current_pid_tgid() as u32,
        _pad: 0,
    }
}

#[inline(always)]
fn stack(ctx: &impl EbpfContext) -> Option<u32> {
    // SAFETY: the context of this program, and a map of stacks.
    let id = unsafe { bpf_get_stackid(ctx.as_ptr(), (&raw const STACKS).cast_mut().cast(), 0) };
    u32::try_from(id).ok()
}
