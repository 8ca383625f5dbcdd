//! What the words of a lock mean.

use crate::{
    kernel::memory::{half_word, word},
    lock::LockState,
};

/// The words of a lock, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockWord {
    /// The raw word that counts: `count`, `readers`, `block`; a mutex has none, and its
    /// `owner` stands here too.
    pub count: u64,
    /// It is a sum that can be negative, and people write it in decimal.
    pub is_signed: bool,
    /// The raw word that names somebody, 0 where the lock has none.
    pub owner: u64,
    /// Held how.
    pub state: LockState,
    /// Readers counted in, those granted but not yet running included; `None` where the
    /// lock does not count them in one place. 0 if not read-held.
    pub readers: Option<u32>,
    /// The words agree that tasks are queued.
    pub has_waiters: bool,
    /// The `task_struct` that the owner word names, 0 for none.
    pub owner_task: u64,
    /// What `owner_task` means.
    pub owner_is: OwnerIs,
    /// The `task_struct` of a writer that keeps others out and waits for the readers to
    /// leave, 0 for none.
    pub drainer: u64,
}

/// What the task that an owner word names is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerIs {
    /// The one who has it.
    Holder,
    /// The next to have it: it was handed on, and that task has not run yet.
    Next,
    /// A reader that had it once: a hint, unless readers clear it.
    Reader,
    /// The last one that had it: a hint.
    Last,
}

/// Where the words of a lock lie (offsets in bytes), and by which rules they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WordLayout {
    /// rwsem up to 5.2: biases added up in one signed word. (3.10 to 4.7 have no owner;
    /// 4.8 on, the writer, or a small number for readers.)
    RwsemBiases {
        /// `count`
        count: usize,
        /// `owner`
        owner: Option<usize>,
    },
    /// rwsem from 5.3: bits.
    RwsemBits {
        /// `count`
        count: usize,
        /// `owner`
        owner: usize,
    },
    /// rwsem of PREEMPT_RT: a count beside an rt_mutex.
    RwsemRt {
        /// `readers`
        readers: usize,
        /// `rtmutex.owner`
        owner: usize,
    },
    /// mutex from 4.10.
    Mutex {
        /// `owner`
        owner: usize,
    },
    /// rt_mutex, and the mutex of PREEMPT_RT.
    RtMutex {
        /// `owner`
        owner: usize,
    },
    /// semaphore.
    Semaphore {
        /// `count`
        count: usize,
        /// `last_holder` (`DETECT_HUNG_TASK_BLOCKER`)
        last_holder: Option<usize>,
    },
    /// percpu_rw_semaphore.
    PercpuRwsem {
        /// `block`
        block: usize,
        /// `writer.task`
        writer: usize,
    },
}

impl WordLayout {
    /// Decodes the words of a lock; `queued` if its list has entries, which the oldest
    /// form cannot be read without.
    pub fn decode(&self, bytes: &[u8], queued: bool) -> LockWord {
        match *self {
            Self::RwsemBiases { count, owner } => biases(
                word(bytes, count),
                owner.map_or(0, |owner| word(bytes, owner)),
                queued,
            ),
            Self::RwsemBits { count, owner } => bits(word(bytes, count), word(bytes, owner)),
            Self::RwsemRt { readers, owner } => rt(half_word(bytes, readers), word(bytes, owner)),
            Self::Mutex { owner } => mutex(word(bytes, owner)),
            Self::RtMutex { owner } => rt_mutex(word(bytes, owner)),
            Self::Semaphore { count, last_holder } => semaphore(
                half_word(bytes, count),
                last_holder.map_or(0, |last| word(bytes, last)),
            ),
            Self::PercpuRwsem { block, writer } => {
                percpu(half_word(bytes, block), word(bytes, writer), queued)
            }
        }
    }
}

