//! Which functions wait for a spinlock.
//!
//! From kernel/locking/spinlock.c, kernel/locking/qspinlock.c, kernel/locking/qrwlock.c and
//! include/asm-generic/qspinlock.h of 5.10 to 7.3. With `PREEMPT_RT` the locks of this name
//! sleep, and only the raw ones spin.

/// Functions that spin until a lock is free.
const SLOW_PATHS: &[&str] = &[
    "native_queued_spin_lock_slowpath",
    "__pv_queued_spin_lock_slowpath",
    "queued_spin_lock_slowpath",
    "queued_read_lock_slowpath",
    "queued_write_lock_slowpath",
    "do_raw_spin_lock",
    "do_raw_read_lock",
    "do_raw_write_lock",
];

/// Functions that take a spinlock: they call nothing but one of those, if the lock is not
/// free. Taking one from a try alone never spins.
const TAKE: &[&str] = &[
    "_raw_spin_lock",
    "_raw_spin_lock_irqsave",
    "_raw_spin_lock_irq",
    "_raw_spin_lock_bh",
    "_raw_read_lock",
    "_raw_read_lock_irqsave",
    "_raw_read_lock_irq",
    "_raw_read_lock_bh",
    "_raw_write_lock",
    "_raw_write_lock_irqsave",
    "_raw_write_lock_irq",
    "_raw_write_lock_bh",
];

/// Whether this function, by its stem, waits for a spinlock where its frame is on a stack.
pub fn waits_for_spinlock(stem: &str) -> bool {
    SLOW_PATHS.contains(&stem) || TAKE.contains(&stem)
}
