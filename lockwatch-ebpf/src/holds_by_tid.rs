//! The holds object for kernels without task storage: the same by tid.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        clippy::multiple_unsafe_ops_per_block,
        clippy::needless_pass_by_value,
        reason = "every load from the kernel is unsafe here, and aya's macros hand contexts over by value"
    )
)]

#[cfg(target_arch = "bpf")]
mod probes {
    mod access;
    mod argument;
    mod counts;
    #[path = "holds/functions.rs"]
    mod functions;
    mod global;
    mod long_holds;
    mod member;
    #[path = "holds/mmap_lock.rs"]
    mod mmap_lock;
    #[path = "holds/no_slots.rs"]
    mod slots;
    #[path = "holds/state.rs"]
    mod state;
    #[path = "holds/by_tid.rs"]
    mod storage;
    mod trusted;
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// bpf_ktime_get_ns and bpf_probe_read_kernel are GPL-only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this is a kernel object: build it with `cargo xtask ebpf`");
}
