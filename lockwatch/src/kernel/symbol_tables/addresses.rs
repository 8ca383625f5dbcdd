//! The table of addresses (`kallsyms_offsets`).

use super::{Line, STEP, image::Image, words};
use crate::kernel::{arch::is_image_address, memory::MemoryError};

/// How the table of addresses has them, in 32 bits each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    /// So much is added (6.15–6.18 on x86).
    From(u64),
    /// Those of each CPU as they are; of others, which are negative, the complement is added
    /// (`KALLSYMS_ABSOLUTE_PERCPU`, up to 6.14 on x86).
    Complement(u64),
    /// Relative to where they are written (seen since 7.2).
    Place,
}

impl Scale {
    /// Each of the tables begins at a multiple of this, in bytes. It was lowered when addresses
    /// became relative to their places ("kallsyms: Get rid of kallsyms relative base").
    pub(super) const fn alignment(self) -> usize {
        match self {
            Self::From(_) | Self::Complement(_) => 8,
            Self::Place => 4,
        }
    }

    /// The address that is written so at this place.
    pub(super) fn address(self, written: u32, place: u64) -> u64 {
        let signed = i64::from(written.cast_signed());
        match self {
            Self::From(base) => base.wrapping_add(written.into()),
            Self::Complement(base) if signed < 0 => base.wrapping_add_signed(-1 - signed),
            Self::Complement(_) => u64::from(written),
            Self::Place => place.wrapping_add_signed(signed),
        }
    }

    /// All by which the address of a line of the image may be written so.
    fn all_of(line: &Line, written: u32) -> [Self; 3] {
        let signed = i64::from(written.cast_signed());
        [
            Self::Place,
            Self::From(line.address.wrapping_sub(written.into())),
            Self::Complement(line.address.wrapping_add_signed(1 + signed)),
        ]
    }
}

/// Where the table of addresses begins, near this place, and how it has them.
pub(super) fn table(
    lines: &[Line],
    near: u64,
    image: &mut Image<'_>,
) -> Result<Option<(u64, Scale)>, MemoryError> {
    let from = near.saturating_sub(2 * STEP);
    let len = 3 * STEP + 4 * lines.len() as u64;
    let Some(bytes) = image.some(from, len)? else {
        return Ok(None);
    };
    let all: Vec<u32> = words(&bytes).collect();
    let Some(at) = lines.iter().position(|line| is_image_address(line.address)) else {
        return Ok(None);
    };
    for index in 0..all.len().saturating_sub(lines.len()) {
        let place = |line: usize| from + 4 * (index + line) as u64;
        let agrees = |&scale: &Scale| {
            let written = all[index..].iter().zip(lines);
            place(0).is_multiple_of(scale.alignment() as u64)
                && written
                    .enumerate()
                    .all(|(at, (&written, line))| scale.address(written, place(at)) == line.address)
        };
        let scales = Scale::all_of(&lines[at], all[index + at]);
        if let Some(scale) = scales.into_iter().find(agrees) {
            return Ok(Some((place(0), scale)));
        }
    }
    Ok(None)
}
