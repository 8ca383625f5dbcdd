//! How the holders of stalled locks spend their time: on a CPU, waiting for one,
//! or asleep.
//!
//! These programs run under run-queue locks. They look up and change in place
//! entries that user space has put into a map of their own, and never insert,
//! remove, reserve or wake.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{bpf_get_stack, bpf_ktime_get_ns},
    macros::{btf_tracepoint, map, raw_tracepoint},
    maps::{HashMap, PerCpuArray},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use lockwatch_ebpf::stream::{SLEEP_FRAMES, SLEEPS, WATCHED_MAX, Watched, phase, sleep};

use super::{
    access::{Access, Word},
    task,
    trusted::Trusted,
};

#[map]
static WATCHED: HashMap<u32, Watched> = HashMap::with_max_entries(WATCHED_MAX, 0);

/// 1 while `WATCHED` has entries. A global that user space stores to: one load from a known
/// address is all that a host without a stall pays per switch.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.watching")]
static mut WATCHING: u32 = 0;

/// A stack under construction.
#[map]
static STACK: PerCpuArray<[u64; SLEEP_FRAMES]> = PerCpuArray::with_max_entries(1, 0);

/// Tracepoint `sched_switch(bool preempt, struct task_struct *prev, struct task_struct
/// *next)`, with a fourth argument from 6.1 on that is not used; 5.10+.
///
/// Cost: a load while nothing is watched, else two lookups, and 1 µs more when a
/// watched task falls asleep. Emits nothing, keeps the times of watched tasks and the
/// stacks of their sleeps.
#[btf_tracepoint(function = "sched_switch")]
fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    if is_watching() {
        switched_typed(ctx.as_ptr());
    }
    0
}

/// What is to be done while anything is watched. A function of its own, as are the three like
/// it: a program saves all registers that it uses anywhere before its first instruction.
#[inline(never)]
fn switched_typed(ctx: *mut c_void) -> i32 {
    let ctx = BtfTracePointContext::new(ctx);
    // SAFETY: both are the tracepoint's own typed arguments.
    let (prev, next) = unsafe { (Trusted::new(ctx.arg(1)), Trusted::new(ctx.arg(2))) };
    switched(&ctx, ctx.arg(0), prev, next)
}

/// The same by raw_tp. Cost: helper calls in the place of loads, while anything is
/// watched.
#[raw_tracepoint(tracepoint = "sched_switch")]
fn raw_sched_switch(ctx: RawTracePointContext) -> i32 {
    if is_watching() {
        switched_raw(ctx.as_ptr());
    }
    0
}

#[inline(never)]
fn switched_raw(ctx: *mut c_void) -> i32 {
    let ctx = RawTracePointContext::new(ctx);
    switched(&ctx, ctx.arg(0), Word(ctx.arg(1)), Word(ctx.arg(2)))
}

#[inline(always)]
fn switched(ctx: &impl EbpfContext, preempted: u64, prev: impl Access, next: impl Access) -> i32 {
    // A task that is woken between here and its last instruction shows 0 and
    // can run indeed.
    let to = if preempted & 1 != 0 || task::state(prev) == 0 {
        phase::RUNNABLE
    } else {
        phase::ASLEEP
    };
    change(prev, |watched| {
        watched.phase = phase::RUNNING;
        watched.switches += 1;
        if to == phase::ASLEEP {
            watched.sleep = fall_asleep(ctx, watched);
        }
        to
    });
    change(next, |_| phase::RUNNING);
    0
}

/// Tracepoint `sched_wakeup(struct task_struct *p)`, 5.10+.
///
/// Tells sleep from waiting for a CPU. Cost: a load while nothing is watched, else
/// one lookup. Emits nothing.
#[btf_tracepoint(function = "sched_wakeup")]
fn sched_wakeup(ctx: BtfTracePointContext) -> i32 {
    if is_watching() {
        woken_typed(ctx.as_ptr());
    }
    0
}

#[inline(never)]
fn woken_typed(ctx: *mut c_void) -> i32 {
    let ctx = BtfTracePointContext::new(ctx);
    // SAFETY: the tracepoint's own typed argument.
    woken(unsafe { Trusted::new(ctx.arg(0)) })
}

/// The same by raw_tp.
#[raw_tracepoint(tracepoint = "sched_wakeup")]
fn raw_sched_wakeup(ctx: RawTracePointContext) -> i32 {
    if is_watching() {
        woken_raw(ctx.as_ptr());
    }
    0
}

#[inline(never)]
fn woken_raw(ctx: *mut c_void) -> i32 {
    let ctx = RawTracePointContext::new(ctx);
    woken(Word(ctx.arg(0)))
}

#[inline(always)]
fn woken(task: impl Access) -> i32 {
    // A running task can be woken, too, and stays on its CPU.
    change(task, |watched| match watched.phase {
        phase::RUNNING => phase::RUNNING,
        _ => phase::RUNNABLE,
    });
    0
}

#[inline(always)]
fn is_watching() -> bool {
    // SAFETY: an aligned load of a global.
    unsafe { (&raw const WATCHING).read_volatile() != 0 }
}

/// Closes the current phase of a watched task and opens the one that `next` says.
/// `next` may first correct which phase it was.
#[inline(always)]
fn change(task: impl Access, next: impl FnOnce(&mut Watched) -> u32) {
    let Some(watched) = WATCHED.get_ptr_mut(task::tid(task)) else {
        return;
    };
    // SAFETY: changes of one task are serialised by its run-queue lock; user space
    // reads a copy that may be one phase behind.
    let watched = unsafe { &mut *watched };
    if watched.start_time_ns != task::start_time_ns(task) {
        return;
    }
    let phase = next(watched);
    // SAFETY: no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let spent_ns = now_ns.saturating_sub(watched.changed_at_ns);
    let index = watched.phase as usize & (phase::COUNT - 1);
    watched.ns[index] += spent_ns;
    if watched.phase == phase::ASLEEP {
        let sleep = watched.sleep;
        if sleep < SLEEPS as u32 {
            watched.sleeps[sleep as usize & (SLEEPS - 1)].ns += spent_ns;
        } else if sleep == sleep::FOUND {
            watched.found_ns += spent_ns;
        }
    }
    watched.phase = phase;
    watched.changed_at_ns = now_ns;
}

/// Keeps the stack with which the running task falls asleep; which of its sleeps that is.
#[inline(always)]
fn fall_asleep(ctx: &impl EbpfContext, watched: &mut Watched) -> u32 {
    let Some(stack) = STACK.get_ptr_mut(0) else {
        return sleep::OTHER;
    };
    // SAFETY: this CPU's own, and the run queue's lock keeps interrupts out.
    let stack = unsafe { &mut *stack };
    *stack = [0; SLEEP_FRAMES];
    // SAFETY: the buffer is as long as said.
    let len = unsafe {
        bpf_get_stack(
            ctx.as_ptr(),
            ptr::from_mut(stack).cast(),
            (SLEEP_FRAMES * 8) as u32,
            0,
        )
    };
    if len <= 0 {
        return sleep::OTHER;
    }
    let mut digest = 1u64;
    for frame in stack.iter() {
        digest = (digest ^ frame)
            .wrapping_mul(0x0100_0000_01b3)
            .rotate_left(17);
    }
    // 0 means free.
    digest |= 1;
    for slot in 0..SLEEPS {
        let sleep = &mut watched.sleeps[slot];
        if sleep.digest == 0 {
            sleep.frames = *stack;
            sleep.digest = digest;
        }
        if sleep.digest == digest {
            return slot as u32;
        }
    }
    sleep::OTHER
}
