//! Each task's holds in its own storage, 5.13+, where slots have no room for them: found
//! without a hash, gone with the task.

use core::{ffi::c_void, mem::size_of, ptr};

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_LOCAL_STORAGE_GET_F_CREATE, bpf_map_type, seq_file},
    helpers::generated::{bpf_get_current_task_btf, bpf_seq_write, bpf_task_storage_get},
};
use lockwatch_ebpf::{
    holds::{Holds, TaskHolds},
    survey::TaskLayout,
};

use super::{global::global, member::load, slots::Set};

#[unsafe(no_mangle)]
// SAFETY: plain integers, for which zero means "absent".
static TASK_LAYOUT: TaskLayout = unsafe { core::mem::zeroed() };

/// A map definition as BTF describes it; aya-ebpf 0.2 has none for task storage.
#[repr(C)]
struct TaskStorageMap {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_TASK_STORAGE as usize],
    key: *const i32,
    value: *const Holds,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
}

// SAFETY: the pointers only carry types, and are never followed.
unsafe impl Sync for TaskStorageMap {}

#[unsafe(no_mangle)]
#[unsafe(link_section = ".maps")]
static HOLDS: TaskStorageMap = TaskStorageMap {
    r#type: ptr::null(),
    key: ptr::null(),
    value: ptr::null(),
    max_entries: ptr::null(),
    map_flags: ptr::null(),
};

/// The holds of the running task, if it ever had any.
#[inline(always)]
pub(super) fn of_current<'a>() -> Option<&'a mut Holds> {
    get_current(0)
}

/// As `of_current`, made where there are none; `None` without memory.
#[inline(always)]
pub(super) fn of_current_or_new<'a>() -> Option<&'a mut Holds> {
    get_current(BPF_LOCAL_STORAGE_GET_F_CREATE)
}

#[inline(always)]
fn get_current<'a>(flags: u32) -> Option<&'a mut Holds> {
    // SAFETY: no preconditions; the result is a trusted pointer to this task.
    let current = unsafe { bpf_get_current_task_btf() };
    // SAFETY: as above.
    unsafe { get(current.cast(), flags) }
}

/// Start time of the running task, in ns since boot.
#[inline(always)]
pub(super) fn start_time_ns_of_current() -> u64 {
    // SAFETY: no preconditions; the result is a trusted pointer to this task.
    let current = unsafe { bpf_get_current_task_btf() };
    // SAFETY: the layout describes `task_struct` of this kernel.
    unsafe { load(current.cast(), global!(TASK_LAYOUT.start_time)) }
}

/// # Safety
/// `task` must be a task pointer that the verifier trusts.
#[inline(always)]
unsafe fn get<'a>(task: *mut c_void, flags: u32) -> Option<&'a mut Holds> {
    // SAFETY: the caller's promise. The storage lives as long as the task; only the
    // task itself, and interrupts on top of it, change it.
    unsafe {
        bpf_task_storage_get(
            (&raw const HOLDS).cast_mut().cast(),
            task.cast(),
            ptr::null_mut(),
            u64::from(flags),
        )
        .cast::<Holds>()
        .as_mut()
    }
}

/// `struct bpf_iter__task` (kernel/bpf/task_iter.c, 5.8+).
#[repr(C)]
struct TaskIteratorContext {
    meta: *const IteratorMeta,
    task: *mut u8,
}

/// `struct bpf_iter_meta` (include/linux/bpf.h, 5.8+).
#[repr(C)]
struct IteratorMeta {
    seq: *mut seq_file,
}

/// Task iterator, `int bpf_iter_task(struct bpf_iter_meta *, struct task_struct *)`.
///
/// Cost: 0.2 µs a task. Emits a [`TaskHolds`] for each task that holds something: one for what
/// is in slots, and one for what is in its storage.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn task_holds(ctx: *const TaskIteratorContext) -> i32 {
    // SAFETY: the kernel hands a valid context, as the verifier checks.
    let (meta, task) = unsafe { ((*ctx).meta, (*ctx).task) };
    if task.is_null() {
        return 0;
    }
    if let Some(holds) = Set::of(task as u64).read() {
        // SAFETY: as handed over by the kernel.
        unsafe { write(meta, task, &raw const holds) };
    }
    // SAFETY: the iterator's trusted task pointer.
    let Some(holds) = (unsafe { get(task.cast(), 0) }) else {
        return 0;
    };
    let holds: *const Holds = holds;
    let mut any = 0;
    // SAFETY: in bounds; the task may change it meanwhile, which is why each word is
    // read as it is.
    unsafe {
        let locks = (&raw const (*holds).locks).cast::<u64>();
        for slot in 0..lockwatch_ebpf::holds::SLOTS {
            any |= locks.add(slot).read_volatile();
        }
    }
    if any != 0 {
        // SAFETY: as handed over by the kernel.
        unsafe { write(meta, task, holds) };
    }
    0
}

/// Writes a [`TaskHolds`].
///
/// # Safety
/// All must be valid, and the task one that the verifier trusts.
#[inline(always)]
unsafe fn write(meta: *const IteratorMeta, task: *const u8, holds: *const Holds) {
    let (start_time, tid, tgid) = (
        global!(TASK_LAYOUT.start_time),
        global!(TASK_LAYOUT.pid),
        global!(TASK_LAYOUT.tgid),
    );
    // SAFETY: the layout describes `task_struct` of this kernel.
    let head = unsafe {
        [
            load(task, start_time),
            load(task, tid) & 0xffff_ffff | load(task, tgid) << 32,
        ]
    };
    const { assert!(size_of::<TaskHolds>() == 16 + size_of::<Holds>()) };
    // SAFETY: lengths are those of what they are written from.
    unsafe {
        let seq = (*meta).seq;
        bpf_seq_write(seq, head.as_ptr().cast::<c_void>(), 16);
        bpf_seq_write(seq, holds.cast::<c_void>(), size_of::<Holds>() as u32);
    }
}
