//! The object of the live tests, no part of lockwatch: makes a task take its `mmap_lock`
//! where no user space could make it, and counts what came of it.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        clippy::needless_pass_by_value,
        reason = "aya's macros hand contexts over by value"
    )
)]

#[cfg(target_arch = "bpf")]
mod probes {
    mod argument;
    mod edge;
    mod global;
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// bpf_get_stack is GPL-only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this is a kernel object: build it with `cargo xtask ebpf`");
}
