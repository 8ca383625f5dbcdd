//! Which kernel functions take, give back and wait for sleeping locks, and what their
//! results say. Checked against the sources of 5.10, 6.1, 6.12, 6.18 and 7.3; names of
//! older kernels from kernel/locking/rwsem-xadd.c and lib/rwsem.c.

use std::sync::LazyLock;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    kernel::stems::Stems,
    lock::{LockKind, LockMode},
};

/// How a function that acquires says whether it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It returns when it has the lock, and has no result.
    Always,
    /// `int`: 0 = acquired, negative = given up on a signal.
    ZeroIsSuccess,
    /// `int` or `bool`: 1 = acquired, 0 = not.
    OneIsSuccess,
    /// A pointer to the lock = acquired, an error pointer (the last 4095 values) = given up.
    PointerIsSuccess,
}

/// What a place that belongs to one kind of lock waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Awaited {
    /// The primitive.
    pub kind: LockKind,
    /// How it is wanted; none where the second parameter, `bool reader`, tells.
    pub mode: Option<LockMode>,
}

/// What a function does with the lock that is its first parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Returns with an rwsem acquired, or not.
    Acquire(LockMode, Outcome),
    /// Releases an rwsem.
    Release(LockMode),
    /// Turns a write-held rwsem into a read-held one.
    Downgrade,
    /// Runs from the begin of a wait to its end, where the lock was not free at once.
    Wait(Awaited, Outcome),
}

const fn waits(kind: LockKind, mode: LockMode, outcome: Outcome) -> Role {
    let mode = Some(mode);
    Role::Wait(Awaited { kind, mode }, outcome)
}

/// Functions by stem. Releases come first and begins last: the order of attaching.
///
/// - The `_nested` forms and `_down_write_nest_lock` are functions of their own only with
///   lock debugging (`DEBUG_LOCK_ALLOC`); else macros for the plain ones.
/// - Not here: `down_read_non_owner`, after which the lock is nobody's, and
///   `call_rwsem_down_*_failed` (up to 4.x), which is assembly round `rwsem_down_*_failed`.
/// - `PREEMPT_RT` before 5.19 has none of the rwsem slow paths; from 5.19 on the
///   tracepoints tell waits everywhere.
pub const LOCK_FUNCTIONS: &[(&str, Role)] = {
    use LockKind::{Mutex, PercpuRwsem, RtMutex, Rwsem, Semaphore};
    use LockMode::{Read, Write};
    use Outcome::{Always, OneIsSuccess, PointerIsSuccess, ZeroIsSuccess};
    use Role::{Acquire, Downgrade, Release, Wait};
    &[
        // kernel/locking/rwsem.c; on PREEMPT_RT too (5.10-rt: rwsem-rt.c).
        ("up_read", Release(Read)),
        ("up_read_non_owner", Release(Read)),
        ("up_write", Release(Write)),
        ("downgrade_write", Downgrade),
        ("down_read", Acquire(Read, Always)),
        ("down_read_nested", Acquire(Read, Always)),
        ("down_read_interruptible", Acquire(Read, ZeroIsSuccess)),
        ("down_read_killable", Acquire(Read, ZeroIsSuccess)),
        ("down_read_killable_nested", Acquire(Read, ZeroIsSuccess)),
        ("down_read_trylock", Acquire(Read, OneIsSuccess)),
        ("down_write", Acquire(Write, Always)),
        ("down_write_nested", Acquire(Write, Always)),
        ("_down_write_nest_lock", Acquire(Write, Always)),
        ("down_write_killable", Acquire(Write, ZeroIsSuccess)),
        ("down_write_killable_nested", Acquire(Write, ZeroIsSuccess)),
        ("down_write_trylock", Acquire(Write, OneIsSuccess)),
        // 5.3+.
        (
            "rwsem_down_read_slowpath",
            waits(Rwsem, Read, PointerIsSuccess),
        ),
        (
            "rwsem_down_write_slowpath",
            waits(Rwsem, Write, PointerIsSuccess),
        ),
        // lib/rwsem.c, kernel/locking/rwsem-xadd.c: up to 5.2.
        (
            "rwsem_down_read_failed",
            waits(Rwsem, Read, PointerIsSuccess),
        ),
        (
            "rwsem_down_read_failed_killable",
            waits(Rwsem, Read, PointerIsSuccess),
        ),
        (
            "rwsem_down_write_failed",
            waits(Rwsem, Write, PointerIsSuccess),
        ),
        (
            "rwsem_down_write_failed_killable",
            waits(Rwsem, Write, PointerIsSuccess),
        ),
        // kernel/locking/mutex.c; none of them with DEBUG_LOCK_ALLOC.
        ("__mutex_lock_slowpath", waits(Mutex, Write, Always)),
        (
            "__mutex_lock_killable_slowpath",
            waits(Mutex, Write, ZeroIsSuccess),
        ),
        (
            "__mutex_lock_interruptible_slowpath",
            waits(Mutex, Write, ZeroIsSuccess),
        ),
        (
            "__ww_mutex_lock_slowpath",
            waits(Mutex, Write, ZeroIsSuccess),
        ),
        (
            "__ww_mutex_lock_interruptible_slowpath",
            waits(Mutex, Write, ZeroIsSuccess),
        ),
        // kernel/locking/rtmutex.c.
        ("rt_mutex_slowlock", waits(RtMutex, Write, ZeroIsSuccess)),
        // kernel/locking/semaphore.c.
        ("__down", waits(Semaphore, Write, Always)),
        (
            "__down_interruptible",
            waits(Semaphore, Write, ZeroIsSuccess),
        ),
        ("__down_killable", waits(Semaphore, Write, ZeroIsSuccess)),
        ("__down_timeout", waits(Semaphore, Write, ZeroIsSuccess)),
        // kernel/locking/percpu-rwsem.c, 5.7+: (sem, bool reader).
        (
            "percpu_rwsem_wait",
            Wait(
                Awaited {
                    kind: PercpuRwsem,
                    mode: None,
                },
                Always,
            ),
        ),
    ]
};

