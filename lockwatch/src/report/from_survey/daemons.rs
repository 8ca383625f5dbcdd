//! The domain's daemons as the contract's.

use super::stack_index;
use crate::{
    daemon,
    lock::Stacks,
    report::{Client, Daemon, DaemonThread},
};

impl Daemon {
    pub(super) fn new(daemon: &daemon::Daemon, stacks: &Stacks) -> Self {
        let daemon::Daemon {
            connection: _,
            number,
            name,
            clients,
            threads,
        } = daemon;
        Self {
            connection: *number,
            name: name.clone(),
            clients: clients.iter().map(|it| Client::new(it, stacks)).collect(),
            threads: threads
                .iter()
                .map(|it| DaemonThread::new(it, stacks))
                .collect(),
        }
    }
}

impl Client {
    fn new(client: &daemon::Client, stacks: &Stacks) -> Self {
        let daemon::Client {
            task,
            wait,
            is_sent,
            killable,
            stood: _,
            stack,
        } = client;
        Self {
            tid: task.key.tid,
            tgid: task.tgid,
            comm: task.comm.to_string(),
            wait_ns: *wait,
            is_sent: *is_sent,
            killable: *killable,
            stack: stack_index(*stack, stacks),
        }
    }
}

impl DaemonThread {
    fn new(thread: &daemon::DaemonThread, stacks: &Stacks) -> Self {
        let daemon::DaemonThread {
            task,
            serves,
            evidence,
            state,
            stuck,
            stood: _,
            stack,
        } = thread;
        Self {
            tid: task.key.tid,
            tgid: task.tgid,
            comm: task.comm.to_string(),
            serves: *serves,
            evidence: *evidence,
            state: state.letter(),
            stuck: stuck.into(),
            stack: stack_index(*stack, stacks),
        }
    }
}
