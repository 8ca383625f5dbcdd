//! The kernel's image in its memory, and where in it numbers rise as addresses do.

use std::{iter, ops::Range};

use super::STEP;
use crate::kernel::{
    arch::PAGE_SIZE,
    memory::{KernelMemory, MemoryError},
};

/// Numbers that are looked at in each place.
const GLANCE: usize = 16;

/// No two symbols that follow each other are further apart; most are much nearer.
const APART_MAX: i64 = 1 << 20;

/// So many rows are looked into: there are no more than 5, of which the table of addresses is
/// the first or second (5.10–7.3).
const ROWS_MAX: usize = 16;

/// The kernel's image.
pub(super) struct Image<'m> {
    pub(super) memory: &'m mut dyn KernelMemory,
}

impl Image<'_> {
    /// How much is read at once: whole pages, so that what is missing is missing alone.
    const PIECE: u64 = 4 * PAGE_SIZE;

    fn pieces(from: u64, len: u64) -> Vec<(u64, usize)> {
        let end = from + len;
        let starts = iter::successors(Some(from), |at| Some((at / Self::PIECE + 1) * Self::PIECE));
        starts
            .take_while(|&at| at < end)
            .map(|at| {
                let next = ((at / Self::PIECE + 1) * Self::PIECE).min(end);
                (at, (next - at) as usize)
            })
            .collect()
    }

    /// These bytes; zeros where some are not there, `None` if all are not.
    pub(super) fn some(&mut self, from: u64, len: u64) -> Result<Option<Vec<u8>>, MemoryError> {
        let (bytes, missing) = self.read(from, len)?;
        Ok((missing < len).then_some(bytes))
    }

    /// These bytes; `None` if one of them is not there.
    pub(super) fn all(&mut self, from: u64, len: u64) -> Result<Option<Vec<u8>>, MemoryError> {
        let (bytes, missing) = self.read(from, len)?;
        Ok((missing == 0).then_some(bytes))
    }

    /// These bytes, zeros where some are not there, and how many these are.
    fn read(&mut self, from: u64, len: u64) -> Result<(Vec<u8>, u64), MemoryError> {
        let pieces = Self::pieces(from, len);
        let mut bytes = Vec::with_capacity(len as usize);
        let mut missing = 0;
        let mut lens = pieces.iter().map(|&(_, len)| len);
        self.memory.read_each(&pieces, &mut |read| {
            let len = lens.next().unwrap_or_default();
            match read {
                Some(read) => bytes.extend_from_slice(read),
                None => {
                    missing += len as u64;
                    bytes.resize(bytes.len() + len, 0);
                }
            }
        })?;
        Ok((bytes, missing))
    }

    /// The first of each row of places where numbers rise or fall as in a table of addresses.
    pub(super) fn rising(&mut self, places: Range<u64>) -> Result<Vec<u64>, MemoryError> {
        let reads: Vec<(u64, usize)> = places
            .step_by(STEP as usize)
            .map(|at| (at, 4 * GLANCE))
            .collect();
        let mut rows = Vec::new();
        let mut was_one = false;
        for (read, (at, _)) in self.memory.read_batch(&reads)?.into_iter().zip(&reads) {
            let is_one = read.is_some_and(|bytes| rises(&super::words(&bytes).collect::<Vec<_>>()));
            if is_one && !was_one {
                rows.push(*at);
                if rows.len() == ROWS_MAX {
                    break;
                }
            }
            was_one = is_one;
        }
        Ok(rows)
    }
}

/// Whether these numbers only rise, or only fall, by as much as neighbours are apart. What is
/// relative to its own place falls by 4 where the address stays.
fn rises(written: &[u32]) -> bool {
    let steps = || {
        let pairs = written.windows(2);
        pairs.map(|pair| i64::from(pair[1].wrapping_sub(pair[0]).cast_signed()))
    };
    let rising = steps().all(|step| (-4..APART_MAX).contains(&step));
    let falling = steps().all(|step| (-APART_MAX..=0).contains(&step));
    (rising || falling) && steps().filter(|&step| step != 0).count() >= GLANCE / 4
}
