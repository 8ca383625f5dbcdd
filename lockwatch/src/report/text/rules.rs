//! What follows from the rules of a lock: `why`, `next` and `ways out`.
//!
//! The rules of an rwsem (kernel/locking/rwsem.c, 5.3 and later): the queue is first come, first
//! served; a reader that comes while tasks are queued queues too. A wake-up with a
//! writer in front wakes that writer alone. With a reader in front it grants the lock to
//! at most 256 queued readers, also to those behind queued writers. A writer is never
//! granted the lock: it is woken and takes it, and a spinner may be faster. A waiter in
//! front that gives up wakes those behind it.

use super::{Text, Tone};
use crate::{
    figures::Count,
    graph::chain::Step,
    lock::{LockKind, LockMode, LockState},
    report::{Lock, Report, Waiter},
    task::StuckClass,
};

/// `MAX_READERS_WAKEUP` of kernel/locking/rwsem.c.
const GRANTED_AT_ONCE: usize = 256;

/// The queue as the rules see it.
struct Queue<'a> {
    first: &'a Waiter,
    second: Option<&'a Waiter>,
    readers: usize,
    writers: usize,
}

impl<'a> Queue<'a> {
    /// None if nobody is blocked.
    fn of(lock: &'a Lock) -> Option<Self> {
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

    fn is_convoy(&self, lock: &Lock) -> bool {
        lock.state == LockState::ReadHeld && self.first.mode == LockMode::Write && self.readers > 0
    }
}

pub(super) fn why(lock: &Lock) -> Option<Text> {
    if lock.kind != LockKind::Rwsem {
        return why_not_an_rwsem(lock).map(Text::plain);
    }
    let queue = Queue::of(lock)?;
    let position = queue.first.position;
    let words = match (lock.state, queue.first.mode) {
        (LockState::ReadHeld, LockMode::Write) if queue.is_convoy(lock) => {
            return Some(
                Text::plain(format!(
                    "{} behind writer #{position} although the lock is only read-held (",
                    if queue.readers == 1 {
                        "a reader waits"
                    } else {
                        "readers wait"
                    }
                ))
                .with(Tone::Alarm, "convoy")
                .with(Tone::Plain, ")"),
            );
        }
        (LockState::ReadHeld, LockMode::Write) => {
            format!("writer #{position} waits until every reader has let go")
        }
        (LockState::ReadHeld, LockMode::Read) if lock.by_priority => {
            "readers queue although the lock is only read-held: a task is passing through"
                .to_owned()
        }
        (LockState::ReadHeld, LockMode::Read) => format!(
            "readers queue although the lock is only read-held and no writer is in front: \
             a wake-up grants it to at most {GRANTED_AT_ONCE} of them"
        ),
        (LockState::WriteHeld, _) => "nobody else gets a lock that is write-held".to_owned(),
        (LockState::Free, _) => {
            format!("the lock is free: #{position} has not taken it yet (woken, but not run?)")
        }
        (LockState::Inconsistent, _) => {
            return Some(Text::new().with(
                Tone::Alarm,
                format!(
                    "the lock's words contradict each other or the queue: count {}, owner {}",
                    lock.count, lock.owner
                ),
            ));
        }
    };
    Some(Text::plain(words))
}

/// The rules of the other locks. A mutex, an rt_mutex and a semaphore know one way to be
/// held. A per-CPU rwsem and a VMA are shut by a writer before the readers that are in have
/// left (kernel/locking/percpu-rwsem.c 5.7+, mm/mmap_lock.c 6.15+).
fn why_not_an_rwsem(lock: &Lock) -> Option<String> {
    let first = lock.blocked().next()?;
    let position = first.position;
    let words = match (lock.kind, lock.state) {
        (LockKind::Rwsem | LockKind::Unknown, _) => return None,
        (_, LockState::Inconsistent) => format!(
            "the lock's words contradict each other: count {}, owner {}",
            lock.count, lock.owner
        ),
        (_, LockState::Free) => {
            format!("the lock is free: #{position} has not taken it yet (woken, but not run?)")
        }
        (LockKind::Mutex | LockKind::RtMutex, _) => {
            "one task at a time has it, the others queue".to_owned()
        }
        (LockKind::Semaphore, _) => "all that the semaphore gives out is taken".to_owned(),
        (LockKind::PercpuRwsem, LockState::ReadHeld) => format!(
            "writer #{position} has shut it for new readers and waits until those that were in leave"
        ),
        (LockKind::PercpuRwsem, LockState::WriteHeld) => {
            "nobody else gets a lock that is write-held".to_owned()
        }
        (LockKind::VmaLock, _) => format!(
            "writer #{position} waits until everybody has left the memory area; it has mmap_lock for write meanwhile"
        ),
    };
    Some(words)
}

/// What follows when it is released.
fn next_of_another(report: &Report, lock: &Lock) -> Option<Text> {
    let first = lock.blocked().next()?;
    let when = match lock.state {
        LockState::Inconsistent => return Some(Text::new().with(Tone::Doubt, "not known")),
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
    Some(Text::plain(format!("{when}: #{}{order}", first.position)))
}

pub(super) fn next(report: &Report, lock: &Lock) -> Option<Text> {
    if lock.kind != LockKind::Rwsem || lock.by_priority {
        return next_of_another(report, lock);
    }
    let queue = Queue::of(lock)?;
    let when = match lock.state {
        LockState::Inconsistent => {
            return Some(Text::new().with(Tone::Doubt, "not known"));
        }
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
    Some(Text::plain(format!("{when}: {who}{faster}")))
}

/// What has to happen for the lock to be released, as far as that is known.
fn release(report: &Report, lock: &Lock) -> &'static str {
    let many = lock.reader_count.is_some_and(|count| count > 1);
    let mut known = lock.known_holders();
    let (Some(holder), None, false) = (known.next(), known.next(), many) else {
        return if many {
            "when all its readers have let go"
        } else {
            "when it is released"
        };
    };
    // The holder must itself be the root: otherwise more than that has to happen.
    let is_root = report.chains.iter().any(|chain| {
        !chain.cycle
            && matches!(chain.graph.route(lock.at).as_deref(), Some([Step::Task(task)]) if task.key.tid == holder.tid)
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

pub(super) fn ways_out(lock: &Lock) -> Option<Text> {
    let waiters = lock.blocked().count();
    let killable = lock.blocked().filter(|waiter| waiter.killable).count();
    let mut words = match (killable, waiters) {
        (_, 0) => return None,
        (0, 1) => "the only waiter is not killable".to_owned(),
        (_, 1) => "the only waiter is killable".to_owned(),
        (0, waiters) => format!("none of {} waiters is killable", Count::of(waiters)),
        (killable, waiters) if killable == waiters => {
            format!("all {} waiters are killable", Count::of(waiters))
        }
        (killable, waiters) => format!(
            "{} of {} waiters {} killable",
            Count::of(killable),
            Count::of(waiters),
            if killable == 1 { "is" } else { "are" }
        ),
    };
    if lock.kind == LockKind::Rwsem
        && !lock.by_priority
        && let Some(queue) = Queue::of(lock)
        && queue.is_convoy(lock)
        && queue.first.killable
        && queue
            .second
            .is_some_and(|second| second.mode == LockMode::Read)
    {
        words.push_str(", writer #1 too: without it the readers behind it get the lock");
    }
    words.push_str("; nothing here is safe to force");
    Some(Text::plain(words))
}
