//! What depends on the processor architecture.

mod x86_64;

pub use x86_64::{
    ENTRY_FRAME_LEN, PAGE_SIZE, PT_REGS_LEN, is_image_address, is_kernel_address,
    is_module_address, is_user_address, is_virtual_machine, lowest_kernel_address,
};
