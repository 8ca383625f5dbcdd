//! x86-64.

/// Bytes of saved user registers at the top of a kernel stack
/// (arch/x86/include/asm/ptrace.h; 5.10–7.3). User space controls them.
pub const PT_REGS_LEN: u64 = 168;

/// Bytes kept free above the registers where the CPU enters by FRED
/// (`TOP_OF_KERNEL_STACK_PADDING`): counted as user-controlled as well.
pub const ENTRY_FRAME_LEN: u64 = 16;

/// In the kernel's half of the address space, with 4- or 5-level page tables, and
/// not in the hole, the poison values or the last page.
pub const fn is_kernel_address(address: u64) -> bool {
    address >= 0xff00_0000_0000_0000 && address < 0xffff_ffff_ffff_f000
}

/// In user space's half.
pub const fn is_user_address(address: u64) -> bool {
    address >= 0x1000 && address < 0x0100_0000_0000_0000
}

/// Where the kernel's image and its modules are mapped
/// (Documentation/arch/x86/x86_64/mm.rst).
pub const fn is_image_address(address: u64) -> bool {
    address >= 0xffff_ffff_8000_0000 && address < 0xffff_ffff_ff00_0000
}
