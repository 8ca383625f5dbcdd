//! `mmap_lock` alone, by its tracepoints: for kernels whose policy forbids programs at
//! functions.

use aya_ebpf::{
    EbpfContext,
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};

use lockwatch_ebpf::counts;

use super::{
    argument::word,
    global::global,
    state::{Downgrades, Mode, Place, acquired, released},
};

/// Where `mmap_lock` lies in an `mm_struct`.
#[unsafe(no_mangle)]
static MMAP_LOCK: u64 = 0;

/// 1: a `memcg_path` stands between `mm` and the rest (up to 6.15).
#[unsafe(no_mangle)]
static MEMCG_PATH: u32 = 0;

/// Tracepoint `mmap_lock_acquire_returned(struct mm_struct *mm, [const char *memcg_path,]
/// bool write, bool success)`, 5.11+.
///
/// Fires for a failed trylock, too, and for a downgrade, before it is done: then as
/// acquired for read. Cost and effect as the functions'.
#[btf_tracepoint(function = "mmap_lock_acquire_returned")]
fn mmap_lock_acquire_returned(ctx: BtfTracePointContext) -> i32 {
    acquire_returned(&ctx)
}

/// The same by raw_tp.
#[raw_tracepoint(tracepoint = "mmap_lock_acquire_returned")]
fn raw_mmap_lock_acquire_returned(ctx: RawTracePointContext) -> i32 {
    acquire_returned(&ctx)
}

#[inline(always)]
fn acquire_returned(ctx: &impl EbpfContext) -> i32 {
    let (write, success) = if global!(MEMCG_PATH) == 0 {
        (word::<8>(ctx), word::<16>(ctx))
    } else {
        (word::<16>(ctx), word::<24>(ctx))
    };
    if success & 0xff != 0 {
        acquired(|| lock(ctx), mode(write), Downgrades::AsReads);
    }
    0
}

/// Tracepoint `mmap_lock_released(struct mm_struct *mm, [const char *memcg_path,] bool
/// write)`, 5.11+.
///
/// Fires before the lock is free. Cost and effect as the functions'.
#[btf_tracepoint(function = "mmap_lock_released")]
fn mmap_lock_released(ctx: BtfTracePointContext) -> i32 {
    lock_released(&ctx)
}

/// The same by raw_tp.
#[raw_tracepoint(tracepoint = "mmap_lock_released")]
fn raw_mmap_lock_released(ctx: RawTracePointContext) -> i32 {
    lock_released(&ctx)
}

#[inline(always)]
fn lock_released(ctx: &impl EbpfContext) -> i32 {
    let write = if global!(MEMCG_PATH) == 0 {
        word::<8>(ctx)
    } else {
        word::<16>(ctx)
    };
    let place = Place {
        class: counts::MMAP_LOCK,
        offset: global!(MMAP_LOCK),
    };
    released(ctx, || lock(ctx), place, mode(write));
    0
}

/// Of the argument `bool write`: a register, of which the lowest byte counts.
#[inline(always)]
fn mode(write: u64) -> Mode {
    if write & 0xff == 0 {
        Mode::Read
    } else {
        Mode::Write
    }
}

#[inline(always)]
fn lock(ctx: &impl EbpfContext) -> u64 {
    word::<0>(ctx).wrapping_add(global!(MMAP_LOCK))
}
