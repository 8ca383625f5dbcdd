//! The rwsem round an rtmutex: on `PREEMPT_RT` a writer that queues is told as a wait for
//! the rtmutex inside (kernel/locking/rwbase_rt.c, `rwbase_write_lock`, 5.19–7.3).

use aya_ebpf::{EbpfContext, helpers::generated::bpf_get_stack, macros::map, maps::PerCpuArray};
use lockwatch_ebpf::stream::{self as abi, Code, WaitKey, flags};

use super::{
    global::global,
    waits::{self, At},
};

/// Offset of the rtmutex in the rwsem (`rwbase.rtmutex`, behind `readers`).
const RTMUTEX: u64 = 8;

/// All zero elsewhere: then the verifier drops what depends on it.
#[unsafe(no_mangle)]
static RT_WRITERS: [Code; abi::RT_WRITERS] = [Code { start: 0, len: 0 }; abi::RT_WRITERS];

/// Frames in which the asking function is looked for: this program's own, the tracepoint's,
/// and the slow paths of the rtmutex come first.
const FRAMES: usize = 16;

/// The stack of the task that begins to wait on this CPU: too large for a program's own.
#[map]
static STACK_HERE: PerCpuArray<[u64; FRAMES]> = PerCpuArray::with_max_entries(1, 0);

/// True if this kernel has such rwsems.
#[inline(always)]
pub(super) fn are_there() -> bool {
    global!(RT_WRITERS[0].len) != 0
}

/// The wait for the rwsem that the awaited rtmutex would be inside of.
#[inline(always)]
pub(super) fn of(inner: &WaitKey) -> WaitKey {
    WaitKey {
        lock: inner.lock.wrapping_sub(RTMUTEX),
        ..*inner
    }
}

/// The task begins to spin for a spinlock: that of the rtmutex it waits for lies at the
/// rtmutex's own address (`rt_mutex_base.wait_lock`), so that the end of the spinning looks
/// like the end of the wait.
#[inline(always)]
pub(super) fn spins_inside(spinlock: &WaitKey) {
    if !waits::mark(spinlock, At::Slots, flags::SPINS_INSIDE) {
        waits::mark(&of(spinlock), At::Slots, flags::SPINS_INSIDE);
    }
}

/// True if the running task is in a function that asks for an rwsem for write. Such a
/// function waits for nothing but its rwsem.
#[inline(always)]
pub(super) fn is_wanted_for_write(ctx: &impl EbpfContext) -> bool {
    if !are_there() {
        return false;
    }
    let Some(frames) = STACK_HERE.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: the buffer has the size that is told.
    let len = unsafe {
        bpf_get_stack(
            ctx.as_ptr(),
            frames.cast(),
            size_of::<[u64; FRAMES]>() as u32,
            0,
        )
    };
    let mut writes = false;
    for index in 0..FRAMES {
        if (index * size_of::<u64>()) as i64 >= len {
            break;
        }
        // A return address may lie one byte behind the function's last call.
        // SAFETY: in bounds; this CPU's own slot, and no program is interrupted here by one
        // that writes to it: tracepoints run with preemption off.
        let at = unsafe { (*frames)[index] }.wrapping_sub(1);
        macro_rules! is_in {
            ($($index:literal)*) => {
                $(writes |= at.wrapping_sub(global!(RT_WRITERS[$index].start))
                    < global!(RT_WRITERS[$index].len);)*
            };
        }
        is_in!(0 1 2 3 4 5 6 7 8 9 10 11);
    }
    writes
}
