//! Kernel memory on request.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    helpers::generated::bpf_probe_read_kernel,
    macros::{map, raw_tracepoint},
    maps::Array,
    programs::RawTracePointContext,
};
use aya_log_ebpf::debug;
use lockwatch_ebpf::survey::{
    OUTPUT_LEN, OUTPUT_MAP_LEN, READ_LEN_MAX, READS_MAX, ReadPage, ReadRequest,
};

#[map]
static READ_PAGE: Array<ReadPage> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
static READ_OUTPUT: Array<[u8; OUTPUT_MAP_LEN]> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Serves the first `arg(0)` requests of the page.
///
/// A raw tracepoint program that is loaded and never attached: user space runs it
/// through `BPF_PROG_TEST_RUN` (5.10+). Cost: 0.7 µs a run, 32–41 ns a read. A bad
/// address gives a negative result and zeroed bytes, never a fault.
#[raw_tracepoint]
fn read_memory(ctx: RawTracePointContext) -> i32 {
    let count: u64 = ctx.arg(0);
    let (Some(page), Some(output)) = (READ_PAGE.get_ptr_mut(0), READ_OUTPUT.get_ptr_mut(0)) else {
        return 1;
    };
    let mut failed = 0u64;
    let mut index = 0usize;
    // One plain bounded loop with masked offsets and no branch on data: 5.10 has no
    // bpf_loop, and this form costs 17 verified instructions an iteration.
    while index < READS_MAX {
        if index as u64 >= count {
            break;
        }
        // SAFETY: index < READS_MAX, the length of both arrays; indexing them would
        // bring in the panic of a bounds check, which cannot be loaded.
        unsafe {
            let request = (&raw const (*page).requests)
                .cast::<ReadRequest>()
                .add(index);
            let len = (*request).len & READ_LEN_MAX as u32;
            let offset = (*request).output_offset as usize & (OUTPUT_LEN - 1);
            let result = bpf_probe_read_kernel(
                output.cast::<u8>().add(offset).cast::<c_void>(),
                len,
                (*request).address as *const c_void,
            );
            (&raw mut (*page).results)
                .cast::<i64>()
                .add(index)
                .write(result);
            failed += (result as u64) >> 63;
        }
        index += 1;
    }
    debug!(&ctx, "memory: {} reads, {} failed", count, failed);
    0
}
