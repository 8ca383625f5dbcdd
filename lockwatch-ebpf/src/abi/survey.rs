//! What the survey object reads: tasks with their raw kernel stacks, and kernel
//! memory on request.

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Member;

/// Longest kernel stack that is copied, in bytes. x86-64 has 16 KiB.
pub const STACK_MAX: usize = 16 * 1024;
/// Most unwound frames kept per task (the kernel's own default limit).
pub const FRAMES_MAX: usize = 127;
/// A [`TaskRecord::frame_count`] that says: as at the last look of the same survey. The task
/// has not run since, and was not unwound again.
pub const FRAMES_AS_BEFORE: u32 = u32::MAX;
/// Tasks, a power of two, of which a survey's programs remember how they stood when they were
/// unwound. Of two with the same last bits of their tids one is unwound again.
pub const REMEMBERED: u32 = 1 << 15;
/// Bytes of a task's name, as in the kernel's `TASK_COMM_LEN`.
pub const COMM_LEN: usize = 16;

/// Offsets of the `task_struct` members that the task iterator reads.
///
/// Set once, before loading, as a read-only global: the verifier then knows each
/// offset as a constant and allows a direct load.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TaskLayout {
    /// `pid`
    pub pid: Member,
    /// `tgid`
    pub tgid: Member,
    /// `comm`
    pub comm: Member,
    /// `start_boottime` (5.5+), else `real_start_time`
    pub start_time: Member,
    /// `__state` (5.14+), else `state`
    pub state: Member,
    /// `exit_state`
    pub exit_state: Member,
    /// `flags` (`PF_*`)
    pub flags: Member,
    /// `on_cpu`
    pub on_cpu: Member,
    /// `on_rq`
    pub on_rq: Member,
    /// `thread_info.cpu` (5.16+), else `cpu`
    pub cpu: Member,
    /// `nvcsw`
    pub nvcsw: Member,
    /// `nivcsw`
    pub nivcsw: Member,
    /// `sched_info.last_arrival`
    pub last_arrival: Member,
    /// `mm`
    pub mm: Member,
    /// `stack`
    pub stack: Member,
    /// `thread.sp`
    pub sp: Member,
    /// `blocker` (6.16+, `DETECT_HUNG_TASK_BLOCKER`)
    pub blocker: Member,
    /// `pi_blocked_on`
    pub pi_blocked_on: Member,
    /// Size of a kernel stack in bytes, a power of two, at most [`STACK_MAX`].
    pub thread_size: u32,
    /// So many of them, from the lowest address on, can hold frames of the kernel: above lies
    /// what it has saved of user space.
    pub frames_size: u32,
}

/// Offsets that tell which open files are FUSE devices.
///
/// Set once, before loading, as a read-only global, as [`TaskLayout`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct OpenFileLayout {
    /// `task_struct.files`
    pub task_files: Member,
    /// `file.f_op`
    pub operations: Member,
    /// `file.private_data`
    pub private: Member,
    /// `file_operations.read_iter`
    pub read: Member,
}

/// An open file that is read by the function that was asked for: one for each descriptor
/// in each table of open files.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct OpenFile {
    /// Address of the table of open files that it is in.
    pub files: u64,
    /// `file->private_data`.
    pub private: u64,
}

const _: () = assert!(size_of::<OpenFile>() == 16);

/// One task, as the iterator saw it; followed in the byte stream by
/// `frame_count` unwound return addresses (`u64`, innermost first) and by
/// `stack_len` bytes of raw stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TaskRecord {
    /// Address of the `task_struct`.
    pub task: u64,
    /// Start time in ns since boot: with the tid it identifies a task for good.
    pub start_time_ns: u64,
    /// Voluntary context switches.
    pub nvcsw: u64,
    /// Involuntary context switches.
    pub nivcsw: u64,
    /// `sched_clock` ns at which the task last got a CPU.
    pub last_arrival_ns: u64,
    /// Address of its `mm_struct`, or 0.
    pub mm: u64,
    /// Lowest address of its kernel stack.
    pub stack_base: u64,
    /// Saved stack pointer; means something only while the task is off CPU.
    pub sp: u64,
    /// `task->blocker`, or 0 where the kernel has none.
    pub blocker: u64,
    /// `task->pi_blocked_on`, or 0.
    pub pi_blocked_on: u64,
    /// Address of its table of open files (`task->files`), or 0.
    pub files: u64,
    /// `CLOCK_MONOTONIC` ns of this record.
    pub taken_at_ns: u64,
    /// The kernel's 64-bit jiffies at this record.
    pub jiffies: u64,
    /// Thread id in the initial PID namespace.
    pub tid: u32,
    /// Thread group id in the initial PID namespace.
    pub tgid: u32,
    /// `task->__state`.
    pub state: u32,
    /// `task->exit_state`.
    pub exit_state: u32,
    /// `task->flags`.
    pub flags: u32,
    /// CPU it runs or last ran on.
    pub cpu: u32,
    /// 1 while it runs.
    pub on_cpu: u32,
    /// Not 0 while it is on a run queue.
    pub on_rq: u32,
    /// 1 if the task moved while it was being read: its stack is not to be trusted.
    pub moved: u32,
    /// Unwound return addresses that follow, or [`FRAMES_AS_BEFORE`].
    pub frame_count: u32,
    /// Bytes between `stack_base` and the first stack word that follows.
    pub stack_offset: u32,
    /// Bytes of stack that follow, a multiple of 8.
    pub stack_len: u32,
    /// Name; bytes after the first NUL are stale on old kernels.
    pub comm: [u8; COMM_LEN],
}

const _: () = assert!(size_of::<TaskRecord>() == 13 * 8 + 12 * 4 + COMM_LEN);

/// Read requests that one run of the memory reader serves.
pub const READS_MAX: usize = 256;
/// Longest single read in bytes.
pub const READ_LEN_MAX: usize = 0x7fff;
/// Bytes of output that requests may address.
pub const OUTPUT_LEN: usize = 1 << 20;
/// Size of the output map: an offset below [`OUTPUT_LEN`] plus one full read.
pub const OUTPUT_MAP_LEN: usize = OUTPUT_LEN + READ_LEN_MAX + 1;

/// "Copy `len` bytes at `address` to `output_offset`."
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ReadRequest {
    /// Kernel address.
    pub address: u64,
    /// Bytes, at most [`READ_LEN_MAX`].
    pub len: u32,
    /// Where in the output, below [`OUTPUT_LEN`].
    pub output_offset: u32,
}

/// The request page: user space fills `requests`, the program fills `results`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ReadPage {
    /// What to read.
    pub requests: [ReadRequest; READS_MAX],
    /// 0, or a negative errno (`-EFAULT`: unmapped, `-ERANGE`: not a kernel address).
    pub results: [i64; READS_MAX],
}
