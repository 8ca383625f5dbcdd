//! The holds object: who holds which rwsem, in slots, and in the storage of each task.
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
    mod argument;
    mod atomic;
    mod counts;
    #[path = "holds/functions.rs"]
    mod functions;
    mod global;
    mod long_holds;
    mod member;
    #[path = "holds/mmap_lock.rs"]
    mod mmap_lock;
    #[path = "holds/slots.rs"]
    mod slots;
    #[path = "holds/state.rs"]
    mod state;
    #[path = "holds/task_storage.rs"]
    mod storage;
    #[path = "holds/task_exit.rs"]
    mod task_exit;
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// bpf_ktime_get_ns and bpf_get_current_task_btf are GPL-only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this is a kernel object: build it with `cargo xtask ebpf`");
}