impl LockWord {
    /// `vm_refcnt` of a VMA that `writer` waits for (include/linux/mmap_lock.h 6.15+): 1
    /// while attached to its mm, 1 more for each reader, and a bit that shuts readers out.
    pub fn of_vma(refcnt: u32, detaches: bool, writer: u64) -> Self {
        const SHUT: u32 = 1 << 30;
        let own = u32::from(!detaches);
        let readers = (refcnt & (SHUT - 1)).checked_sub(own);
        let state = match (refcnt & SHUT != 0, readers) {
            (true, Some(0)) => LockState::Free,
            (true, Some(_)) => LockState::ReadHeld,
            _ => LockState::Inconsistent,
        };
        Self {
            count: refcnt.into(),
            is_signed: false,
            owner: 0,
            state,
            readers: readers_of(state, readers.unwrap_or(0).into()),
            has_waiters: true,
            owner_task: 0,
            owner_is: OwnerIs::Holder,
            drainer: if state == LockState::Inconsistent {
                0
            } else {
                writer
            },
        }
    }
}

fn readers_of(state: LockState, readers: u64) -> Option<u32> {
    Some(match state {
        LockState::ReadHeld => u32::try_from(readers).unwrap_or(u32::MAX),
        _ => 0,
    })
}

/// lib/rwsem.c of 3.10, kernel/locking/rwsem-xadd.c of 4.8–5.2 (64 bit): each reader that
/// has it or asks for it adds 1; a non-empty queue adds -2^32; each writer that has it or
/// asks for it adds 1 - 2^32.
fn biases(count: u64, owner: u64, queued: bool) -> LockWord {
    const READER_OWNED: u64 = 1 << 0;
    const OWNER_FLAGS: u64 = 0b11;
    let active = count & 0xffff_ffff;
    let biases = -((count as i64) >> 32);
    let writers = (biases - i64::from(queued)).max(0) as u64;
    let owner_is = if owner & READER_OWNED == 0 {
        OwnerIs::Holder
    } else {
        OwnerIs::Reader
    };
    let state = match (active, writers) {
        (0, 0) => LockState::Free,
        // The queue's own bias, seen before or after its list.
        (0, 1) if !queued => LockState::Free,
        // Biases with nobody behind them: leaked, nobody will ever be woken.
        (0, _) => LockState::Inconsistent,
        (_, 0) => LockState::ReadHeld,
        // A writer asks beside readers, or readers ask beside a writer.
        (active, writers) if active > writers && owner & READER_OWNED != 0 => LockState::ReadHeld,
        _ => LockState::WriteHeld,
    };
    LockWord {
        count,
        is_signed: true,
        owner,
        state,
        readers: readers_of(state, active.saturating_sub(writers)),
        has_waiters: biases > 0,
        owner_task: owner & !OWNER_FLAGS,
        owner_is,
        drainer: 0,
    }
}

/// kernel/locking/rwsem.c of 5.3 and later.
fn bits(count: u64, owner: u64) -> LockWord {
    const WRITER_LOCKED: u64 = 1 << 0;
    const FLAG_WAITERS: u64 = 1 << 1;
    const READER_SHIFT: u32 = 8;
    const READ_FAIL: u64 = 1 << 63;
    const OWNER_READER: u64 = 1 << 0;
    /// READER_OWNED and NONSPINNABLE (two of them before 5.11).
    const OWNER_FLAGS: u64 = 0b111;
    let readers = (count & !READ_FAIL) >> READER_SHIFT;
    let writer = count & WRITER_LOCKED != 0;
    let state = match (writer, readers) {
        _ if count & READ_FAIL != 0 => LockState::Inconsistent,
        // A reader adds its bias before it sees the writer: readers beside a writer are
        // passing, not holding.
        (true, _) => LockState::WriteHeld,
        (false, 0) => LockState::Free,
        (false, _) => LockState::ReadHeld,
    };
    LockWord {
        count,
        is_signed: false,
        owner,
        state,
        readers: readers_of(state, readers),
        has_waiters: count & FLAG_WAITERS != 0,
        owner_task: owner & !OWNER_FLAGS,
        owner_is: if owner & OWNER_READER == 0 {
            OwnerIs::Holder
        } else {
            OwnerIs::Reader
        },
        drainer: 0,
    }
}

