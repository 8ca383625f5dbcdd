//! When a task went to sleep, by what the scheduler keeps.
//!
//! `sched_info.last_arrival` says when a task last *got* a CPU: it may have run for minutes
//! since then without a switch. `se.exec_start` is set at every account of its run time, the
//! last time when it leaves the CPU, in each scheduling class (`update_curr`,
//! `update_curr_common`: kernel/sched/fair.c, rt.c, deadline.c, ext.c of 5.10 to 7.3; the same
//! since 2.6.23). Its clock leaves out what interrupts and the hypervisor took
//! (`update_rq_clock_task`, kernel/sched/core.c): what has been left out so far is the
//! difference of the run queue's two clocks, which only grows.

use super::btf::{Bit, Btf};

/// Where the scheduler keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchedulerLayout {
    /// `task_struct.se.exec_start`; 0 after a migration.
    pub exec_start: u64,
    /// `task_struct.se.cfs_rq` (`FAIR_GROUP_SCHED`); tasks of every class have it.
    pub group_queue: u64,
    /// `cfs_rq.rq`
    pub run_queue: u64,
    /// `rq.cpu`
    pub cpu: u64,
    /// `rq.clock`: `sched_clock` ns when the run queue was last looked after.
    pub clock: u64,
    /// `rq.clock_task`
    pub clock_task: u64,
}

impl SchedulerLayout {
    /// `None` where this kernel keeps something in another way.
    pub fn from_btf(btf: &Btf) -> Option<Self> {
        let at = |path: &str| btf.member(path).map(|member| u64::from(member.offset));
        Some(Self {
            exec_start: at("task_struct.se.exec_start")?,
            group_queue: at("task_struct.se.cfs_rq")?,
            run_queue: at("cfs_rq.rq")?,
            cpu: at("rq.cpu")?,
            clock: at("rq.clock")?,
            clock_task: at("rq.clock_task")?,
        })
    }
}

/// `task_struct.in_iowait`: the scheduler counts its sleep as waiting for I/O.
pub fn io_wait(btf: &Btf) -> Option<Bit> {
    btf.bit("task_struct.in_iowait")
}
