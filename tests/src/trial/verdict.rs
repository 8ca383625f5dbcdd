//! What a report gets wrong about a stall whose truth is known.

mod chains;
mod cycle;

use std::{collections::BTreeSet, time::Duration};

pub use self::cycle::is_ring;
use super::report::{Confidence, Holder, Lock, Object, Report};
use crate::truth::{Decoy, DecoyKind, LockClass, LockKind, LockState, Mode, Ready, Stuck, Tid};

/// Error of the clocks between us: a jiffy of 10 ms, and getting to work.
const SLACK: Duration = Duration::from_millis(20);

/// When lockwatch ran, `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Before it was started.
    pub begun_ns: u64,
    /// After it had ended.
    pub ended_ns: u64,
}

/// The outcome of a comparison.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// What is wrong, one sentence each; empty if nothing is.
    pub wrong: Vec<String>,
    /// How sure the names of the true holders are.
    pub confidences: Vec<Confidence>,
    /// Decoys that are listed as possible holders of the lab's lock.
    pub decoys_possible: usize,
}

impl Verdict {
    /// Compares a report with the truth, point by point.
    pub fn on(report: &Report, truth: &Ready, span: Span) -> Self {
        let mut verdict = Self::default();
        verdict.coverage(report);
        verdict.others(report, truth);
        verdict.cycle(report, truth);
        verdict.stall(report, truth, span);
        if let Some(next) = truth.of_next() {
            verdict.stall(report, &next, span);
        }
        verdict
    }

    fn stall(&mut self, report: &Report, truth: &Ready, span: Span) {
        if let Some(lock) = self.find(report, truth) {
            self.lock(lock, truth);
            self.holders(report, lock, truth, span);
            self.decoys(lock, truth);
            self.queue(report, lock, truth, span);
            self.crowd(lock, truth);
            self.chains(report, lock, truth);
            self.findings(report, lock, truth);
        }
    }

    /// The holders are named likely or certain, and nobody else is.
    pub fn names_exactly_the_holders(&self) -> bool {
        !self.confidences.is_empty() && self.wrong.is_empty()
    }

    fn complain(&mut self, what: impl Into<String>) {
        self.wrong.push(what.into());
    }

    fn expect(&mut self, right: bool, what: impl FnOnce() -> String) {
        if !right {
            self.wrong.push(what());
        }
    }

    fn coverage(&mut self, report: &Report) {
        let (source, looks) = (&report.coverage.source, report.coverage.looks);
        let is_survey = ["survey", "recording"].contains(&source.as_str());
        self.expect(is_survey && looks == Some(2), || {
            format!("the report comes from {source}, {looks:?} looks, not from a survey of 2")
        });
        self.expect(report.coverage.tasks > 0, || "no task was seen".into());
    }

