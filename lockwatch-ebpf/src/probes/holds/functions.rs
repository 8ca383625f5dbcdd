//! The functions of the kernel that acquire and release rwsems
//! (kernel/locking/rwsem.c, the same from 5.10 to 7.3).
//!
//! Each runs on every operation, contended or not: the clock and one slot, most often. None
//! emits anything.

use aya_ebpf::{
    macros::{fentry, fexit},
    programs::{FEntryContext, FExitContext},
};

use super::state::{Downgrades, Mode, Place, acquired, downgraded, released};

/// fexit of a function that acquires: always, or if what it returns, the word behind its
/// parameters, says so.
macro_rules! acquire {
    ($function:ident, $name:literal, $mode:ident) => {
        #[doc = concat!("fexit of `void ", $name, "(struct rw_semaphore *sem, …)`, 5.10+.")]
        #[fexit(function = $name)]
        fn $function(ctx: FExitContext) -> i32 {
            acquired(|| ctx.arg(0), Mode::$mode, Downgrades::Apart);
            0
        }
    };
    ($function:ident, $name:literal, $mode:ident, |$result:ident| $acquired:expr) => {
        acquire!($function, $name, $mode, 1, |$result| $acquired);
    };
    ($function:ident, $name:literal, $mode:ident, $parameters:literal, |$result:ident| $acquired:expr) => {
        #[doc = concat!("fexit of `", $name, "(struct rw_semaphore *sem, …)`, 5.10+.")]
        #[fexit(function = $name)]
        fn $function(ctx: FExitContext) -> i32 {
            let $result: i32 = ctx.arg($parameters);
            if $acquired {
                acquired(|| ctx.arg(0), Mode::$mode, Downgrades::Apart);
            }
            0
        }
    };
}

macro_rules! release {
    ($function:ident, $name:literal, |$ctx:ident, $lock:ident| $change:expr) => {
        #[doc = concat!("fentry of `void ", $name, "(struct rw_semaphore *sem)`, 5.10+.")]
        #[fentry(function = $name)]
        fn $function(ctx: FEntryContext) -> i32 {
            let $ctx = &ctx;
            let $lock = || $ctx.arg::<u64>(0);
            $change;
            0
        }
    };
}

acquire!(down_read, "down_read", Read);
acquire!(
    down_read_interruptible,
    "down_read_interruptible",
    Read,
    |error| error == 0
);
acquire!(
    down_read_killable,
    "down_read_killable",
    Read,
    |error| error == 0
);
acquire!(
    down_read_trylock,
    "down_read_trylock",
    Read,
    |success| success & 0xff != 0
);
acquire!(down_write, "down_write", Write);
acquire!(
    down_write_killable,
    "down_write_killable",
    Write,
    |error| error == 0
);
acquire!(
    down_write_trylock,
    "down_write_trylock",
    Write,
    |success| success & 0xff != 0
);
// With lock debugging (DEBUG_LOCK_ALLOC) alone; they have a second parameter.
acquire!(down_read_nested, "down_read_nested", Read);
acquire!(
    down_read_killable_nested,
    "down_read_killable_nested",
    Read,
    2,
    |error| error == 0
);
acquire!(down_write_nested, "down_write_nested", Write);
acquire!(down_write_nest_lock, "_down_write_nest_lock", Write);
acquire!(
    down_write_killable_nested,
    "down_write_killable_nested",
    Write,
    2,
    |error| error == 0
);
release!(up_read, "up_read", |ctx, lock| released(
    ctx,
    lock,
    Place::FIRST_ARGUMENT,
    Mode::Read
));
release!(
    up_read_non_owner,
    "up_read_non_owner",
    |ctx, lock| released(ctx, lock, Place::FIRST_ARGUMENT, Mode::Read)
);
release!(up_write, "up_write", |ctx, lock| released(
    ctx,
    lock,
    Place::FIRST_ARGUMENT,
    Mode::Write
));
release!(downgrade_write, "downgrade_write", |ctx, lock| downgraded(
    lock()
));
