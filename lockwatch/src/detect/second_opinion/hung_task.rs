//! What the hung-task detector said (kernel/hung_task.c).

use rustc_hash::FxHashMap;

use super::{ago, is_within, named};
use crate::{
    detect::Scene,
    figures::{Count, Span},
    kernel_log::{LoggedTask, Message, Said},
    lock::{Lock, LockMode, LockState},
    sleeper::Sleeper,
    task::{Nanos, Tid},
};

/// What the kernel's hung-task detector said of these tasks, which sleep and wait for the
/// same thing, or why it said nothing; `lock` is what they wait for, if it is a lock.
///
/// In words, without a full stop. `None`: there is nothing to say, as where nobody read how
/// the kernel's detectors are set.
pub fn of_hung_tasks(
    scene: &Scene<'_>,
    sleepers: &[&Sleeper],
    lock: Option<&Lock>,
) -> Option<String> {
    let sleeps = sleeps(sleepers);
    let mut words = said_of_tasks(scene, &sleeps)?;
    for more in said_of_owners(scene, &sleeps, lock) {
        words.push_str("; ");
        words.push_str(&more);
    }
    Some(words)
}

/// A sleep that a finding is about.
#[derive(Clone, Copy)]
struct Sleep {
    lasted: Nanos,
    killable: bool,
}

/// The present sleeps of these tasks.
fn sleeps(sleepers: &[&Sleeper]) -> FxHashMap<Tid, Sleep> {
    let sleeps = sleepers.iter().map(|sleeper| {
        let sleep = Sleep {
            lasted: sleeper.asleep,
            killable: sleeper.killable,
        };
        (sleeper.task.key.tid, sleep)
    });
    sleeps.collect()
}

/// True if this message is about a sleep that still lasts.
fn is_of(scene: &Scene<'_>, message: &Message, tid: Tid, sleeps: &FxHashMap<Tid, Sleep>) -> bool {
    sleeps
        .get(&tid)
        .is_some_and(|sleep| is_within(scene, message.at_ns, sleep.lasted))
}

fn said_of_tasks(scene: &Scene<'_>, sleeps: &FxHashMap<Tid, Sleep>) -> Option<String> {
    let log = scene.kernel_log;
    // The first message of each task.
    let mut named_at: FxHashMap<Tid, (u64, &LoggedTask)> = FxHashMap::default();
    for message in &log.messages {
        if let Said::HungTask { task, .. } = &message.said
            && is_of(scene, message, task.tid, sleeps)
        {
            named_at.entry(task.tid).or_insert((message.at_ns, task));
        }
    }
    let first = named_at.values().min_by_key(|(at, task)| (*at, task.tid));
    let Some(&(at, task)) = first else {
        return silence(scene, sleeps);
    };
    let ago = Span(ago(scene, at));
    let (count, all) = (named_at.len(), sleeps.len());
    let is_used_up = log
        .detectors
        .is_some_and(|detectors| detectors.hung_task_warnings == Some(0));
    let whom = match (count, all) {
        (1, 1) => "it".to_owned(),
        (1, _) => format!("one of them, {}", named(task)),
        _ if count == all => format!("all of them, first {}", named(task)),
        _ => format!(
            "{} of the {}, first {}",
            Count::of(count),
            Count::of(all),
            named(task)
        ),
    };
    let mut words = format!("the kernel's hung-task detector named {whom}, {ago} ago");
    let mut unnamed = sleeps.iter().filter(|(tid, _)| !named_at.contains_key(tid));
    if count < all && unnamed.all(|(_, sleep)| sleep.killable) {
        words.push_str("; it leaves killable sleepers out");
    } else if count < all && is_used_up {
        words.push_str("; its warnings are used up (kernel.hung_task_warnings = 0)");
    }
    Some(words)
}

/// Why it named none of them.
fn silence(scene: &Scene<'_>, sleeps: &FxHashMap<Tid, Sleep>) -> Option<String> {
    const WHO: &str = "the kernel's hung-task detector";
    let log = scene.kernel_log;
    let detectors = log.detectors?;
    // Nothing is known of these sleeps.
    if sleeps.is_empty() {
        return None;
    }
    let Some(timeout) = detectors.hung_task else {
        return Some(format!(
            "{WHO} is off (kernel.hung_task_timeout_secs = 0), or not built in"
        ));
    };
    let unkillable = sleeps.values().filter(|sleep| !sleep.killable);
    let Some(longest) = unkillable.map(|sleep| sleep.lasted).max() else {
        return Some(format!("{WHO} leaves killable sleepers out"));
    };
    if longest < timeout {
        return Some(format!(
            "{WHO} said nothing yet: its time is {}",
            Span(timeout)
        ));
    }
    // It looks once in that time, and counts from when it first saw the task asleep.
    if longest.0 < timeout.0.saturating_mul(2) {
        return Some(format!(
            "{WHO} said nothing yet: its time is {}, from when it first saw them asleep",
            Span(timeout)
        ));
    }
    if detectors.hung_task_warnings == Some(0) {
        return Some(format!(
            "{WHO} said nothing: its warnings are used up (kernel.hung_task_warnings = 0)"
        ));
    }
    Some(match &log.unread {
        Some(why) => format!("what {WHO} said could not be read: {why}"),
        None => format!("{WHO} named none of them in what the kernel's log still has"),
    })
}

