//! A directory's i_rwsem, granted to a reader that gets no CPU.
//!
//! A reader is handed the lock by the one who wakes it: from then on it holds
//! the lock, whether it runs or not. Here it is bound to a CPU on which a
//! real-time thread spins, so it does not. The reader is a real-time thread as well, of
//! a lower priority: the share that the kernel keeps for others is not for it.

use std::{
    fs,
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use lockwatch_tests::{
    trial::bound,
    truth::{Holder, LockState, Mode, Stuck},
};
use nix::{
    errno::Errno,
    libc,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::utsname::uname,
    unistd::Pid,
};

use super::{Cast, NotHere, Standing, inode_write_held as inode};
use crate::{
    stage::{STEP, Stage},
    worker::Rest,
};

/// How long the CPU is taken away, where machines are as fast as they are.
const SPIN: Duration = Duration::from_secs(5);

/// Priority of the reader; the spinning thread has the next.
const PRIORITY: i32 = 1;

/// How long the CPU is taken away. A machine that is said to be slow is an emulated one.
pub(super) fn spin_time() -> Duration {
    bound(SPIN)
}

pub(super) fn raise(stage: &mut Stage, cast: Cast) -> Result<Standing> {
    if is_preempt_rt()? {
        return Err(NotHere::because(
            "PREEMPT_RT hands a lock to nobody before it runs",
        ));
    }
    let (ours, taken) = two_cpus()?;
    bind_all_threads(ours)?;
    if cast.decoys {
        inode::raise_decoys(stage, inode::list)?;
    }
    let first = inode::raise_holder(stage)?;

    let comm = "lab-reader";
    let unknown = stage.path("dir/unknown-reader");
    let (reader, _) = stage.start(comm, move || {
        // Elsewhere, or with an ordinary priority, it would run: that is noticed.
        let _ = bind(Pid::from_raw(0), taken).and_then(|()| become_real_time(PRIORITY));
        drop(fs::symlink_metadata(unknown));
    })?;
    let queued = reader.settle(comm, STEP, |look| inode::LOOKUP.is_met(look))?;

    // Writers only: a reader in this queue would be granted too, and leave.
    for position in 1..=cast.waiters {
        let comm = format!("lab-w{position}");
        let path = stage.path(&format!("dir/unknown-{position}"));
        let started = stage.start(&comm, move || drop(fs::create_dir(path)))?;
        stage.admit(started, &comm, &inode::MKDIR)?;
    }

    let spin_ends = start_spinning(stage, taken)?;
    inode::release_holder(stage);
    inode::holder_task(&first).gone(&first.comm, STEP)?;
    let look = reader.settle(comm, spin_time() / 2, |look| {
        look.state == 'R' && look.switches == queued.switches && look.frames == queued.frames
    })?;
    stage.still_queued(&inode::MKDIR)?;
    Ok(Standing {
        lock: inode::lock(stage),
        state: LockState::ReadHeld,
        reader_count: Some(1),
        holders: vec![Holder {
            tid: reader.tid,
            tgid: reader.tgid,
            comm: comm.into(),
            mode: Mode::Read,
            stuck: Stuck::Runnable,
            frame: look.top().to_owned(),
            granted: true,
        }],
        next: None,
        ends: Some(spin_ends),
    })
}

/// There a waiter is woken, and takes the lock itself (kernel/locking/rwbase_rt.c).
fn is_preempt_rt() -> Result<bool> {
    let kernel = uname().context("cannot ask for the kernel's version")?;
    Ok(kernel.version().to_string_lossy().contains("PREEMPT_RT"))
}

/// A CPU for the lab and another one to take away.
fn two_cpus() -> Result<(usize, usize)> {
    let allowed =
        sched_getaffinity(Pid::from_raw(0)).context("cannot read the CPUs of this process")?;
    let mut cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    match (cpus.next(), cpus.next()) {
        (Some(ours), Some(taken)) => Ok((ours, taken)),
        _ => bail!("this stall needs two CPUs: allow the lab a second one"),
    }
}

/// Nobody but the reader may be where the spinning thread is; threads started
/// later inherit the binding of this one.
fn bind_all_threads(cpu: usize) -> Result<()> {
    for entry in fs::read_dir("/proc/self/task").context("cannot list the lab's threads")? {
        let name = entry.context("cannot list the lab's threads")?.file_name();
        if let Some(tid) = name.to_str().and_then(|name| name.parse().ok()) {
            bind(Pid::from_raw(tid), cpu)?;
        }
    }
    Ok(())
}

fn bind(thread: Pid, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| sched_setaffinity(thread, &set))
        .with_context(|| format!("cannot bind thread {thread} to CPU {cpu}"))
}

/// Starts the thread that takes the CPU away; returns when it will stop.
fn start_spinning(stage: &mut Stage, cpu: usize) -> Result<Instant> {
    let (report, reported) = mpsc::channel();
    let rest = stage.rest.clone();
    stage.start("lab-spinner", move || {
        let ready = bind(Pid::from_raw(0), cpu).and_then(|()| become_real_time(PRIORITY + 1));
        let ends = Instant::now() + spin_time();
        let go = ready.is_ok();
        // The lab waits for just this.
        let _ = report.send(ready.map(|()| ends));
        if go {
            spin(ends, &rest);
        }
    })?;
    reported
        .recv()
        .context("the spinning thread ended too early")?
}

fn become_real_time(priority: i32) -> Result<()> {
    let param = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: `param` outlives the call; 0 is the calling thread.
    let outcome = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const param) };
    Errno::result(outcome).context(
        "cannot get a real-time priority: the lab needs CAP_SYS_NICE and \
         a cgroup with real-time bandwidth",
    )?;
    Ok(())
}

fn spin(ends: Instant, rest: &Rest) {
    while Instant::now() < ends && !rest.is_over() {
        std::hint::spin_loop();
    }
}
