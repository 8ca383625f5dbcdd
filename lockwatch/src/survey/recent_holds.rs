//! Who had a lock before, from what recorders of long holds have kept: never evidence for
//! who has it now.
//!
//! A lock is known by its address, and memory is used again. A hold counts as one of this
//! lock only if it was of the same class, if the words by which its object is told from
//! others read the same now as when it ended, and if it began after the process whose
//! address space it is. Of a class that nothing tells apart, none counts.

use lockwatch_ebpf::{
    counts::CLASS_IS_ADDRESS,
    long_holds::{LongHold, OBJECT_WORDS, ObjectWord, ROWS},
    stream::flags,
};
use zerocopy::IntoBytes as _;

use crate::{
    kernel::{
        arch::is_image_address,
        layout::Layout,
        lock_classes,
        memory::{KernelMemory, MemoryError, text},
        symbols::Symbols,
    },
    lock::{Lock, LockClass, LockMode, LockObject, RecentHold, Stacks},
    probes::long_holds::LongHolds,
    survey::{Survey, functions::Functions, look::Look, names},
    task::{Nanos, TaskKey, TaskName, Tgid, Tid},
};

/// A hold that was over so long before the oldest wait began has nothing to do with it, ns.
const TOO_OLD_NS: u64 = 600_000_000_000;

/// Says of each lock of a survey who had it before. The look is the survey's last one.
///
/// # Errors
/// When the memory cannot be read at all.
pub(super) fn describe(
    survey: &mut Survey,
    look: &Look,
    recorders: &dyn LongHolds,
    layout: &Layout,
    symbols: &Symbols,
    memory: &mut dyn KernelMemory,
) -> Result<(), MemoryError> {
    let classes = Classes::new(layout);
    let mut functions = Functions::new(symbols);
    for lock in &mut survey.locks {
        let began_ns = survey.taken_at_ns.saturating_sub(lock.oldest_wait().0);
        let mut holds = Vec::new();
        for class in classes.of(lock) {
            let now = match classes.words(class) {
                Some(words) => Object::read(lock, look, words, memory)?,
                None => Some(Object::PERMANENT),
            };
            let Some(now) = now else {
                continue;
            };
            let kept = recorders.of_class(class, classes.meaning);
            holds.extend(kept.into_iter().filter(|hold| {
                hold.lock == lock.address.0
                    && hold.since_ns <= hold.until_ns
                    // What was let go since is over for those who wait, too.
                    && hold.until_ns <= survey.taken_at_ns
                    && hold.until_ns.saturating_add(TOO_OLD_NS) >= began_ns
                    && now.is_of(hold)
            }));
        }
        lock.recent_holds = told_once(holds)
            .iter()
            .filter_map(|hold| recent(hold, survey.taken_at_ns, &mut functions, &mut survey.stacks))
            .collect();
    }
    Ok(())
}

/// The last one first; of what several recorders tell of one hold, what the first does.
fn told_once(mut holds: Vec<LongHold>) -> Vec<LongHold> {
    let task = |hold: &LongHold| (hold.tid, hold.start_time_ns);
    holds.sort_by_key(|hold| std::cmp::Reverse(hold.until_ns));
    let mut told: Vec<LongHold> = Vec::new();
    for hold in holds {
        let overlaps =
            |other: &&LongHold| other.since_ns < hold.until_ns && hold.since_ns < other.until_ns;
        let same = told.iter().filter(|other| task(other) == task(&hold));
        if same.filter(overlaps).count() == 0 {
            told.push(hold);
        }
    }
    told
}

/// As the domain has it; `None` if it says what cannot be.
fn recent(
    hold: &LongHold,
    now_ns: u64,
    functions: &mut Functions<'_>,
    stacks: &mut Stacks,
) -> Option<RecentHold> {
    let mode = match hold.how {
        flags::READ => LockMode::Read,
        flags::WRITE => LockMode::Write,
        _ => return None,
    };
    let frames = hold.frames.iter().copied().take_while(|&at| at != 0);
    let outside: Vec<u64> = outside_of_lock(frames.collect(), functions);
    let released_in = outside.first().map(|&at| functions.stem(at).to_owned());
    let shown = outside.iter().map(|&at| functions.show(at)).collect();
    Some(RecentHold {
        task: TaskName {
            key: TaskKey {
                tid: Tid(hold.tid),
                start_ns: hold.start_time_ns,
            },
            tgid: Tgid(hold.tgid),
            comm: text(hold.comm.as_bytes()),
        },
        mode,
        held: Nanos::between(hold.since_ns, hold.until_ns),
        ended_ago: Nanos::between(hold.until_ns, now_ns),
        released_in,
        stack: stacks.intern(shown),
    })
}

