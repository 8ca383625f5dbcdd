//! The object of `cargo xtask bench`, no part of lockwatch: programs that do nothing, or as
//! little as anything that traces waits has to do, and one that counts calls.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod probes {
    mod floor;
    mod global;
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