/// Ways of giving back an rwsem that every kernel has: one that is not in the symbol
/// table was inlined into its callers.
pub const RELEASES_EVERYWHERE: [&str; 3] = ["up_read", "up_write", "downgrade_write"];

/// Tracepoints that tell of locks and of those who hold them.
pub mod tracepoint {
    /// 5.19+: `(void *lock, unsigned int flags)`.
    pub const CONTENTION_BEGIN: &str = "contention_begin";
    /// 5.19+: `(void *lock, int ret)`.
    pub const CONTENTION_END: &str = "contention_end";
    /// 5.11+; `(mm, write, success)`, with `const char *memcg_path` behind `mm` up to 6.15.
    pub const MMAP_LOCK_ACQUIRED: &str = "mmap_lock_acquire_returned";
    /// As [`MMAP_LOCK_ACQUIRED`], without `success`.
    pub const MMAP_LOCK_RELEASED: &str = "mmap_lock_released";
    /// `(bool preempt, prev, next)`, from 5.18 on with `unsigned int prev_state`.
    pub const SCHED_SWITCH: &str = "sched_switch";
    /// `(struct task_struct *)`
    pub const SCHED_WAKEUP: &str = "sched_wakeup";
    /// `(struct task_struct *)`: nothing of it is left. `sched_process_exit` comes too
    /// early: an exiting task still takes locks (`exit_mm`).
    pub const SCHED_PROCESS_FREE: &str = "sched_process_free";

    /// All that a plan could want.
    pub const ALL: [&str; 7] = [
        CONTENTION_BEGIN,
        CONTENTION_END,
        MMAP_LOCK_ACQUIRED,
        MMAP_LOCK_RELEASED,
        SCHED_SWITCH,
        SCHED_WAKEUP,
        SCHED_PROCESS_FREE,
    ];
}

/// The stems of [`LOCK_FUNCTIONS`].
pub fn lock_functions() -> &'static Stems<'static, ()> {
    static STEMS: LazyLock<Stems<'static, ()>> =
        LazyLock::new(|| LOCK_FUNCTIONS.iter().map(|&(name, _)| name).collect());
    &STEMS
}

/// Whether a function of this stem is one of [`LOCK_FUNCTIONS`].
pub fn is_lock_function(stem: &str) -> bool {
    lock_functions().get(stem).is_some()
}