/// Whom it named as owner of what they wait for, each once, against who holds it by ours.
fn said_of_owners(
    scene: &Scene<'_>,
    sleeps: &FxHashMap<Tid, Sleep>,
    lock: Option<&Lock>,
) -> Vec<String> {
    // More owners than this in turn say no more.
    const SHOWN: usize = 3;
    let mut owners: Vec<Owner<'_>> = Vec::new();
    // The newest first.
    for message in scene.kernel_log.messages.iter().rev() {
        if let Said::Blocker {
            task,
            lock: kind,
            owner,
            as_reader,
        } = &message.said
            && is_of(scene, message, task.tid, sleeps)
        {
            let owner = Owner {
                blocked: task,
                kind,
                task: owner.as_ref(),
                as_reader: *as_reader,
            };
            let is_known = |known: &Owner<'_>| {
                known.task.map(|task| task.tid) == owner.task.map(|task| task.tid)
            };
            if !owners.iter().any(is_known) {
                owners.push(owner);
            }
        }
    }
    owners.truncate(SHOWN);
    owners.iter().map(|owner| owner.words(lock)).collect()
}

/// What one of its messages says of an owner.
struct Owner<'a> {
    blocked: &'a LoggedTask,
    kind: &'a str,
    /// `None`: it found none.
    task: Option<&'a LoggedTask>,
    as_reader: bool,
}

impl Owner<'_> {
    fn words(&self, lock: Option<&Lock>) -> String {
        let kind = self.kind;
        let Some(task) = self.task else {
            return format!("it found no owner of the {kind}");
        };
        let owner = match (kind, self.as_reader) {
            ("semaphore", _) => format!("{} as the one that took the semaphore last", named(task)),
            (_, true) => format!("reader {} as the likely owner of the {kind}", named(task)),
            (_, false) => format!("{} as the likely owner of the {kind}", named(task)),
        };
        // The message has no address: it is about this lock if the task is in its queue.
        let is_of_lock = |lock: &&Lock| {
            let mut waiters = lock.waiters.iter();
            waiters.any(|waiter| waiter.task.key.tid == self.blocked.tid)
        };
        let Some(lock) = lock.filter(is_of_lock) else {
            return format!(
                "it names {owner} that {} waits for: not confirmed",
                named(self.blocked)
            );
        };
        let ours = lock
            .holders
            .iter()
            .find(|holder| holder.task.key.tid == task.tid);
        match ours {
            Some(holder) if holder.confidence.carries_weight() => {
                format!("it names {owner}, and so does lockwatch")
            }
            None if all_holders_are_known(lock) => format!(
                "it names {owner}, who does not hold it now by lockwatch's evidence: {}",
                self.why_stale()
            ),
            Some(_) | None => format!("it names {owner}: not confirmed"),
        }
    }

    /// How the kernel comes to a name that is not, or no longer, a holder's.
    fn why_stale(&self) -> &'static str {
        match (self.kind, self.as_reader) {
            // kernel/locking/semaphore.c: `last_holder` stands until the next one takes it;
            // who calls `up` need not have called `down`.
            ("semaphore", _) => "a semaphore does not know who released it",
            // kernel/locking/rwsem.c: one reader's name, which the reader alone takes away,
            // not one who releases in its place (`up_read_non_owner`).
            (_, true) => {
                "the lock's owner word keeps one reader's name, and may keep it when that one is gone"
            }
            (_, false) => "it may have let go since that was printed",
        }
    }
}

/// True if nobody can hold the lock but those that are named for certain.
fn all_holders_are_known(lock: &Lock) -> bool {
    let certain = |mode: LockMode| {
        lock.holders
            .iter()
            .filter(|holder| {
                holder.mode == mode
                    && holder.stood
                    && holder.confidence == crate::lock::Confidence::Certain
            })
            .count()
    };
    match lock.state {
        LockState::WriteHeld => certain(LockMode::Write) == 1,
        LockState::ReadHeld => lock
            .reader_count
            .is_some_and(|readers| readers > 0 && certain(LockMode::Read) == readers as usize),
        LockState::Free | LockState::Inconsistent => false,
    }
}
