//! Every task with its scheduling facts and raw kernel stack.

use core::{ffi::c_void, mem::size_of};

use aya_ebpf::{
    bindings::seq_file,
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_get_task_stack, bpf_jiffies64, bpf_probe_read_kernel, bpf_seq_write},
    },
    macros::map,
    maps::Array,
};
use lockwatch_ebpf::survey::{
    COMM_LEN, FRAMES_AS_BEFORE, FRAMES_MAX, REMEMBERED, STACK_MAX, TaskLayout, TaskRecord,
};

use super::{files::OPEN_FILE_LAYOUT, global::global, member::load, pointer::pointer};

#[unsafe(no_mangle)]
// SAFETY: plain integers, for which zero means "absent".
static TASK_LAYOUT: TaskLayout = unsafe { core::mem::zeroed() };

/// One record under construction. The iterator runs under the reader's mutex, one
/// task at a time, and only one survey reads at a time: one entry is enough.
#[repr(C)]
pub(super) struct Scratch {
    record: TaskRecord,
    frames: [u64; FRAMES_MAX],
    _pad: u64,
    /// Twice the longest stack: a length masked to this size needs no other bound, and
    /// verifiers before 6.12 lose any other on the way to the helper.
    stack: [u8; 2 * STACK_MAX],
}

#[map]
static SCRATCH: Array<Scratch> = Array::with_max_entries(1, 0);

/// Which survey this look is of: user space counts them.
#[map]
static SURVEY: Array<u64> = Array::with_max_entries(1, 0);

/// How each task stood when it was unwound, by the last bits of its tid (see [`standing`]).
#[map]
static STOOD: Array<u64> = Array::with_max_entries(REMEMBERED, 0);

/// `struct bpf_iter__task` (kernel/bpf/task_iter.c, 5.8+).
#[repr(C)]
struct TaskIteratorContext {
    meta: *const IteratorMeta,
    task: *const u8,
}

/// `struct bpf_iter_meta` (include/linux/bpf.h, 5.8+).
#[repr(C)]
pub(super) struct IteratorMeta {
    pub(super) seq: *mut seq_file,
}

/// Task iterator, `int bpf_iter_task(struct bpf_iter_meta *, struct task_struct *)`.
///
/// Exists from 5.8. Cost: about 1 µs a task, 2 µs with the unwinder, which is left out for
/// tasks that have not run since they were unwound in the same survey. Emits one
/// [`TaskRecord`] with frames and stack per task of the reader's PID namespace.
/// All of a task's bytes or none: the kernel drops a task whose bytes do not fit
/// the buffer and offers it again at the next read.
///
/// Written out because aya-ebpf 0.2 has no macro for iterators.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn tasks(ctx: *const TaskIteratorContext) -> i32 {
    // SAFETY: the kernel hands a valid context, as the verifier checks.
    let (meta, task) = unsafe { ((*ctx).meta, (*ctx).task) };
    if task.is_null() {
        return 0;
    }
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: as above; `seq` is the first member of the meta structure.
    let seq = unsafe { (*meta).seq };
    // SAFETY: `scratch` is the only reference to the single entry (see `Scratch`).
    unsafe { emit(seq, task, &mut *scratch) };
    0
}

