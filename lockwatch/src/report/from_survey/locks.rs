//! The domain's locks as the contract's.

use super::{lock_id, stack_index};
use crate::{
    lock::{self, LockObject, Stacks},
    report::{BlockDevice, Evidence, Holder, Lock, Object, RecentHold, Stuck, Waiter},
    task,
};

impl Lock {
    pub(super) fn new(lock: &lock::Lock, stacks: &Stacks, in_chains: Vec<usize>) -> Self {
        let count_text = lock.count_text();
        // Named one by one, so that a new field of the domain is not forgotten here.
        let lock::Lock {
            address,
            kind,
            class,
            name,
            object,
            state,
            reader_count,
            count: _,
            count_is_signed: _,
            owner,
            holders,
            waiters,
            spinners,
            by_priority,
            first_was_overtaken: _,
            note,
            recent_holds,
        } = lock;
        Self {
            id: lock_id(*address),
            address: address.to_string(),
            kind: *kind,
            class: class.to_string(),
            name: name.clone(),
            object: object.as_ref().map(Object::from),
            state: *state,
            reader_count: *reader_count,
            count: count_text,
            owner: format!("{owner:#x}"),
            holders: holders.iter().map(|h| Holder::new(h, stacks)).collect(),
            waiters: waiters.iter().map(|w| Waiter::new(w, stacks)).collect(),
            spinners: spinners.clone(),
            note: note.clone(),
            recent_holds: recent_holds
                .iter()
                .map(|h| RecentHold::new(h, stacks))
                .collect(),
            next: None,
            ways_out: Vec::new(),
            by_priority: *by_priority,
            at: *address,
            in_chains,
        }
    }
}

impl From<&LockObject> for Object {
    fn from(object: &LockObject) -> Self {
        match object {
            LockObject::Mm { mm: _, owner } => Self::Mm {
                tgid: owner.as_ref().map(|(tgid, _)| *tgid),
                comm: owner.as_ref().map(|(_, comm)| comm.clone()),
            },
            LockObject::Vma { start, end, owner } => Self::Vma {
                tgid: owner.as_ref().map(|(tgid, _)| *tgid),
                comm: owner.as_ref().map(|(_, comm)| comm.clone()),
                start: format!("{start:#x}"),
                end: format!("{end:#x}"),
            },
            LockObject::Inode {
                inode: _,
                fstype,
                sb,
                ino,
                path,
            } => Self::Inode {
                fstype: fstype.clone(),
                sb: sb.clone(),
                ino: *ino,
                path: path.clone(),
            },
            LockObject::SuperBlock {
                super_block: _,
                fstype,
                id,
                mount: _,
            } => Self::SuperBlock {
                fstype: fstype.clone(),
                id: id.clone(),
            },
            LockObject::Symbol(symbol) => Self::Symbol(symbol.clone()),
        }
    }
}

impl Holder {
    fn new(holder: &lock::Holder, stacks: &Stacks) -> Self {
        let lock::Holder {
            task,
            mode,
            confidence,
            evidence,
            stood: _,
            cgroup,
            state,
            stuck,
            held,
            held_is_lower_bound,
            stack,
        } = holder;
        Self {
            tid: task.key.tid,
            tgid: task.tgid,
            comm: task.comm.to_string(),
            cgroup: cgroup.clone(),
            mode: *mode,
            confidence: *confidence,
            evidence: evidence
                .iter()
                .map(|evidence| Evidence {
                    kind: evidence.kind,
                    frame: evidence.frame.clone(),
                    value: evidence.value.clone(),
                })
                .collect(),
            state: state.letter(),
            stuck: stuck.into(),
            held_ns: *held,
            held_is_lower_bound: held.map(|_| *held_is_lower_bound),
            stack: stack_index(*stack, stacks),
        }
    }
}

impl RecentHold {
    fn new(hold: &lock::RecentHold, stacks: &Stacks) -> Self {
        let lock::RecentHold {
            task,
            mode,
            held,
            ended_ago,
            released_in,
            stack,
        } = hold;
        Self {
            tid: task.key.tid,
            tgid: task.tgid,
            comm: task.comm.to_string(),
            mode: *mode,
            held_ns: *held,
            ended_ago_ns: *ended_ago,
            released_in: released_in.clone(),
            stack: stack_index(*stack, stacks),
        }
    }
}

impl From<&task::Stuck> for Stuck {
    fn from(stuck: &task::Stuck) -> Self {
        Self {
            class: stuck.class,
            frame: stuck.frame.clone(),
            since_ns: stuck.since,
            device: stuck.device.as_ref().map(|device| BlockDevice {
                name: device.name.clone(),
                in_flight: device.in_flight,
            }),
        }
    }
}

impl Waiter {
    fn new(waiter: &lock::Waiter, stacks: &Stacks) -> Self {
        let lock::Waiter {
            task,
            position,
            mode,
            wait,
            wait_source,
            killable,
            granted,
            state: _,
            caller,
            stack,
        } = waiter;
        Self {
            position: *position,
            tid: task.key.tid,
            tgid: task.tgid,
            comm: task.comm.to_string(),
            cgroup: None,
            mode: *mode,
            wait_ns: *wait,
            wait_source: *wait_source,
            killable: *killable,
            granted: *granted,
            stack: stack_index(*stack, stacks),
            caller: caller.clone(),
        }
    }
}
