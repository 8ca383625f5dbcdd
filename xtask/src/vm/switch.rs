//! Switching a test machine off from inside, with a status that QEMU hands on.
//!
//! Debian's kernels have no /dev/port, so the guest runs a copy of xtask for it.

use anyhow::{Result, bail};

/// QEMU's isa-debug-exit device (machine.rs).
const PORT: u16 = 0xf4;

/// End the virtual machine that this runs in; QEMU's exit code is 2 * CODE + 1.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What is written to the port
    code: u8,
}

/// Returns only if there is no such device.
pub(crate) fn run(args: &Args) -> Result<()> {
    write(args.code)?;
    bail!("no isa-debug-exit device: this is for test machines");
}

#[cfg(target_arch = "x86_64")]
fn write(code: u8) -> Result<()> {
    use anyhow::Context as _;
    use nix::errno::Errno;
    use nix::libc;

    // SAFETY: asks for permission only; no memory is involved.
    let granted = unsafe { libc::ioperm(PORT.into(), 4, 1) };
    Errno::result(granted).context("cannot use the port: this needs root")?;
    // SAFETY: permission was granted above. Nothing but the debug device of a
    // test machine listens at this port, and it touches no memory of ours.
    unsafe {
        std::arch::asm!("out dx, al", in("dx") PORT, in("al") code, options(nomem, nostack));
    }
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn write(_: u8) -> Result<()> {
    bail!("test machines have the processor x86_64");
}
