//! x86-64.

use std::ops::Range;

/// Bytes of saved user registers at the top of a kernel stack
/// (arch/x86/include/asm/ptrace.h; 5.10–7.3). User space controls them.
pub const PT_REGS_LEN: u64 = 168;

/// Bytes kept free above the registers where the CPU enters by FRED
/// (`TOP_OF_KERNEL_STACK_PADDING`): counted as user-controlled as well.
pub const ENTRY_FRAME_LEN: u64 = 16;

/// Bytes of a page.
pub const PAGE_SIZE: u64 = 4096;

/// In the kernel's half of the address space, with 4- or 5-level page tables, and
/// not in the hole, the poison values or the last page.
pub const fn is_kernel_address(address: u64) -> bool {
    address >= 0xff00_0000_0000_0000 && address < 0xffff_ffff_ffff_f000
}

/// Lowest canonical address of the kernel's half, told by the address of any
/// `task_struct`: with 5-level page tables these lie below what 4 levels can map
/// (Documentation/arch/x86/x86_64/mm.rst).
///
/// What the processor could do does not tell. A kernel with 4 levels on a processor with 5
/// takes its own non-canonical addresses for canonical ones, and warns in its log when they
/// are read (`copy_from_kernel_nofault_allowed`, arch/x86/mm/maccess.c, 5.10).
pub const fn lowest_kernel_address(task: u64) -> u64 {
    const FOUR_LEVELS: u64 = 0xffff_8000_0000_0000;
    const FIVE_LEVELS: u64 = 0xff00_0000_0000_0000;
    if task < FOUR_LEVELS {
        FIVE_LEVELS
    } else {
        FOUR_LEVELS
    }
}

/// In user space's half.
pub const fn is_user_address(address: u64) -> bool {
    address >= 0x1000 && address < 0x0100_0000_0000_0000
}

/// Where the kernel's image and its modules are mapped
/// (Documentation/arch/x86/x86_64/mm.rst).
pub const IMAGE: Range<u64> = 0xffff_ffff_8000_0000..0xffff_ffff_ff00_0000;

/// Within [`IMAGE`].
pub const fn is_image_address(address: u64) -> bool {
    address >= IMAGE.start && address < IMAGE.end
}

/// Whether a module or a BPF program can be mapped here: from here on beside a kernel image of
/// up to 512 MiB, further up beside a larger one (`MODULES_VADDR`,
/// arch/x86/include/asm/pgtable_64_types.h).
pub const fn may_be_module_address(address: u64) -> bool {
    address >= 0xffff_ffff_a000_0000 && is_image_address(address)
}

/// Where modules and BPF programs are mapped beside a kernel image of up to 1 GiB, as where
/// its addresses are random; a smaller image has them from 0xffffffffa0000000 on, too.
pub const fn is_module_address(address: u64) -> bool {
    address >= 0xffff_ffff_c000_0000 && is_image_address(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_tables_are_told_by_what_they_map() {
        let four = lowest_kernel_address(0xffff_8b16_0123_4000);
        let five = lowest_kernel_address(0xff17_4445_c24e_0000);
        assert!(four > 0xff78_758f_2034_e020 && four <= 0xffff_8b16_0123_4000);
        assert!(five <= 0xff17_4445_c24e_0000 && five < four);
    }
}
