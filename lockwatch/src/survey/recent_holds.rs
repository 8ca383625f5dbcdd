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
        memory::{KernelMemory, MemoryError, comm},
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
    functions: &mut Functions<'_>,
    memory: &mut dyn KernelMemory,
) -> Result<(), MemoryError> {
    let classes = Classes::new(layout);
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
                    && !is_too_old(hold.until_ns, began_ns)
                    && now.is_of(hold)
            }));
        }
        lock.recent_holds = told_once(holds)
            .iter()
            .filter_map(|hold| recent(hold, survey.taken_at_ns, functions, &mut survey.stacks))
            .collect();
    }
    Ok(())
}

fn is_too_old(until_ns: u64, began_ns: u64) -> bool {
    until_ns.saturating_add(TOO_OLD_NS) < began_ns
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
            comm: comm(hold.comm.as_bytes()),
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

#[cfg(test)]
mod tests {
    use lockwatch_ebpf::long_holds::{FRAMES, ring_of};

    use super::*;
    use crate::{
        kernel::symbols::Symbols,
        lock::LockAddr,
        report::example,
        survey::image::{self, Image, TAKEN_AT_NS},
    };

    const MM: u64 = 0xffff_8880_0000_1000;
    const LOCK: u64 = MM + 0x40;
    /// Of `mm_struct.start_stack`.
    const STACK: u64 = 0x7ffc_1234_5670;
    /// Return addresses, by the symbols below.
    const PROGRAM: u64 = 0xffff_ffff_c000_0010;
    const UP_READ: u64 = 0xffff_ffff_8100_0010;
    const FAULT: u64 = 0xffff_ffff_8100_0110;
    const ENTRY: u64 = 0xffff_ffff_8100_0210;

    struct Kept(Vec<LongHold>);

    impl LongHolds for Kept {
        fn of_class(&self, class: u64, _: u64) -> Vec<LongHold> {
            let of_it = self.0.iter().filter(|hold| hold.class == class);
            of_it.copied().collect()
        }
    }

    fn symbols() -> Symbols {
        let text = "ffffffff81000000 T up_read\nffffffff81000100 T do_fault\n\
                    ffffffff81000200 T asm_exc\nffffffff81000300 T end\n\
                    ffffffffc0000000 t bpf_prog_1\nffffffffc0000100 t bpf_prog_2\n";
        Symbols::parse(text.to_owned()).unwrap()
    }

    /// Task 2 held the lock from 300 to 700 for read, at 1,000 the survey was taken.
    fn hold() -> LongHold {
        let mut frames = [0; FRAMES];
        frames[..4].copy_from_slice(&[PROGRAM, UP_READ, FAULT, ENTRY]);
        LongHold {
            lock: LOCK,
            class: 1,
            since_ns: 300,
            until_ns: 700,
            start_time_ns: 2,
            tid: 2,
            tgid: 1,
            comm: [u64::from_le_bytes(*b"filebeat"), 0],
            object: [STACK, 0, 0],
            how: flags::READ,
            frames,
            ..LongHold::default()
        }
    }

    /// What is told of the mmap_lock of process 1, for which somebody has waited for 200 ns.
    fn told_of(holds: &[LongHold]) -> Vec<RecentHold> {
        told_by(holds, |_| {})
    }

    fn told_by(holds: &[LongHold], change: impl FnOnce(&mut Lock)) -> Vec<RecentHold> {
        let mut image = Image::default();
        image.task(0);
        image.task(1);
        image.set(MM + 0x30, STACK);
        let look = image.look(2);
        let mut lock = example::mmap_lock(LOCK, 1, "filebeat");
        let waiter = example::task(9, 9, "top");
        let mut stacks = Stacks::default();
        let stack = stacks.intern(vec!["down_read+0x1".to_owned()]);
        lock.waiters = vec![example::waiter(
            1,
            waiter,
            LockMode::Write,
            200,
            "top",
            stack,
        )];
        change(&mut lock);
        let mut survey = example::survey(vec![lock], stacks);
        survey.taken_at_ns = TAKEN_AT_NS;
        let (layout, symbols) = (image::layout(), symbols());
        let kept = Kept(holds.to_vec());
        describe(
            &mut survey,
            &look,
            &kept,
            &layout,
            &mut Functions::new(&symbols),
            &mut image,
        )
        .unwrap();
        let lock = survey.locks.remove(0);
        if let Some(first) = lock.recent_holds.first() {
            let frames: Vec<_> = survey.stacks.frames(first.stack).to_vec();
            assert_eq!(frames, ["do_fault+0x10", "asm_exc+0x10"]);
        }
        lock.recent_holds
    }

    #[test]
    fn an_earlier_hold_of_the_lock_is_told_with_its_times_and_place() {
        assert_eq!(ring_of(1), 1);
        let told = told_of(&[hold()]);
        let [one] = told.as_slice() else {
            panic!("{told:?}")
        };
        assert_eq!(
            (one.task.key.tid, one.task.tgid, &*one.task.comm, one.mode),
            (Tid(2), Tgid(1), "filebeat", LockMode::Read)
        );
        assert_eq!((one.held, one.ended_ago), (Nanos(400), Nanos(300)));
        assert_eq!(one.released_in.as_deref(), Some("do_fault"));
    }

    #[test]
    fn whatever_lay_there_before_is_not_this_lock() {
        let other = |change: fn(&mut LongHold)| {
            let mut hold = hold();
            change(&mut hold);
            told_of(&[hold]).len()
        };
        assert_eq!(other(|_| ()), 1);
        assert_eq!(other(|hold| hold.lock += 8), 0, "another lock");
        assert_eq!(other(|hold| hold.class = 2), 0, "another class");
        assert_eq!(other(|hold| hold.object[0] += 16), 0, "another exec");
        assert_eq!(other(|hold| hold.until_ns = 1_001), 0, "it is not over");
        assert_eq!(
            other(|hold| hold.since_ns = 701),
            0,
            "it ended before it began"
        );
        assert_eq!(other(|hold| hold.how = 6), 0, "no mode");
        // Process 1 was started at 1.
        assert_eq!(other(|hold| hold.since_ns = 0), 0, "older than the process");
        // The host slept before it was taken: the clock of the start went on.
        let slept = |hold: &mut LongHold| (hold.since_ns, hold.asleep_ns) = (0, 5);
        assert_eq!(other(slept), 1);
    }

    #[test]
    fn of_what_nothing_tells_apart_nothing_is_told() {
        let of = |change: fn(&mut Lock)| told_by(&[hold()], change).len();
        assert_eq!(of(|_| ()), 1);
        let no_owner = |lock: &mut Lock| {
            lock.object = Some(LockObject::Mm {
                mm: MM,
                owner: None,
            });
        };
        assert_eq!(of(no_owner), 0);
        assert_eq!(of(|lock| lock.class = LockClass::AnonVma), 0);
        assert_eq!(of(|lock| lock.class = LockClass::Unknown), 0);
        assert_eq!(of(|lock| lock.address = LockAddr(LOCK + 0x1000)), 0);
    }

    #[test]
    fn old_holds_have_nothing_to_do_with_it() {
        assert!(!is_too_old(700, 800));
        assert!(!is_too_old(700, TOO_OLD_NS + 700));
        assert!(is_too_old(700, TOO_OLD_NS + 701));
    }

    #[test]
    fn the_last_comes_first_and_what_two_tell_is_told_once() {
        let again = LongHold {
            since_ns: 710,
            until_ns: 900,
            ..hold()
        };
        let by_another = LongHold {
            since_ns: 301,
            until_ns: 699,
            ..hold()
        };
        let other_task = LongHold { tid: 3, ..hold() };
        let told = told_of(&[hold(), again, by_another, other_task]);
        let told: Vec<_> = told
            .iter()
            .map(|hold| (hold.task.key.tid.0, hold.ended_ago.0))
            .collect();
        assert_eq!(told, [(2, 100), (2, 300), (3, 300)]);
    }

    #[test]
    fn a_stack_without_a_lock_function_names_no_place() {
        let mut hold = hold();
        hold.frames = [0; FRAMES];
        hold.frames[..2].copy_from_slice(&[PROGRAM, FAULT]);
        let symbols = symbols();
        let mut functions = Functions::new(&symbols);
        let frames = hold.frames[..2].to_vec();
        let frames = outside_of_lock(frames, &mut functions);
        assert!(frames.is_empty());
    }
}