    fn find<'r>(&mut self, report: &'r Report, truth: &Ready) -> Option<&'r Lock> {
        let found: Vec<&Lock> = report
            .locks
            .iter()
            .filter(|lock| is_the_lock(lock, truth))
            .collect();
        if let [lock] = found[..] {
            return Some(lock);
        }
        let names: Vec<&str> = report.locks.iter().map(|lock| &*lock.name).collect();
        self.complain(format!(
            "{} locks are {}; all there are: {names:?}",
            found.len(),
            truth.lock.name
        ));
        None
    }

    fn lock(&mut self, lock: &Lock, truth: &Ready) {
        self.expect(is_named_so(&lock.name, truth), || {
            format!("it is named `{}`, not `{}`", lock.name, truth.lock.name)
        });
        self.expect(lock.class == class_name(truth.lock.class), || {
            format!("its class is {}", lock.class)
        });
        self.expect(lock.kind == Some(truth.lock.kind), || {
            format!("its kind is {:?}", lock.kind)
        });
        self.expect(lock.state == Some(truth.state), || {
            format!("its state is {:?}, not {:?}", lock.state, truth.state)
        });
        self.expect(lock.reader_count == truth.reader_count, || {
            format!(
                "its readers are {:?}, not {:?}",
                lock.reader_count, truth.reader_count
            )
        });
        self.expect(lock.spinners.is_empty(), || {
            format!("nobody spins for it, but {:?}", lock.spinners)
        });
    }

    fn holders(&mut self, report: &Report, lock: &Lock, truth: &Ready, span: Span) {
        let wanted: BTreeSet<_> = truth
            .holders
            .iter()
            .map(|holder| (holder.tid, holder.tgid, &*holder.comm))
            .collect();
        let accused: Vec<_> = accused(lock)
            .map(|holder| (holder.tid, holder.tgid, &*holder.comm))
            .collect();
        let named: BTreeSet<_> = accused.iter().copied().collect();
        // A reader may stay unknown where the stall hides it, but nobody may
        // be named in its place.
        let right = if truth.owner_hidden {
            named.is_subset(&wanted) && accused.len() == named.len()
        } else {
            named == wanted && accused.len() == wanted.len()
        };
        self.expect(right, || {
            format!(
                "accused are {accused:?}, holders are {wanted:?}; listed: {}",
                listed(&lock.holders)
            )
        });
        for holder in &lock.holders {
            let who = format!("{}[{}]", holder.comm, holder.tid.0);
            self.expect(!holder.evidence.is_empty(), || {
                format!("{who} is listed without evidence")
            });
            let functions = report.functions(holder.stack);
            let Some(true_holder) = truth.holders.iter().find(|one| one.tid == holder.tid) else {
                continue;
            };
            self.confidences.push(holder.confidence);
            self.expect(holder.mode == true_holder.mode, || {
                format!("{who} holds for {:?}", holder.mode)
            });
            let stuck = stuck_class(true_holder.stuck);
            self.expect(holder.stuck.class == stuck, || {
                format!("{who} is stuck in {}, not {stuck}", holder.stuck.class)
            });
            let device = holder.stuck.device.as_ref();
            // Others may have asked it for something, too.
            let is_busy = device.is_none_or(|device| device.in_flight >= Some(1));
            let name = device.map(|device| &device.name);
            self.expect(name == truth.device.as_ref() && is_busy, || {
                format!("{who} waits for {device:?}, not {:?}", truth.device)
            });
            self.expect(
                holder
                    .cgroup
                    .as_ref()
                    .is_some_and(|path| path.starts_with('/')),
                || format!("{who} is in the control group {:?}", holder.cgroup),
            );
            let granted = holder.evidence.iter().any(|one| one.kind == "granted");
            self.expect(granted == true_holder.granted, || {
                format!("granted evidence for {who}: {granted}")
            });
            self.expect(state_fits(true_holder.stuck, holder.state), || {
                format!("{who} is in state {}", holder.state)
            });
            let frame = &*true_holder.frame;
            self.expect(functions.is_some_and(|all| all.contains(&frame)), || {
                format!("{who} has no stack with {frame}")
            });
            // It stood before the first waiter was told to start.
            if let Some(first) = truth.waiters.first() {
                let least = span.begun_ns.saturating_sub(first.started_ns);
                self.expect(
                    holder
                        .stuck
                        .since_ns
                        .is_some_and(|since| since + slack_ns() >= least),
                    || {
                        format!(
                            "{who} is off the CPU since {:?} ns, at least {least} ago",
                            holder.stuck.since_ns
                        )
                    },
                );
            }
            self.expect(
                holder.held_ns.is_some() == holder.held_is_lower_bound.is_some(),
                || format!("{who} has one of held_ns and held_is_lower_bound only"),
            );
        }
    }

    fn decoys(&mut self, lock: &Lock, truth: &Ready) {
        for decoy in &truth.decoys {
            let who = name(decoy);
            self.expect(
                !lock
                    .waiters
                    .iter()
                    .any(|waiter| (waiter.tid, &waiter.comm) == (decoy.tid, &decoy.comm)),
                || format!("{who} is listed as a waiter"),
            );
            if lock.holders.iter().any(|holder| is(holder, decoy)) {
                self.decoys_possible += 1;
            }
        }
    }

    /// No other lock of the report accuses a task of the lab, but for the one
    /// lock that a decoy does hold.
    fn others(&mut self, report: &Report, truth: &Ready) {
        let sibling = format!("{}/sibling", truth.mount);
        let is_of_the_lab = |holder: &Holder| {
            truth.decoys.iter().any(|decoy| is(holder, decoy))
                || truth.holders.iter().any(|one| one.tid == holder.tid)
                || truth.waiters.iter().any(|one| one.tid == holder.tid)
        };
        for lock in &report.locks {
            let next = truth.of_next();
            if is_the_lock(lock, truth) || next.is_some_and(|next| is_the_lock(lock, &next)) {
                continue;
            }
            for holder in &lock.holders {
                let innocent = !truth.decoys.iter().any(|decoy| {
                    decoy.what == DecoyKind::OtherDirectory
                        && is(holder, decoy)
                        && lock.name == format!("i_rwsem of {sibling}")
                });
                let wrong = holder.is_accused() && is_of_the_lab(holder) && innocent;
                self.expect(!wrong, || {
                    format!(
                        "{}[{}] is accused for {}",
                        holder.comm, holder.tid.0, lock.name
                    )
                });
            }
        }
    }

    fn queue(&mut self, report: &Report, lock: &Lock, truth: &Ready, span: Span) {
        let reported: Vec<_> = lock.waiters.iter().filter(|one| !one.granted).collect();
        let order = |tids: &[Tid]| tids.iter().map(|tid| tid.0).collect::<Vec<_>>();
        let wanted: Vec<Tid> = truth.waiters.iter().map(|waiter| waiter.tid).collect();
        let found: Vec<Tid> = reported.iter().map(|waiter| waiter.tid).collect();
        // A bystander may queue behind them.
        if !found.starts_with(&wanted) {
            self.complain(format!(
                "queued are {:?}, in truth {:?}",
                order(&found),
                order(&wanted)
            ));
            return;
        }
        for (waiter, wanted) in reported.iter().zip(&truth.waiters) {
            let who = format!("{}[{}]", wanted.comm, wanted.tid.0);
            let said = (
                waiter.position,
                waiter.tgid,
                &*waiter.comm,
                waiter.mode,
                waiter.killable,
            );
            let right = (
                wanted.position,
                wanted.tgid,
                &*wanted.comm,
                wanted.mode,
                wanted.killable,
            );
            self.expect(said == right, || {
                format!("waiter {who} is said to be {said:?}, in truth {right:?}")
            });
            let least = span
                .begun_ns
                .saturating_sub(wanted.queued_ns)
                .saturating_sub(slack_ns());
            let most = span.ended_ns.saturating_sub(wanted.started_ns) + slack_ns();
            self.expect((least..=most).contains(&waiter.wait_ns), || {
                format!(
                    "{who} has waited {} ns by its {}, in truth {least} to {most}",
                    waiter.wait_ns, waiter.wait_source
                )
            });
            let frame = &*wanted.frame;
            self.expect(
                report
                    .functions(waiter.stack)
                    .is_some_and(|all| all.contains(&frame)),
                || format!("{who} has no stack with {frame}"),
            );
        }
    }

    fn findings(&mut self, report: &Report, lock: &Lock, truth: &Ready) {
        let finding = |detector: &str| {
            report
                .findings
                .iter()
                .find(|one| one.detector == detector && one.locks.contains(&lock.id))
        };
        match finding("long-wait") {
            None => self.complain("no long-wait is found"),
            Some(found) => {
                self.expect(found.sentence.contains(&lock.name), || {
                    format!("`{}` does not name the lock", found.sentence)
                });
                let missing: Vec<_> = truth
                    .waiters
                    .iter()
                    .filter(|waiter| !found.tasks.contains(&waiter.tid))
                    .map(|waiter| &*waiter.comm)
                    .collect();
                self.expect(missing.is_empty(), || {
                    format!("long-wait leaves out {missing:?}")
                });
            }
        }
        let (convoy, found) = (is_convoy(truth), finding("convoy").is_some());
        self.expect(convoy == found, || {
            format!("a convoy is {convoy}, found: {found}")
        });
        self.expect(finding("inconsistent-lock").is_none(), || {
            "the lock is called inconsistent".into()
        });
    }
}

