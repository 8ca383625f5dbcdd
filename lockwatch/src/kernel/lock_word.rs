//! What the words of an rwsem mean.

use crate::lock::{LockMode, LockState};

/// A decoded `count`/`owner` pair of kernels 5.3 – 7.x (kernel/locking/rwsem.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockWord {
    /// Held how.
    pub state: LockState,
    /// Readers counted in, those granted but not yet running included.
    pub readers: u32,
    /// The flag that says tasks are queued.
    pub has_waiters: bool,
    /// The `task_struct` that `owner` names, 0 for none. Only for a write-held lock
    /// is it the holder; for readers it is a hint.
    pub owner_task: u64,
}

const WRITER_LOCKED: u64 = 1 << 0;
const FLAG_WAITERS: u64 = 1 << 1;
const READER_SHIFT: u32 = 8;
const READ_FAIL: u64 = 1 << 63;
/// READER_OWNED and NONSPINNABLE (two of them before 5.11).
const OWNER_FLAGS: u64 = 0b111;
const OWNER_READER: u64 = 1 << 0;

impl LockWord {
    /// Decodes the two words.
    pub fn decode(count: u64, owner: u64) -> Self {
        let readers = (count & !READ_FAIL) >> READER_SHIFT;
        let writer = count & WRITER_LOCKED != 0;
        let state = match (writer, readers) {
            _ if count & READ_FAIL != 0 => LockState::Inconsistent,
            // A reader adds its bias before it sees the writer: readers beside a
            // writer are passing, not holding.
            (true, _) => LockState::WriteHeld,
            (false, 0) => LockState::Free,
            (false, _) => LockState::ReadHeld,
        };
        Self {
            state,
            readers: if state == LockState::ReadHeld {
                u32::try_from(readers).unwrap_or(u32::MAX)
            } else {
                0
            },
            has_waiters: count & FLAG_WAITERS != 0,
            owner_task: owner & !OWNER_FLAGS,
        }
    }

    /// Whether `owner` says that a reader wrote it.
    pub const fn owner_is_reader(owner: u64) -> bool {
        owner & OWNER_READER != 0
    }
}

/// What a queue entry wants, by its `enum rwsem_waiter_type` (kernel/locking/rwsem.c, the
/// same since 3.10); `None` for a word that is none.
pub const fn waiter_mode(kind: u32) -> Option<LockMode> {
    match kind {
        0 => Some(LockMode::Write),
        1 => Some(LockMode::Read),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_5_3_and_later() {
        let decode = |count, owner| LockWord::decode(count, owner);
        let task = 0xffff_8881_0000_4000;
        assert_eq!(
            decode(0x102, task | 3),
            LockWord {
                state: LockState::ReadHeld,
                readers: 1,
                has_waiters: true,
                owner_task: task
            }
        );
        assert_eq!(
            decode(0x3, task),
            LockWord {
                state: LockState::WriteHeld,
                readers: 0,
                has_waiters: true,
                owner_task: task
            }
        );
        // An arriving reader has added its bias beside the writer.
        assert_eq!(decode(0x103, task).state, LockState::WriteHeld);
        // WAITERS and HANDOFF alone: woken, not taken yet.
        assert_eq!(decode(0x6, 0).state, LockState::Free);
        assert_eq!(decode(0x2_0000_0000 << 8 | 2, 3).readers, u32::MAX);
        assert_eq!(decode(1 << 63, 0).state, LockState::Inconsistent);
    }
}
