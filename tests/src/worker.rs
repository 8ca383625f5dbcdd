//! Threads of the lab itself: holders, waiters and decoys in its own process.

use std::{
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};

use crate::{clock, task::Task};

/// The work is one system call: 1,500 of them must not cost gigabytes.
const STACK_BYTES: usize = 64 << 10;

/// A thread that was started and told its tid.
pub(crate) struct Worker {
    pub(crate) task: Task,
    pub(crate) comm: String,
    pub(crate) started_ns: u64,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Starts a thread named `comm` that does `work` at once and ends.
    pub(crate) fn start(comm: &str, work: impl FnOnce() + Send + 'static) -> Result<Self> {
        let (report, reported) = mpsc::channel();
        let started_ns = clock::monotonic_ns();
        let thread = thread::Builder::new()
            .name(comm.to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                // The receiver waits for just this.
                let _ = report.send(Task::current());
                work();
            })
            .with_context(|| {
                format!("cannot start thread {comm}: ask for fewer waiters or raise `ulimit -u`")
            })?;
        let task = reported
            .recv()
            .with_context(|| format!("thread {comm} ended before it told its tid"))?;
        Ok(Self {
            task,
            comm: comm.to_owned(),
            started_ns,
            thread,
        })
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}

/// Where decoys sleep (in a futex) until the stall is over, and others until their turn.
#[derive(Clone, Default)]
pub(crate) struct Rest(Arc<Inner>);

#[derive(Default)]
struct Inner {
    over: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Rest {
    pub(crate) fn wait(&self) {
        let guard = self.0.lock.lock().unwrap_or_else(PoisonError::into_inner);
        drop(
            self.0
                .changed
                .wait_while(guard, |()| !self.is_over())
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.over.load(Ordering::Relaxed)
    }

    pub(crate) fn end(&self) {
        // The lock keeps a sleeper from missing the wake-up.
        let guard = self.0.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.over.store(true, Ordering::Relaxed);
        drop(guard);
        self.0.changed.notify_all();
    }
}