fn is_the_lock(lock: &Lock, truth: &Ready) -> bool {
    let wanted = &truth.lock;
    if !matches!(
        wanted.class,
        Some(LockClass::MmapLock | LockClass::IRwsem | LockClass::SUmount)
    ) {
        // A task waits for one lock at a time.
        let is_in_truth = |tid| truth.waiters.iter().any(|waiter| waiter.tid == tid);
        return lock.waiters.iter().any(|waiter| is_in_truth(waiter.tid));
    }
    // Behind the device is the lab's FUSE file system, and an ext2 on it.
    let expected = if truth.device.is_some() {
        "ext4"
    } else {
        "fuse"
    };
    lock.class == class_name(wanted.class)
        && match &lock.object {
            Some(Object::Mm { tgid, comm }) => *tgid == wanted.tgid && *comm == wanted.comm,
            Some(Object::Inode { fstype, ino, path }) => {
                let name = |path: &String| format!("i_rwsem of {path}") == wanted.name;
                fstype == expected && Some(*ino) == wanted.ino && path.as_ref().is_some_and(name)
            }
            Some(Object::SuperBlock { fstype, .. }) => fstype == "fuse" && lock.name == wanted.name,
            Some(Object::Vma { .. } | Object::Symbol(_)) | None => false,
        }
}

