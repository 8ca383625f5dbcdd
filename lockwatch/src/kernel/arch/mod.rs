//! What depends on the processor architecture.

mod x86_64;

pub use x86_64::{
    ENTRY_FRAME_LEN, IMAGE, PAGE_SIZE, PT_REGS_LEN, is_image_address, is_kernel_address,
    is_module_address, is_user_address, lowest_kernel_address, may_be_module_address,
};
