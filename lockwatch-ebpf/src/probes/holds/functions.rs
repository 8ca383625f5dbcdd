//! The functions of the kernel that acquire and release rwsems
//! (kernel/locking/rwsem.c, the same from 5.10 to 7.3).
//!
//! Each runs on every operation, contended or not: two short loops and one look at
//! the task's state. None emits anything.

use aya_ebpf::{
    macros::{fentry, fexit},
    programs::{FEntryContext, FExitContext},
};

use super::state::{Mode, acquired, downgraded, released};

/// What the value says that an acquiring function returns; all of them have one
/// parameter, so that it follows as the second word.
macro_rules! acquires {
    (always, $ctx:ident) => {
        true
    };
    (unless_error, $ctx:ident) => {
        $ctx.arg::<i32>(1) == 0
    };
    (if_true, $ctx:ident) => {
        $ctx.arg::<i32>(1) != 0
    };
}

macro_rules! acquire {
    ($function:ident, $name:literal, $mode:ident, $outcome:ident) => {
        #[doc = concat!("fexit of `", $name, "(struct rw_semaphore *sem)`, 5.10+.")]
        #[fexit(function = $name)]
        fn $function(ctx: FExitContext) -> i32 {
            if acquires!($outcome, ctx) {
                acquired(ctx.arg(0), Mode::$mode);
            }
            0
        }
    };
}

macro_rules! release {
    ($function:ident, $name:literal, $change:ident) => {
        #[doc = concat!("fentry of `void ", $name, "(struct rw_semaphore *sem)`, 5.10+.")]
        #[fentry(function = $name)]
        fn $function(ctx: FEntryContext) -> i32 {
            $change(ctx.arg(0));
            0
        }
    };
}

acquire!(down_read, "down_read", Read, always);
acquire!(down_read_interruptible, "down_read_interruptible", Read, unless_error);
acquire!(down_read_killable, "down_read_killable", Read, unless_error);
acquire!(down_read_trylock, "down_read_trylock", Read, if_true);
acquire!(down_write, "down_write", Write, always);
acquire!(down_write_killable, "down_write_killable", Write, unless_error);
acquire!(down_write_trylock, "down_write_trylock", Write, if_true);
release!(up_read, "up_read", released);
release!(up_read_non_owner, "up_read_non_owner", released);
release!(up_write, "up_write", released);
release!(downgrade_write, "downgrade_write", downgraded);
