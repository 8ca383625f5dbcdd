//! First in line for a CPU, and behind nobody who gets none: a host that crawls may have
//! none to spare.

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

/// Keeps khugepaged away from this process. It holds the mmap_lock of whom it makes huge
/// pages for (mm/khugepaged.c), at nice 19: on a host without a CPU to spare it may not get
/// one to let go, and every page fault and mmap of ours waits for it; for 10 s, as was seen.
/// Best effort, and before anything large is mapped: only such address spaces are its own.
pub(super) fn keep_out_of_huge_pages() {
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::info!("cannot do without huge pages: {error}");
    }
}