fn class_name(class: Option<LockClass>) -> &'static str {
    match class {
        Some(LockClass::MmapLock) => "mmap_lock",
        Some(LockClass::IRwsem) => "i_rwsem",
        Some(LockClass::SUmount) => "s_umount",
        Some(LockClass::FPosLock) => "f_pos_lock",
        Some(LockClass::Pipe) => "pipe",
        Some(LockClass::VmaLock) => "vma_lock",
        Some(LockClass::SWriters) => "s_writers",
        None => "unknown",
    }
}

fn is_named_so(name: &str, truth: &Ready) -> bool {
    match truth.lock.class {
        // The lab does not know its address.
        Some(LockClass::VmaLock) => name.starts_with(&truth.lock.name),
        _ => name == truth.lock.name,
    }
}

/// Readers behind a writer, while readers hold the lock: they could have it, were it not
/// for a fair queue. Behind a freeze they could not.
fn is_convoy(truth: &Ready) -> bool {
    let behind = truth
        .waiters
        .iter()
        .skip_while(|waiter| waiter.mode == Mode::Read);
    truth.lock.kind == LockKind::Rwsem
        && truth.state == LockState::ReadHeld
        && (behind.clone().skip(1).any(|one| one.mode == Mode::Read)
            || behind.count() > 0 && !truth.crowd.is_empty())
}

fn accused(lock: &Lock) -> impl Iterator<Item = &Holder> {
    lock.holders.iter().filter(|holder| holder.is_accused())
}

fn is(holder: &Holder, decoy: &Decoy) -> bool {
    // The tid of one that has exited may be somebody else's by now.
    (holder.tid, &holder.comm) == (decoy.tid, &decoy.comm)
}

fn name(decoy: &Decoy) -> String {
    format!("decoy {}[{}] ({:?})", decoy.comm, decoy.tid.0, decoy.what)
}

fn stuck_class(stuck: Stuck) -> &'static str {
    match stuck {
        Stuck::Fuse => "fuse",
        Stuck::Runnable => "runnable",
        Stuck::Lock => "lock",
        Stuck::BlockIo => "block-io",
    }
}

fn state_fits(stuck: Stuck, state: char) -> bool {
    match stuck {
        Stuck::Fuse => matches!(state, 'S' | 'D'),
        Stuck::Runnable => state == 'R',
        Stuck::Lock | Stuck::BlockIo => state == 'D',
    }
}

fn slack_ns() -> u64 {
    SLACK.as_nanos() as u64
}

fn listed(holders: &[Holder]) -> String {
    let one = |holder: &Holder| {
        let kinds: Vec<&str> = holder.evidence.iter().map(|one| &*one.kind).collect();
        format!(
            "{}[{}] {:?} {kinds:?}",
            holder.comm, holder.tid.0, holder.confidence
        )
    };
    holders.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
