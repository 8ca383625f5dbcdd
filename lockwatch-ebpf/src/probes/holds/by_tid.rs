//! Each task's holds in a hash by tid: for kernels without task storage for such
//! programs (before 5.13).

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_current_task},
    macros::{btf_tracepoint, map, raw_tracepoint},
    maps::HashMap,
    programs::{BtfTracePointContext, RawTracePointContext},
};
use lockwatch_ebpf::{
    holds::{Holds, TASKS_MAX, TaskHolds},
    survey::TaskLayout,
};

use super::{
    access::{Access, Word},
    global::global,
    trusted::Trusted,
};

#[unsafe(no_mangle)]
// SAFETY: plain integers, for which zero means "absent".
static TASK_LAYOUT: TaskLayout = unsafe { core::mem::zeroed() };

/// Preallocated, so that an insert never calls the allocator.
#[map]
static HOLDS: HashMap<u32, TaskHolds> = HashMap::with_max_entries(TASKS_MAX, 0);

/// The holds of the running task, if it ever had any.
///
/// Its entry goes when its `task_struct` does, before the tid can be another's; an
/// entry that stayed all the same has another start time, by which it is told.
#[inline(always)]
pub(super) fn of_current<'a>() -> Option<&'a mut Holds> {
    let entry = HOLDS.get_ptr_mut(bpf_get_current_pid_tgid() as u32)?;
    // SAFETY: only the task itself, and interrupts on top of it, change its entry; it
    // is removed when the task runs no more.
    Some(unsafe { &mut (*entry).holds })
}

/// As `of_current`, made where there are none; `None` if the map is full.
#[inline(always)]
pub(super) fn of_current_or_new<'a>() -> Option<&'a mut Holds> {
    if let Some(holds) = of_current() {
        return Some(holds);
    }
    let ids = bpf_get_current_pid_tgid();
    let entry = TaskHolds {
        start_time_ns: start_time_ns_of_current(),
        tid: ids as u32,
        tgid: (ids >> 32) as u32,
        holds: Holds::default(),
    };
    HOLDS.insert(entry.tid, entry, 0).ok()?;
    of_current()
}

/// Start time of the running task, in ns since boot.
#[inline(always)]
pub(super) fn start_time_ns_of_current() -> u64 {
    // SAFETY: no preconditions. Not typed: that can be had from 5.11 on only.
    start_time_ns(Word(unsafe { bpf_get_current_task() }))
}

/// Tracepoint `sched_process_free(struct task_struct *p)`, 5.10+.
///
/// Runs when the last use of a dead task is over, after its own last lock operation
/// (`sched_process_exit` is before many of them). Cost: a removal for each task that
/// ends. Emits nothing.
#[btf_tracepoint(function = "sched_process_free")]
fn sched_process_free(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the tracepoint's own typed argument.
    freed(unsafe { Trusted::new(ctx.arg(0)) })
}

/// The same by raw_tp.
#[raw_tracepoint(tracepoint = "sched_process_free")]
fn raw_sched_process_free(ctx: RawTracePointContext) -> i32 {
    freed(Word(ctx.arg(0)))
}

#[inline(always)]
fn freed(task: impl Access) -> i32 {
    // SAFETY: the layout describes `task_struct` of this kernel.
    let tid = unsafe { task.load(global!(TASK_LAYOUT.pid)) } as u32;
    // The tid may be another's already: its entry stays.
    if let Some(entry) = HOLDS.get_ptr(tid)
        // SAFETY: a plain load from the entry.
        && unsafe { (*entry).start_time_ns } == start_time_ns(task)
    {
        let _ = HOLDS.remove(tid);
    }
    0
}

#[inline(always)]
fn start_time_ns(task: impl Access) -> u64 {
    // SAFETY: the layout describes `task_struct` of this kernel.
    unsafe { task.load(global!(TASK_LAYOUT.start_time)) }
}