/// The flag that an rt_mutex keeps in its owner word: it has waiters.
const RT_HAS_WAITERS: u64 = 1;

/// kernel/locking/rwbase_rt.c of 5.15 and later, rwsem-rt.c of the 5.10 patches.
fn rt(readers: u32, owner: u64) -> LockWord {
    const READER_BIAS: u32 = 1 << 31;
    const WRITER_BIAS: u32 = 1 << 30;
    let counted = readers & (WRITER_BIAS - 1);
    let task = owner & !RT_HAS_WAITERS;
    let (state, drainer) = match readers {
        // Open to readers: an owner of the rt_mutex is only passing.
        _ if readers & READER_BIAS != 0 => match counted {
            0 => (LockState::Free, 0),
            _ => (LockState::ReadHeld, 0),
        },
        WRITER_BIAS => (LockState::WriteHeld, 0),
        // The owner of the rt_mutex is the next writer, woken.
        0 => (LockState::Free, 0),
        _ if readers < WRITER_BIAS => (LockState::ReadHeld, task),
        _ => (LockState::Inconsistent, 0),
    };
    LockWord {
        count: readers.into(),
        is_signed: false,
        owner,
        state,
        readers: readers_of(state, counted.into()),
        has_waiters: owner & RT_HAS_WAITERS != 0 || drainer != 0,
        owner_task: if state == LockState::WriteHeld {
            task
        } else {
            0
        },
        owner_is: OwnerIs::Holder,
        drainer,
    }
}

/// kernel/locking/mutex.c of 4.10 and later.
fn mutex(owner: u64) -> LockWord {
    const FLAG_WAITERS: u64 = 1 << 0;
    const FLAG_PICKUP: u64 = 1 << 2;
    const FLAGS: u64 = 0b111;
    exclusive(
        owner,
        owner & !FLAGS,
        owner & FLAG_WAITERS != 0,
        if owner & FLAG_PICKUP == 0 {
            OwnerIs::Holder
        } else {
            OwnerIs::Next
        },
    )
}

/// kernel/locking/rtmutex.c, all versions. With waiters and no owner it was handed on, and
/// the first waiter has not run yet.
fn rt_mutex(owner: u64) -> LockWord {
    exclusive(
        owner,
        owner & !RT_HAS_WAITERS,
        owner & RT_HAS_WAITERS != 0,
        OwnerIs::Holder,
    )
}

fn exclusive(owner: u64, task: u64, has_waiters: bool, owner_is: OwnerIs) -> LockWord {
    LockWord {
        count: owner,
        is_signed: false,
        owner,
        state: if task == 0 {
            LockState::Free
        } else {
            LockState::WriteHeld
        },
        readers: Some(0),
        has_waiters,
        owner_task: task,
        owner_is,
        drainer: 0,
    }
}

/// kernel/locking/semaphore.c: `count` is what is left to take.
fn semaphore(count: u32, last_holder: u64) -> LockWord {
    LockWord {
        count: count.into(),
        is_signed: false,
        owner: last_holder,
        state: if count == 0 {
            LockState::WriteHeld
        } else {
            LockState::Free
        },
        readers: Some(0),
        // It keeps no flag: an up() hands straight on, so tasks queue only at 0.
        has_waiters: count == 0,
        owner_task: last_holder,
        owner_is: OwnerIs::Last,
        drainer: 0,
    }
}

