//! First in line for a CPU, and behind nobody who gets none: a host that crawls may have
//! none to spare.

use std::io;

use anyhow::Context as _;

/// The highest priority that is not real-time.
const LEAST_NICE: i32 = -20;

/// Lets this thread, and those that it starts from here on, run before the host's other
/// work. Best effort: without the right to do it we run with what we have.
///
/// Not as a real-time task: where one of a higher priority spins, such a task gets nothing
/// of what the kernel keeps for the others (`sched_rt_runtime_us`, later the fair server),
/// and the deadline would be lost with it.
pub(super) fn go_first() {
    if let Err(error) = rustix::process::setpriority_process(None, LEAST_NICE) {
        tracing::info!("without a higher priority: {error}");
    }
}

/// Lets this thread, and those that it starts from here on, run before all tasks that are not
/// real-time, as a real-time task of this priority (`SCHED_FIFO`), if one is asked for.
///
/// # Errors
/// When the kernel does not allow it.
pub(super) fn be_real_time(priority: Option<u8>) -> anyhow::Result<()> {
    let Some(priority) = priority else {
        return Ok(());
    };
    // SAFETY: plain integers, for which zero is a value.
    let mut parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    parameters.sched_priority = priority.into();
    // SAFETY: reads the structure that it is given.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    if result == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error()).with_context(|| {
        format!(
            "cannot run with real-time priority {priority}: it takes CAP_SYS_NICE, or a limit (ulimit -r) of {priority}, and a control group that has real-time time to give"
        )
    })
}

/// Keeps khugepaged away from this process. It holds the mmap_lock of whom it makes huge
/// pages for (mm/khugepaged.c), at nice 19: on a host without a CPU to spare it may not get
/// one to let go, and every page fault and mmap of ours waits for it; for 10 s, as was seen.
/// Best effort, and before anything large is mapped: only such address spaces are its own.
pub(super) fn keep_out_of_huge_pages() {
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::info!("cannot do without huge pages: {error}");
    }
}
