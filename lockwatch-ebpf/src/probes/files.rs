//! Which tables of open files have a FUSE device.

use core::{ffi::c_void, mem::size_of};

use aya_ebpf::{helpers::generated::bpf_seq_write, macros::map, maps::Array};
use lockwatch_ebpf::survey::{OpenFile, OpenFileLayout};

use super::{global::global, pointer::pointer, tasks::IteratorMeta};

#[unsafe(no_mangle)]
// SAFETY: plain integers, for which zero means "absent".
pub(super) static OPEN_FILE_LAYOUT: OpenFileLayout = unsafe { core::mem::zeroed() };

/// Address of the function that reads from the files that are asked for. A map and no
/// global: the kernel's symbols are still being read when programs are loaded.
#[map]
static READ_FUNCTION: Array<u64> = Array::with_max_entries(1, 0);

/// `struct bpf_iter__task_file` (kernel/bpf/task_iter.c, 5.8+).
#[repr(C)]
struct TaskFileIteratorContext {
    meta: *const IteratorMeta,
    task: *const u8,
    descriptor: u32,
    _pad: u32,
    file: *const u8,
}

/// File iterator, `int bpf_iter_task_file(struct bpf_iter_meta *, struct task_struct *,
/// u32 fd, struct file *)`.
///
/// Exists from 5.8. Emits one [`OpenFile`] for each descriptor whose file is read by the
/// function in [`READ_FUNCTION`]. Threads that share their leader's table are visited once,
/// as their leader. Takes no lock but a spinlock of each task, for a moment.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
extern "C" fn open_files(ctx: *const TaskFileIteratorContext) -> i32 {
    // SAFETY: the kernel hands a valid context, as the verifier checks.
    let (meta, task, file) = unsafe { ((*ctx).meta, (*ctx).task, (*ctx).file) };
    if task.is_null() || file.is_null() {
        return 0;
    }
    let operations = pointer(file, global!(OPEN_FILE_LAYOUT.operations)) as *const u8;
    let read = pointer(operations, global!(OPEN_FILE_LAYOUT.read));
    let Some(&wanted) = READ_FUNCTION.get(0) else {
        return 0;
    };
    if read == 0 || read != wanted {
        return 0;
    }
    let found = OpenFile {
        files: pointer(task, global!(OPEN_FILE_LAYOUT.task_files)),
        private: pointer(file, global!(OPEN_FILE_LAYOUT.private)),
    };
    // SAFETY: the kernel hands a valid `meta`, whose first member is `seq`, and the length
    // is that of the record.
    unsafe {
        bpf_seq_write(
            (*meta).seq,
            (&raw const found).cast::<c_void>(),
            size_of::<OpenFile>() as u32,
        );
    }
    0
}