/// kernel/locking/percpu-rwsem.c of 5.7 and later: readers are counted per CPU, and the
/// writer is named only while it waits for them.
fn percpu(block: u32, writer: u64, queued: bool) -> LockWord {
    let state = match (block, writer) {
        (0, _) => LockState::Free,
        (1, 0) => LockState::WriteHeld,
        (1, _) => LockState::ReadHeld,
        _ => LockState::Inconsistent,
    };
    LockWord {
        count: block.into(),
        is_signed: false,
        owner: writer,
        state,
        readers: (state != LockState::ReadHeld).then_some(0),
        has_waiters: queued || writer != 0,
        owner_task: 0,
        owner_is: OwnerIs::Holder,
        drainer: if block == 1 { writer } else { 0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: u64 = 0xffff_8881_0000_4000;

    #[test]
    fn words_of_5_3_and_later() {
        let decode = |count, owner| {
            let word = bits(count, owner);
            (word.state, word.readers, word.has_waiters, word.owner_task)
        };
        use LockState::{Free, Inconsistent, ReadHeld, WriteHeld};
        assert_eq!(decode(0x102, TASK | 3), (ReadHeld, Some(1), true, TASK));
        assert_eq!(decode(0x3, TASK), (WriteHeld, Some(0), true, TASK));
        // An arriving reader has added its bias beside the writer.
        assert_eq!(decode(0x103, TASK).0, WriteHeld);
        // WAITERS and HANDOFF alone: woken, not taken yet.
        assert_eq!(decode(0x6, 0).0, Free);
        assert_eq!(decode(0x2_0000_0000 << 8 | 2, 3).1, Some(u32::MAX));
        assert_eq!(decode(1 << 63, 0).0, Inconsistent);
        assert_eq!(bits(0x102, TASK | 1).owner_is, OwnerIs::Reader);
        assert_eq!(bits(0x3, TASK | 2).owner_is, OwnerIs::Holder);
    }

    #[test]
    fn words_of_5_2_and_earlier() {
        let decode = |count: i64, owner, queued| {
            let word = biases(count as u64, owner, queued);
            (word.state, word.readers)
        };
        use LockState::{Free, Inconsistent, ReadHeld, WriteHeld};
        assert_eq!(decode(0, 0, false), (Free, Some(0)));
        assert_eq!(decode(3, 0, false), (ReadHeld, Some(3)));
        // The same word twice: one writer, or the incident's one reader with a queue.
        assert_eq!(decode(-4_294_967_295, 0, false), (WriteHeld, Some(0)));
        assert_eq!(decode(-4_294_967_295, 0, true), (ReadHeld, Some(1)));
        assert_eq!(decode(-8_589_934_591, 0, true), (WriteHeld, Some(0)));
        assert_eq!(decode(-4_294_967_296, 0, true), (Free, Some(0)));
        assert_eq!(decode(-4_294_967_296, 0, false), (Free, Some(0)));
        assert_eq!(decode(-4_294_967_296 + 5, 1, true), (ReadHeld, Some(5)));
        assert_eq!(
            decode(-4_294_967_296 + 5, TASK, false),
            (WriteHeld, Some(0)),
            "readers ask beside a writer"
        );
        assert_eq!(
            decode(-8_589_934_592 + 3, TASK | 3, true),
            (ReadHeld, Some(2)),
            "a writer asks beside readers"
        );
        // Two biases of a queue and nobody active: leaked.
        let leaked = biases(0xffff_fffe_0000_0000, 1, true);
        assert_eq!((leaked.state, leaked.has_waiters), (Inconsistent, true));
        assert_eq!(biases(1, TASK | 3, false).owner_task, TASK);
        assert_eq!(biases(1, 1, false).owner_is, OwnerIs::Reader);
    }

    #[test]
    fn words_of_preempt_rt() {
        let decode = |readers, owner| {
            let word = rt(readers, owner);
            (word.state, word.readers, word.owner_task, word.drainer)
        };
        use LockState::{Free, Inconsistent, ReadHeld, WriteHeld};
        assert_eq!(decode(0x8000_0000, 0), (Free, Some(0), 0, 0));
        assert_eq!(
            decode(0x8000_0003, TASK),
            (ReadHeld, Some(3), 0, 0),
            "the owner of the rt_mutex is passing"
        );
        assert_eq!(decode(2, TASK | 1), (ReadHeld, Some(2), 0, TASK));
        assert_eq!(decode(0, TASK | 1), (Free, Some(0), 0, 0), "woken");
        assert_eq!(decode(1 << 30, TASK), (WriteHeld, Some(0), TASK, 0));
        assert_eq!(decode((1 << 30) + 1, TASK).0, Inconsistent);
        assert!(rt(2, TASK).has_waiters, "the draining writer waits");
        assert!(!rt(1 << 30, TASK).has_waiters);
    }

    #[test]
    fn words_of_mutexes() {
        let held = mutex(TASK | 1);
        assert_eq!(
            (held.state, held.owner_task, held.owner_is, held.has_waiters),
            (LockState::WriteHeld, TASK, OwnerIs::Holder, true)
        );
        // HANDOFF asks for it; PICKUP has handed it on.
        assert_eq!(mutex(TASK | 3).owner_is, OwnerIs::Holder);
        assert_eq!(mutex(TASK | 5).owner_is, OwnerIs::Next);
        assert_eq!(
            (mutex(0).state, mutex(0).has_waiters),
            (LockState::Free, false)
        );
        // Flags alone while tasks wait: legal until the woken one runs.
        assert_eq!(
            (mutex(3).state, mutex(3).has_waiters),
            (LockState::Free, true)
        );
    }

    #[test]
    fn words_of_the_others() {
        let held = rt_mutex(TASK | 1);
        assert_eq!((held.state, held.owner_task), (LockState::WriteHeld, TASK));
        assert_eq!(
            (rt_mutex(1).state, rt_mutex(1).has_waiters),
            (LockState::Free, true)
        );
        let taken = semaphore(0, TASK);
        assert_eq!(
            (taken.state, taken.owner_is, taken.has_waiters),
            (LockState::WriteHeld, OwnerIs::Last, true)
        );
        assert!(!semaphore(2, 0).has_waiters);
        let drains = percpu(1, TASK, false);
        assert_eq!(
            (
                drains.state,
                drains.readers,
                drains.drainer,
                drains.owner_task
            ),
            (LockState::ReadHeld, None, TASK, 0)
        );
        let holds = percpu(1, 0, true);
        assert_eq!((holds.state, holds.owner_task), (LockState::WriteHeld, 0));
        assert_eq!(percpu(0, 0, false).state, LockState::Free);
        assert_eq!(percpu(7, 0, true).state, LockState::Inconsistent);
    }

    #[test]
    fn words_of_vmas() {
        let decode = |refcnt, detaches| {
            let word = LockWord::of_vma(refcnt, detaches, TASK);
            (word.state, word.readers, word.drainer)
        };
        assert_eq!(
            decode(0x4000_0002, false),
            (LockState::ReadHeld, Some(1), TASK)
        );
        assert_eq!(
            decode(0x4000_0002, true),
            (LockState::ReadHeld, Some(2), TASK)
        );
        assert_eq!(decode(0x4000_0001, false).0, LockState::Free);
        assert_eq!(decode(2, false), (LockState::Inconsistent, Some(0), 0));
        assert_eq!(decode(0x4000_0000, false).0, LockState::Inconsistent);
    }

    #[test]
    fn a_layout_reads_its_own_words() {
        let mut lock = [0_u8; 32];
        lock[..8].copy_from_slice(&(-4_294_967_295_i64).to_le_bytes());
        let incident = WordLayout::RwsemBiases {
            count: 0,
            owner: None,
        };
        assert_eq!(incident.decode(&lock, true).readers, Some(1));
        assert_eq!(incident.decode(&lock, false).state, LockState::WriteHeld);
        lock[8..16].copy_from_slice(&TASK.to_le_bytes());
        let mutex = WordLayout::Mutex { owner: 8 };
        assert_eq!(mutex.decode(&lock, false).owner_task, TASK);
        assert_eq!(mutex.decode(&[], false).state, LockState::Free);
    }
}
