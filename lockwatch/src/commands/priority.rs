//! First in line for a CPU: a host that crawls may have none to spare.

use std::{io, time::Duration};

/// Highest priority that is not real-time.
const LEAST_NICE: i32 = -20;

/// Lets this thread, and those that it starts from here on, run before the host's other
/// work: `SCHED_RR` of the lowest priority (sched(7)), else the highest of the common ones.
/// Should one of them ever run for `longest` in one go, the kernel ends this process: a
/// fault of ours must not take a CPU away for good.
///
/// Best effort: without the right to do it we run with what we have.
pub(super) fn go_first(longest: Duration) {
    let Err(error) = be_real_time(longest) else {
        return;
    };
    tracing::info!("without real-time priority: {error}");
    if let Err(error) = rustix::process::setpriority_process(None, LEAST_NICE) {
        tracing::info!("without a higher priority: {error}");
    }
}

fn be_real_time(longest: Duration) -> io::Result<()> {
    let micros = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
    let limit = libc::rlimit {
        rlim_cur: micros,
        rlim_max: micros,
    };
    // SAFETY: the limit lives until the call returns.
    succeeded(unsafe { libc::setrlimit(libc::RLIMIT_RTTIME, &raw const limit) })?;
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameter lives until the call returns; 0 is this thread.
    succeeded(unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const lowest) })
}

fn succeeded(code: libc::c_int) -> io::Result<()> {
    match code {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