/// The frames from the first one on that is neither the program's, nor a tracer's, nor the
/// lock's. The innermost ones are always the program's: nothing before the first known
/// function of the lock counts.
fn outside_of_lock(mut frames: Vec<u64>, functions: &mut Functions<'_>) -> Vec<u64> {
    let is_in_lock = |stem: &str| !stem.is_empty() && lock_classes::is_lock_code(stem);
    let Some(lock) = frames.iter().position(|&at| is_in_lock(functions.stem(at))) else {
        return Vec::new();
    };
    let caller = frames[lock..].iter().position(|&at| {
        let stem = functions.stem(at);
        names::is_caller(stem) && !is_in_lock(stem)
    });
    match caller {
        Some(caller) => frames.split_off(lock + caller),
        None => Vec::new(),
    }
}

/// What recorders on this kernel call the classes of locks.
struct Classes {
    known: Vec<LockClass>,
    words: [[ObjectWord; OBJECT_WORDS]; ROWS],
    meaning: u64,
}

impl Classes {
    fn new(layout: &Layout) -> Self {
        let rules = lock_classes::rules(layout);
        Self {
            known: rules.into_iter().map(|(_, class)| class).collect(),
            words: lock_classes::object_words(layout),
            meaning: lock_classes::meaning(layout),
        }
    }

    /// The numbers of a lock's class.
    fn of(&self, lock: &Lock) -> Vec<u64> {
        if is_image_address(lock.address.0) {
            return vec![lock.address.0];
        }
        let numbered = self.known.iter().zip(1..);
        let same = numbered.filter(|(class, _)| **class == lock.class);
        same.map(|(_, number)| number).collect()
    }

    /// By what its objects are told apart; `None` if it is one lock for ever.
    fn words(&self, class: u64) -> Option<&[ObjectWord]> {
        if class >= CLASS_IS_ADDRESS {
            return None;
        }
        Some(&self.words[class as usize % self.words.len()])
    }
}

/// What a lock is part of, as it is now.
struct Object {
    /// By what it is told from others. `None`: it has always been there.
    words: Option<[u64; OBJECT_WORDS]>,
    /// It is not older than this, in ns since boot.
    since_ns: u64,
}

impl Object {
    const PERMANENT: Self = Self {
        words: None,
        since_ns: 0,
    };

    /// `None` if nothing tells it from others.
    ///
    /// # Errors
    /// When the memory cannot be read at all.
    fn read(
        lock: &Lock,
        look: &Look,
        words: &[ObjectWord],
        memory: &mut dyn KernelMemory,
    ) -> Result<Option<Self>, MemoryError> {
        let since_ns = match &lock.object {
            // A child has its parent's words, and may have its memory after another child.
            Some(LockObject::Mm { owner, .. }) => {
                let tgid = owner.as_ref().map(|(tgid, _)| tgid.0);
                let leader = look
                    .tasks
                    .iter()
                    .find(|task| Some(task.name.key.tid.0) == tgid);
                match leader {
                    Some(leader) => leader.name.key.start_ns,
                    None => return Ok(None),
                }
            }
            _ => 0,
        };
        let mut values = [0; OBJECT_WORDS];
        for (value, word) in values.iter_mut().zip(words) {
            if word.mask == 0 {
                continue;
            }
            let at = lock.address.0.wrapping_add(word.at);
            let Some(read) = memory.read_u64(at)? else {
                return Ok(None);
            };
            *value = read & word.mask;
        }
        // The first word of each class is never 0 in an object that is in use.
        Ok((values[0] != 0).then_some(Self {
            words: Some(values),
            since_ns,
        }))
    }

    /// Whether the hold was one of this very object's lock.
    fn is_of(&self, hold: &LongHold) -> bool {
        let began_ns = hold.since_ns.saturating_add(hold.asleep_ns);
        began_ns >= self.since_ns && self.words.is_none_or(|words| words == hold.object)
    }
}
