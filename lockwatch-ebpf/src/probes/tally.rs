//! Every firing of the contention tracepoints in tasks of one name.

use aya_ebpf::{
    helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, generated::bpf_ktime_get_ns},
    macros::{map, raw_tracepoint},
    maps::{PerCpuArray, RingBuf},
    programs::RawTracePointContext,
};
use lockwatch_ebpf::tally::{Firing, RING_LEN};

use super::global::global;

/// First 8 bytes of the tasks' comm, as they lie in memory.
#[unsafe(no_mangle)]
static TALLY_COMM: u64 = 0;

#[map]
static FIRINGS: RingBuf = RingBuf::with_byte_size(RING_LEN, 0);

/// Firings that found no room.
#[map]
static FIRINGS_LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Tracepoint `contention_begin(void *lock, unsigned int flags)`, 5.19+.
#[raw_tracepoint(tracepoint = "contention_begin")]
fn tally_begin(ctx: RawTracePointContext) -> i32 {
    fired(ctx.arg(0), ctx.arg(1), 0)
}

/// Tracepoint `contention_end(void *lock, int ret)`, 5.19+.
#[raw_tracepoint(tracepoint = "contention_end")]
fn tally_end(ctx: RawTracePointContext) -> i32 {
    fired(ctx.arg(0), ctx.arg(1), 1)
}

#[inline(always)]
fn fired(lock: u64, argument: u32, is_end: u32) -> i32 {
    let Ok(comm) = bpf_get_current_comm() else {
        return 0;
    };
    let (words, _) = comm.as_chunks::<8>();
    if u64::from_ne_bytes(words[0]) != global!(TALLY_COMM) {
        return 0;
    }
    let firing = Firing {
        // SAFETY: no preconditions.
        at_ns: unsafe { bpf_ktime_get_ns() },
        lock,
        tid: bpf_get_current_pid_tgid() as u32,
        argument,
        is_end,
        _pad: 0,
    };
    if FIRINGS.output::<Firing>(&firing, 0).is_err()
        && let Some(lost) = FIRINGS_LOST.get_ptr_mut(0)
    {
        // SAFETY: this CPU's own slot.
        unsafe { *lost += 1 };
    }
    0
}
