//! Decoys on the stage: tasks that look like holders and are none.

use anyhow::Result;
use lockwatch_tests::truth::{Decoy, DecoyKind};

use super::{STEP, Stage};
use crate::task::{Look, Task};

impl Stage {
    /// Notes a decoy once `condition` holds for it.
    pub(crate) fn decoy(
        &mut self,
        task: Task,
        comm: &str,
        what: DecoyKind,
        condition: impl Fn(&Look) -> bool,
    ) -> Result<()> {
        task.settle(comm, STEP, condition)?;
        self.note_decoy(task, comm, what, false);
        Ok(())
    }

    /// Starts a thread that does `before` and then sleeps in a futex until the end, and
    /// notes it as a decoy once it does.
    pub(crate) fn resting_decoy(
        &mut self,
        comm: &str,
        what: DecoyKind,
        before: impl FnOnce() + Send + 'static,
    ) -> Result<()> {
        let rest = self.rest.clone();
        let (task, _) = self.start(comm, move || {
            before();
            rest.wait();
        })?;
        self.decoy(task, comm, what, Look::waits_for_futex)
    }

    /// Starts a thread whose work ends in a request that is late, and notes it as a decoy
    /// once it waits for the answer.
    pub(crate) fn fuse_decoy(
        &mut self,
        comm: &str,
        what: DecoyKind,
        label: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<()> {
        let (task, _) = self.start(comm, work)?;
        self.server.wait_parked(label, STEP)?;
        self.decoy(task, comm, what, Look::waits_for_fuse)
    }

    /// Notes a decoy once it has exited.
    pub(crate) fn gone_decoy(&mut self, task: Task, comm: &str, what: DecoyKind) -> Result<()> {
        task.gone(comm, STEP)?;
        self.note_decoy(task, comm, what, true);
        Ok(())
    }

    fn note_decoy(&mut self, task: Task, comm: &str, what: DecoyKind, exited: bool) {
        self.decoys.push(Decoy {
            tid: task.tid,
            tgid: task.tgid,
            comm: comm.to_owned(),
            what,
            exited,
        });
    }
}
