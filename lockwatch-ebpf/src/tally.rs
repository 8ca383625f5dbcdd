//! The object by which a live test checks what lockwatch counts, no part of lockwatch.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        clippy::needless_pass_by_value,
        reason = "aya's macros hand contexts over by value"
    )
)]

#[cfg(target_arch = "bpf")]
mod probes {
    mod global;
    mod tally;
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// bpf_ktime_get_ns is GPL-only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this is a kernel object: build it with `cargo xtask ebpf`");
}
