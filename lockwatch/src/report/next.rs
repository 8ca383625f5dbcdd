//! What will happen next: who gets a lock when its holder lets go, in words. The rules
//! are those of [`crate::graph::next`].

use schemars::JsonSchema;
use serde::Serialize;

use super::{Lock, Report, Waiter};
use crate::{
    figures::Count,
    graph::{
        chain::Step,
        next::{self, GRANTED_AT_ONCE},
    },
    lock::{self, LockKind, LockMode, LockState},
    task::{StuckClass, Tid},
};

/// Who gets a lock next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Next {
    /// Thread ids of queued tasks: one of them is the first of the queue to get it. In the
    /// order of the queue.
    pub tids: Vec<Tid>,
    /// When that happens, and who follows, in words, without a full stop.
    pub sentence: String,
}

impl Next {
    /// None where it is not known: the lock's words contradict each other, or nobody waits.
    pub(super) fn of(report: &Report, at: &Lock, lock: &lock::Lock) -> Option<Self> {
        let tids: Vec<Tid> = next::first(lock).into_iter().map(|key| key.tid).collect();
        let sentence = sentence(report, at, tids.len())?;
        (!tids.is_empty()).then_some(Self { tids, sentence })
    }
}

/// The queue as the rules see it.
pub(super) struct Queue<'a> {
    pub(super) first: &'a Waiter,
    pub(super) second: Option<&'a Waiter>,
    pub(super) readers: usize,
    writers: usize,
}

impl<'a> Queue<'a> {
    /// None if nobody is blocked.
    pub(super) fn of(lock: &'a Lock) -> Option<Self> {
        let mut blocked = lock.blocked();
        let readers = lock
            .blocked()
            .filter(|waiter| waiter.mode == LockMode::Read)
            .count();
        Some(Self {
            first: blocked.next()?,
            second: blocked.next(),
            readers,
            writers: lock.blocked().count() - readers,
        })
    }

    pub(super) fn is_convoy(&self, lock: &Lock) -> bool {
        lock.state == LockState::ReadHeld && self.first.mode == LockMode::Write && self.readers > 0
    }
}

/// What follows when it is released.
fn next_of_another(report: &Report, lock: &Lock, together: usize) -> Option<String> {
    let first = lock.blocked().next()?;
    let when = match lock.state {
        LockState::Inconsistent => return None,
        LockState::Free => "as soon as it runs",
        // A frozen file system: no task will release it.
        LockState::WriteHeld if lock.note.is_some() => "when it is thawed",
        LockState::ReadHeld | LockState::WriteHeld => release(report, lock),
    };
    let order = if lock.by_priority {
        ", by priority"
    } else {
        ""
    };
    let last = lock.blocked().nth(together.saturating_sub(1));
    let first = match last.filter(|last| last.position > first.position) {
        Some(last) => format!("#{} to #{} together", first.position, last.position),
        None => format!("#{}", first.position),
    };
    Some(format!("{when}: {first}{order}"))
}

/// `together`: so many get it first.
fn sentence(report: &Report, lock: &Lock, together: usize) -> Option<String> {
    if lock.kind != LockKind::Rwsem || lock.by_priority {
        return next_of_another(report, lock, together);
    }
    let queue = Queue::of(lock)?;
    let when = match lock.state {
        LockState::Inconsistent => return None,
        LockState::Free => "as soon as it runs",
        LockState::ReadHeld | LockState::WriteHeld => release(report, lock),
    };
    let who = match queue.first.mode {
        LockMode::Write => after_writer(&queue),
        LockMode::Read => readers(&queue),
    };
    let faster = match lock.spinners.len() {
        0 => String::new(),
        1 => "; a task that spins may be faster".to_owned(),
        spinners => format!(
            "; one of {} tasks that spin may be faster",
            Count::of(spinners)
        ),
    };
    Some(format!("{when}: {who}{faster}"))
}

/// What has to happen for the lock to be released, as far as that is known.
fn release(report: &Report, lock: &Lock) -> &'static str {
    if report.chains_of(lock).any(|chain| chain.cycle) {
        return "when the circle opens";
    }
    let many = lock.reader_count.is_some_and(|count| count > 1);
    let mut known = lock.known_holders();
    let (Some(holder), None, false) = (known.next(), known.next(), many) else {
        return if many {
            "when all its readers have let go"
        } else {
            "when it is released"
        };
    };
    // The holder must itself be the root, or the daemon that it waits for: otherwise more
    // than that has to happen.
    let is_root = report.chains_of(lock).any(|chain| {
        let route = chain.graph.route(lock.at);
        let (Some([Step::Task(task)]) | Some([Step::Task(task), Step::Daemon(_)])) =
            route.as_deref()
        else {
            return false;
        };
        !chain.cycle && task.key.tid == holder.tid
    });
    match holder.stuck.class {
        StuckClass::BlockIo if is_root => "when that I/O completes",
        StuckClass::NetworkFs if is_root => "when that server answers",
        StuckClass::Fuse if is_root => "when that daemon answers",
        StuckClass::Runnable if is_root => "when it gets a CPU and lets go",
        _ => "when it is released",
    }
}

/// `writer #1, then the 1,468 readers`
fn after_writer(queue: &Queue<'_>) -> String {
    let first = format!("writer #{}", queue.first.position);
    match queue.second {
        None => first,
        Some(second) if second.mode == LockMode::Write => {
            format!("{first}, then writer #{}", second.position)
        }
        Some(second) if queue.readers == 1 => format!("{first}, then reader #{}", second.position),
        Some(_) if queue.writers == 1 => {
            format!("{first}, then the {} readers", Count::of(queue.readers))
        }
        Some(_) => format!("{first}, then {}", readers(queue)),
    }
}

/// `up to 256 of the 1,468 readers, also those behind queued writers`
fn readers(queue: &Queue<'_>) -> String {
    let mut words = if queue.readers == 1 {
        "the one queued reader".to_owned()
    } else if queue.readers <= GRANTED_AT_ONCE {
        format!("the {} queued readers", queue.readers)
    } else {
        format!(
            "up to {GRANTED_AT_ONCE} of the {} queued readers",
            Count::of(queue.readers)
        )
    };
    let behind = match queue.first.mode {
        LockMode::Read => queue.writers > 0,
        LockMode::Write => queue.writers > 1,
    };
    if behind && queue.readers > 1 {
        words.push_str(", also those behind queued writers");
    }
    words
}

#[cfg(test)]
mod tests {
    use crate::{
        lock::{LockKind, LockMode},
        report::{
            Next,
            example::{self, SEC},
        },
        survey::Survey,
    };

    #[test]
    fn readers_of_a_percpu_rwsem_are_let_in_together() {
        let mut survey = example::write_held_directory();
        let lock = &mut survey.locks[0];
        lock.kind = LockKind::PercpuRwsem;
        let modes = [LockMode::Read, LockMode::Read, LockMode::Write];
        for (waiter, mode) in lock.waiters.iter_mut().zip(modes) {
            waiter.mode = mode;
        }
        assert!(lock.waiters.len() >= modes.len());
        let next = |survey: &Survey| -> Next {
            example::report(survey, SEC).locks[0].next.clone().unwrap()
        };
        let both = next(&survey);
        assert_eq!(both.tids.len(), 2);
        assert!(both.sentence.ends_with(": #1 to #2 together"), "{both:?}");
        survey.locks[0].waiters[1].mode = LockMode::Write;
        let one = next(&survey);
        assert!(one.sentence.ends_with(": #1"), "{one:?}");
    }
}