/// # Safety
/// `task` must be the iterator's trusted task pointer, `seq` its output file.
#[inline(always)]
unsafe fn emit(seq: *mut seq_file, task: *const u8, scratch: &mut Scratch) {
    macro_rules! field {
        ($name:ident) => {{
            let member = global!(TASK_LAYOUT.$name);
            // SAFETY: the layout describes `task_struct` of this kernel.
            unsafe { load(task, member) }
        }};
    }
    let nvcsw = field!(nvcsw);
    let nivcsw = field!(nivcsw);
    let sp = field!(sp);
    let on_cpu = field!(on_cpu) as u32;
    let exit_state = field!(exit_state) as u32;
    // A `void *` loaded directly is a pointer to verifiers from 7.2 on, and may not be
    // calculated with.
    let stack_base = pointer(task, global!(TASK_LAYOUT.stack));
    let thread_size = u64::from(global!(TASK_LAYOUT.thread_size));

    let tid = field!(pid) as u32;
    let start_time_ns = field!(start_time);

    let remembered = STOOD.get_ptr_mut(tid & (REMEMBERED - 1));
    let now = standing([u64::from(tid), start_time_ns, nvcsw, nivcsw, sp]);
    // SAFETY: a pointer to a live entry; whoever else writes to it is this same program.
    let as_before =
        on_cpu == 0 && remembered.is_some_and(|then| unsafe { then.read_volatile() } == now);
    let frames_len = if as_before {
        0
    } else {
        // The frames first: they need the task at rest, as the words do.
        // SAFETY: the buffer has room for FRAMES_MAX addresses.
        let frames = unsafe {
            bpf_get_task_stack(
                task.cast_mut().cast::<c_void>().cast(),
                scratch.frames.as_mut_ptr().cast(),
                (FRAMES_MAX * 8) as u32,
                0,
            )
        };
        if frames < 0 { 0 } else { frames as u64 & 0x3f8 }
    };

    // The live part starts at sp, which means something only off CPU.
    let sp_offset = sp.wrapping_sub(stack_base);
    let offset = if on_cpu == 0 && sp_offset < thread_size {
        sp_offset & !7
    } else {
        0
    };
    let frames_size = u64::from(global!(TASK_LAYOUT.frames_size));
    let live = exit_state == 0 && stack_base != 0 && offset < frames_size;
    let mut len = if live { frames_size - offset } else { 0 } & (2 * STACK_MAX as u64 - 1);
    // SAFETY: `len` is masked to less than the size of the buffer.
    let read = unsafe {
        bpf_probe_read_kernel(
            scratch.stack.as_mut_ptr().cast::<c_void>(),
            len as u32,
            stack_base.wrapping_add(offset) as *const c_void,
        )
    };
    if read != 0 {
        len = 0;
    }
    // SAFETY: the buffer has COMM_LEN bytes.
    let _ = unsafe {
        bpf_probe_read_kernel(
            scratch.record.comm.as_mut_ptr().cast::<c_void>(),
            COMM_LEN as u32,
            task.wrapping_add(global!(TASK_LAYOUT.comm).offset as usize)
                .cast::<c_void>(),
        )
    };

    let record = &mut scratch.record;
    record.task = task as u64;
    record.start_time_ns = start_time_ns;
    record.nvcsw = nvcsw;
    record.nivcsw = nivcsw;
    record.last_arrival_ns = field!(last_arrival);
    record.mm = pointer(task, global!(TASK_LAYOUT.mm));
    record.stack_base = stack_base;
    record.sp = sp;
    record.blocker = field!(blocker);
    record.pi_blocked_on = pointer(task, global!(TASK_LAYOUT.pi_blocked_on));
    record.files = pointer(task, global!(OPEN_FILE_LAYOUT.task_files));
    // SAFETY: takes nothing, gives a number.
    record.taken_at_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY: takes nothing, gives a number.
    record.jiffies = unsafe { bpf_jiffies64() };
    record.tid = tid;
    record.tgid = field!(tgid) as u32;
    record.state = field!(state) as u32;
    record.exit_state = exit_state;
    record.flags = field!(flags) as u32;
    record.cpu = field!(cpu) as u32;
    record.on_cpu = on_cpu;
    record.on_rq = field!(on_rq) as u32;
    record.frame_count = if as_before {
        FRAMES_AS_BEFORE
    } else {
        (frames_len / 8) as u32
    };
    record.stack_offset = offset as u32;
    record.stack_len = len as u32;
    // Read again, after the stack: a task that ran in between is marked.
    let moved = nvcsw != field!(nvcsw)
        || nivcsw != field!(nivcsw)
        || sp != field!(sp)
        || u64::from(on_cpu) != field!(on_cpu);
    record.moved = u32::from(moved);
    // Once something does not fit, nothing more does.
    // SAFETY: lengths are bounded by the arrays they are written from.
    let written = unsafe {
        bpf_seq_write(
            seq,
            (&raw const scratch.record).cast::<c_void>(),
            size_of::<TaskRecord>() as u32,
        );
        bpf_seq_write(
            seq,
            scratch.frames.as_ptr().cast::<c_void>(),
            frames_len as u32,
        );
        bpf_seq_write(seq, scratch.stack.as_ptr().cast::<c_void>(), len as u32)
    };
    // Not if it could not be unwound: next time it may be. Nor if its bytes did not fit, for
    // then it is read once more for the same look.
    if frames_len > 0
        && written == 0
        && on_cpu == 0
        && !moved
        && let Some(remembered) = remembered
    {
        // SAFETY: as above.
        unsafe { remembered.write_volatile(now) };
    }
}

/// How a task stands in this survey, as one number: equal numbers say, but for chance, that it
/// has not run in between. (Not by its address: verifiers calculate with no pointer.) Each time
/// it leaves a CPU it counts a switch before it saves its stack pointer, and is off the CPU
/// after that. User space compares the numbers themselves.
#[inline(always)]
fn standing(facts: [u64; 5]) -> u64 {
    let survey = SURVEY.get(0).copied().unwrap_or(0);
    facts.into_iter().fold(survey, |sum, fact| {
        (sum.rotate_left(5) ^ fact).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    })
}
