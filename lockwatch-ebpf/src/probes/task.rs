//! The members of `task_struct` that the stream's programs need.

use lockwatch_ebpf::{
    Member,
    survey::{COMM_LEN, TaskLayout},
};

use super::{access::Access, global::global};

#[unsafe(no_mangle)]
// SAFETY: plain integers, for which zero means "absent".
static TASK_LAYOUT: TaskLayout = unsafe { core::mem::zeroed() };

macro_rules! reader {
    ($(#[$doc:meta])* $name:ident -> $type:ty, $member:ident) => {
        $(#[$doc])*
        #[inline(always)]
        pub(super) fn $name(task: impl Access) -> $type {
            let member = global!(TASK_LAYOUT.$member);
            // SAFETY: the layout describes `task_struct` of this kernel.
            unsafe { task.load(member) as $type }
        }
    };
}

reader!(
    /// Thread id in the initial PID namespace.
    tid -> u32, pid
);
reader!(
    /// Thread group id in the initial PID namespace.
    tgid -> u32, tgid
);
reader!(
    /// Start time in ns since boot.
    start_time_ns -> u64, start_time
);
reader!(
    /// `TASK_*` bits; 0 = can run.
    state -> u32, state
);

/// Its name: the words of its bytes in memory, which may have anything behind the first 0.
#[inline(always)]
pub(super) fn comm(task: impl Access) -> [u64; COMM_LEN / 8] {
    let offset = global!(TASK_LAYOUT.comm).offset;
    let word = |index: u32| {
        let member = Member {
            offset: offset + index * 8,
            size: 8,
        };
        // SAFETY: the layout describes `task_struct` of this kernel, whose names have
        // `COMM_LEN` bytes.
        unsafe { task.load(member) }
    };
    [word(0), word(1)]
}
