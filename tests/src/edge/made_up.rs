//! A task that acquires and releases locks that nobody has: it has the programs run that see
//! that, with arguments that are made up (`BPF_PROG_TEST_RUN`).
//!
//! So a task holds as many as a test wants, of which the kernel makes it hold but one.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
};

use anyhow::{Context as _, Result, ensure};
use lockwatch::{
    lock::LockMode,
    plan::{Plan, Purpose},
};
use nix::{
    libc,
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::{ForkResult, Pid, fork, pipe},
};

use crate::{
    test_run::{Program, attached},
    truth::Tid,
};

/// What is asked of the task, in so many bytes: the number of a lock, how, and whether it is
/// acquired.
const ORDER_LEN: usize = 3;

/// Such a task. Dropped, it is killed.
#[derive(Debug)]
pub struct MadeUp {
    pid: Pid,
    orders: File,
    done: File,
}

/// The programs, and where they expect what.
struct Programs {
    acquired: Program,
    released: Program,
    /// Positions of arguments.
    write: usize,
    success: usize,
}

impl MadeUp {
    /// Forks it. The programs are those at raw tracepoints that this process has attached.
    ///
    /// # Errors
    /// When there are none.
    pub fn start(plan: &Plan) -> Result<Self> {
        let programs = Programs::of(plan)?;
        let (orders_of_task, orders) = pipe()?;
        let (done, done_of_task) = pipe()?;
        // SAFETY: the child makes system calls only.
        match unsafe { fork() }? {
            ForkResult::Child => {
                drop((orders, done));
                // SAFETY: it ends.
                unsafe { libc::_exit(i32::from(!programs.obey(orders_of_task, done_of_task))) }
            }
            ForkResult::Parent { child } => Ok(Self {
                pid: child,
                orders: orders.into(),
                done: done.into(),
            }),
        }
    }

    /// Its thread ID.
    pub fn tid(&self) -> Tid {
        Tid(self.pid.as_raw())
    }

    /// The address that `mmap_lock` has in the mm of which the lock with this number is part.
    pub fn lock(number: u8, mmap_lock: u64) -> u64 {
        mm(number) + mmap_lock
    }

    /// It acquires the lock with this number.
    ///
    /// # Errors
    /// When a program cannot be run.
    pub fn acquires(&mut self, number: u8, mode: LockMode) -> Result<()> {
        self.does([number, u8::from(mode == LockMode::Write), 1])
    }

    /// It releases the lock with this number.
    ///
    /// # Errors
    /// When a program cannot be run.
    pub fn releases(&mut self, number: u8, mode: LockMode) -> Result<()> {
        self.does([number, u8::from(mode == LockMode::Write), 0])
    }

    fn does(&mut self, order: [u8; ORDER_LEN]) -> Result<()> {
        self.orders.write_all(&order)?;
        let mut is_done = [0];
        self.done.read_exact(&mut is_done)?;
        ensure!(is_done == [1], "the kernel refused to run a program");
        Ok(())
    }
}

impl Drop for MadeUp {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

impl Programs {
    fn of(plan: &Plan) -> Result<Self> {
        let attached = attached()?;
        let program = |of: fn(&Purpose) -> bool| {
            let hook = plan.hooks.iter().find(|hook| of(&hook.purpose));
            let target = &hook.context("it is not in the plan")?.target;
            let found = attached.iter().find(|(name, _)| name == target);
            Program::by_id(
                found
                    .with_context(|| format!("{target} is not attached"))?
                    .1,
            )
        };
        let mut positions = plan.hooks.iter().filter_map(|hook| match hook.purpose {
            Purpose::MmapAcquired { write, success } => Some((write, success)),
            _ => None,
        });
        let (write, success) = positions.next().context("nothing tells of mmap_lock")?;
        Ok(Self {
            acquired: program(|purpose| matches!(purpose, Purpose::MmapAcquired { .. }))?,
            released: program(|purpose| matches!(purpose, Purpose::MmapReleased { .. }))?,
            write: write.into(),
            success: success.into(),
        })
    }

    /// Does what comes, until nobody is there to say something. False if that cannot be.
    fn obey(&self, orders: OwnedFd, done: OwnedFd) -> bool {
        let (mut orders, mut done) = (File::from(orders), File::from(done));
        let mut order = [0; ORDER_LEN];
        while orders.read_exact(&mut order).is_ok() {
            let [number, write, is_acquired] = order;
            let mut arguments = [mm(number), 0, 0, 0];
            arguments[self.write] = write.into();
            let run = if is_acquired == 1 {
                arguments[self.success] = 1;
                self.acquired.run(&arguments)
            } else {
                self.released.run(&arguments)
            };
            if done.write_all(&[run.is_ok().into()]).is_err() {
                return false;
            }
        }
        true
    }
}

/// An address at which nothing is.
fn mm(number: u8) -> u64 {
    0x1000 * (u64::from(number) + 1)
}
