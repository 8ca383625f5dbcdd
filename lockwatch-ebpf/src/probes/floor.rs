//! What hooks cost by themselves. Each program is loaded for whatever function or tracepoint is
//! asked about, once for each.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, generated::bpf_ktime_get_ns},
    macros::{btf_tracepoint, fentry, fexit, map},
    maps::{Array, LruHashMap},
    programs::{BtfTracePointContext, FEntryContext, FExitContext},
};

use super::global::global;

/// Nothing, at the entry of a function.
#[fentry]
fn nothing_at_entry(_ctx: FEntryContext) -> i32 {
    0
}

/// Nothing, at the return of a function.
#[fexit]
fn nothing_at_exit(_ctx: FExitContext) -> i32 {
    0
}

/// Nothing, at a tracepoint.
#[btf_tracepoint]
fn nothing_at_tracepoint(_ctx: BtfTracePointContext) -> i32 {
    0
}

/// When each task began to wait, `CLOCK_MONOTONIC` ns by thread ID: at least this has to be kept
/// from a wait's begin to its end by whoever wants to know how long it was.
#[map]
static BEGUN: LruHashMap<u32, u64> = LruHashMap::with_max_entries(10_240, 0);

/// Tracepoint `contention_begin(void *lock, unsigned int flags)`, 5.19+.
#[btf_tracepoint(function = "contention_begin")]
fn keeps_begin(_ctx: BtfTracePointContext) -> i32 {
    // SAFETY: no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let _ = BEGUN.insert(bpf_get_current_pid_tgid() as u32, now_ns, 0);
    0
}

/// Tracepoint `contention_end(void *lock, int ret)`, 5.19+.
#[btf_tracepoint(function = "contention_end")]
fn drops_begin(_ctx: BtfTracePointContext) -> i32 {
    let _ = BEGUN.remove(bpf_get_current_pid_tgid() as u32);
    0
}

/// The process whose calls are counted.
#[unsafe(no_mangle)]
static COUNTED_TGID: u32 = 0;

/// Its calls of one function.
#[map]
static CALLS: Array<u64> = Array::with_max_entries(1, 0);

/// Counts calls of a function.
#[fentry]
fn counts_calls(_ctx: FEntryContext) -> i32 {
    if (bpf_get_current_pid_tgid() >> 32) as u32 == global!(COUNTED_TGID)
        && let Some(calls) = CALLS.get_ptr_mut(0)
    {
        // SAFETY: a plain store; the counted process stays on one CPU, and an interrupt takes no
        // sleeping lock.
        unsafe { *calls += 1 };
    }
    0
}
