//! The members of `task_struct` that the stream's programs need.

use lockwatch_ebpf::survey::TaskLayout;

use super::{global::global, member::load};

#[unsafe(no_mangle)]
// SAFETY: plain integers, for which zero means "absent".
pub(super) static TASK_LAYOUT: TaskLayout = unsafe { core::mem::zeroed() };

macro_rules! reader {
    ($(#[$doc:meta])* $name:ident -> $type:ty, $member:ident) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// `task` must be a task pointer that the verifier trusts.
        #[inline(always)]
        pub(super) unsafe fn $name(task: *const u8) -> $type {
            let member = global!(TASK_LAYOUT.$member);
            // SAFETY: the layout describes `task_struct` of this kernel.
            unsafe { load(task, member) as $type }
        }
    };
}

reader!(
    /// Thread id in the initial PID namespace.
    tid -> u32, pid
);
reader!(
    /// Start time in ns since boot.
    start_time_ns -> u64, start_time
);
reader!(
    /// `TASK_*` bits; 0 = can run.
    state -> u32, state
);
