//! The survey object: the state of the host at one instant, read without
//! attaching anything to the kernel.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
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
    mod files;
    mod global;
    mod member;
    mod memory;
    mod pointer;
    mod tasks;
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// bpf_probe_read_kernel, bpf_seq_write and bpf_get_task_stack are GPL-only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this is a kernel object: build it with `cargo xtask ebpf`");
}
