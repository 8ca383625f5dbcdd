//! The kernel's symbol tables as they lie in its own memory, which /proc/kallsyms is made of.
//!
//! The kernel needs 40 to 75 ms to write that file's 120,000 lines; its tables are read and
//! unpacked in a tenth of that. They have no symbols themselves. But their order and format are
//! known (scripts/kallsyms.c, seen on 5.10–6.18; those of 7.3 are not found yet), and the file's first lines say what the first entries
//! must be: by these each table is found, and what does not agree with them is not believed.

mod names;
#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io::{self, Read as _},
    iter,
    ops::Range,
};

use self::names::{Names, TOKENS, Tokens};
use crate::kernel::{
    arch::{PAGE_SIZE, is_image_address},
    memory::{KernelMemory, MemoryError},
    symbols::{KALLSYMS, Symbols},
};

/// What is compared: so many of the symbols that lie in the kernel's image.
const COMPARED: usize = 64;

/// … within so many bytes of /proc/kallsyms: before them come those of each CPU.
const HEAD_MAX: usize = 256 * 1024;

/// How far from the first symbol the tables are looked for: images are smaller.
const IMAGE_MAX: u64 = 128 << 20;

/// The table of addresses is longer than this: every place so far apart is looked at.
const STEP: u64 = 64 * 1024;

/// Addresses that are looked at in each place.
const GLANCE: usize = 16;

/// No two symbols that follow each other are further apart; most are much nearer.
const APART_MAX: i64 = 1 << 20;

/// How many symbols a kernel has.
const COUNTS: Range<u32> = 10_000..4_000_000;

/// The names of so many symbols take no more than this, in bytes.
const NAMES_MAX: u64 = 24 << 20;

/// A line of /proc/kallsyms.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    address: u64,
    /// The letter of its kind with its name behind, as the tables have them.
    spelled: String,
}

/// How the table of addresses has them, in 32 bits each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scale {
    /// So much is added (since 6.15 on x86).
    From(u64),
    /// Those of each CPU as they are; of others, which are negative, the complement is added
    /// (`KALLSYMS_ABSOLUTE_PERCPU`, up to 6.14 on x86).
    Complement(u64),
    /// Relative to where they are written.
    Place,
}

impl Scale {
    /// The address that is written so at this place.
    fn address(self, written: u32, place: u64) -> u64 {
        let signed = i64::from(written.cast_signed());
        match self {
            Self::From(base) => base.wrapping_add(written.into()),
            Self::Complement(base) if signed < 0 => base.wrapping_add_signed(-1 - signed),
            Self::Complement(_) => u64::from(written),
            Self::Place => place.wrapping_add_signed(signed),
        }
    }

    /// By which an address is written so at this place, if it is in the kernel's image.
    fn all_of(line: &Line, written: u32, place: u64) -> [Self; 3] {
        let signed = i64::from(written.cast_signed());
        let complement = line.address.wrapping_add_signed(1 + signed);
        [
            Self::From(line.address.wrapping_sub(written.into())),
            Self::Complement(complement),
            Self::Place,
        ]
        .map(|scale| match scale {
            Self::Place if scale.address(written, place) != line.address => Self::From(0),
            scale => scale,
        })
    }
}

/// The symbols of the kernel's image, without those of modules and of BPF programs; `None`
/// where the tables are not found, or hidden.
///
/// # Errors
/// When kernel memory cannot be read at all.
pub fn read(memory: &mut dyn KernelMemory) -> Result<Option<Symbols>, MemoryError> {
    match head() {
        Ok(lines) => find(&lines, memory),
        Err(error) => {
            tracing::debug!("{KALLSYMS} cannot be read: {error}");
            Ok(None)
        }
    }
}

/// The first lines of /proc/kallsyms, until enough of them are of the kernel's image.
fn head() -> io::Result<Vec<Line>> {
    let mut file = File::open(KALLSYMS)?;
    let mut text = Vec::new();
    let mut buffer = [0; PAGE_SIZE as usize];
    loop {
        let len = file.read(&mut buffer)?;
        text.extend_from_slice(&buffer[..len]);
        let lines = lines(&String::from_utf8_lossy(&text));
        let in_image = lines.iter().filter(|line| is_image_address(line.address));
        if len == 0 || in_image.count() > COMPARED || text.len() >= HEAD_MAX {
            return Ok(lines);
        }
    }
}

/// The whole lines of a text in the format of /proc/kallsyms.
fn lines(text: &str) -> Vec<Line> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let line = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let address = u64::from_str_radix(fields.next()?, 16).ok()?;
        let spelled = format!("{}{}", fields.next()?, fields.next()?);
        Some(Line { address, spelled })
    };
    whole.lines().map_while(line).collect()
}

fn find(lines: &[Line], memory: &mut dyn KernelMemory) -> Result<Option<Symbols>, MemoryError> {
    let Some(first) = lines.iter().find(|line| is_image_address(line.address)) else {
        return Ok(None);
    };
    let mut image = Image { memory };
    let start = first.address & !(PAGE_SIZE - 1);
    for near in image.rising(start..start.saturating_add(IMAGE_MAX))? {
        let Some((table, scale)) = addresses(lines, near, &mut image)? else {
            continue;
        };
        let found = match tables_before(lines, table, &mut image)? {
            Some(found) => Some(found),
            None => tables_behind(lines, table, &mut image)?,
        };
        let Some((count, names, tokens)) = found else {
            continue;
        };
        let Some(written) = image.all(table, 4 * u64::from(count))? else {
            continue;
        };
        let places = (table..).step_by(4);
        let addresses: Vec<u64> = words(&written)
            .zip(places)
            .map(|(written, place)| scale.address(written, place))
            .collect();
        // The kernel searches them in halves, so they only rise.
        if !addresses.is_sorted() {
            continue;
        }
        return Ok(names.symbols(&tokens, &addresses));
    }
    Ok(None)
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    let word = |bytes: &[u8]| bytes.try_into().map_or(0, u32::from_le_bytes);
    bytes.chunks_exact(4).map(word)
}

/// Where the table of addresses begins, near this place, and how it has them.
fn addresses(
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
    // Each table begins at a multiple of 8.
    for index in (0..all.len().saturating_sub(lines.len())).step_by(2) {
        let place = |line: usize| from + 4 * (index + line) as u64;
        let agrees = |scale: Scale| {
            let written = all[index..].iter().zip(lines);
            written
                .enumerate()
                .all(|(at, (&written, line))| scale.address(written, place(at)) == line.address)
        };
        let scales = Scale::all_of(&lines[at], all[index + at], place(at));
        if let Some(scale) = scales.into_iter().find(|&scale| agrees(scale)) {
            return Ok(Some((place(0), scale)));
        }
    }
    Ok(None)
}

type Found = (u32, Names, Tokens);

/// The other tables, where they lie before that of the addresses, in this order: how many
/// symbols, their names, (markers,) tokens, where each token is (since 6.5).
fn tables_before(
    lines: &[Line],
    table: u64,
    image: &mut Image<'_>,
) -> Result<Option<Found>, MemoryError> {
    let before = image.some(table - TOKENS, TOKENS)?;
    let Some(tokens) = before.and_then(|bytes| Tokens::before(&bytes)) else {
        return Ok(None);
    };
    // From the end: where the names begin is told by what they say.
    let mut bytes: Vec<u8> = Vec::new();
    while (bytes.len() as u64) < NAMES_MAX {
        let from = table - bytes.len() as u64 - STEP * 8;
        let Some(before) = image.some(from, STEP * 8)? else {
            break;
        };
        let new = before.len();
        bytes = [before, bytes].concat();
        for at in (0..new).step_by(8) {
            let Some(count) = count_at(&bytes[at..]) else {
                continue;
            };
            if tokens.spell(&bytes[at + 8..], lines) {
                let names = Names::new(bytes.split_off(at + 8));
                return Ok(Some((count, names, tokens)));
            }
        }
    }
    Ok(None)
}

/// … where they lie behind it, after the address that others are relative to: how many symbols,
/// their names, (markers, sequences,) tokens, where each token is (up to 6.4).
fn tables_behind(
    lines: &[Line],
    table: u64,
    image: &mut Image<'_>,
) -> Result<Option<Found>, MemoryError> {
    let mut bytes: Vec<u8> = Vec::new();
    let mut end = None;
    while (bytes.len() as u64) < NAMES_MAX {
        let searched = bytes.len().saturating_sub(16) & !7;
        let Some(next) = image.some(table + bytes.len() as u64, STEP * 8)? else {
            break;
        };
        bytes.extend(next);
        end = (searched..bytes.len() - 16).step_by(8).find_map(|at| {
            let count = count_at(&bytes[at + 8..])?;
            let is_end = (4 * count as usize).next_multiple_of(8) == at;
            is_end.then_some((count, at + 16))
        });
        if end.is_some() {
            break;
        }
    }
    let Some((count, start)) = end else {
        return Ok(None);
    };
    let mut rest = bytes.split_off(start);
    while (rest.len() as u64) < NAMES_MAX {
        let next = table + (start + rest.len()) as u64;
        let Some(next) = image.some(next, STEP * 8)? else {
            break;
        };
        rest.extend(next);
        // What is behind the names begins at a multiple of 8, too.
        let behind = names::skip(&rest, count)
            .and_then(|names_len| rest.get(names_len.next_multiple_of(8)..));
        if let Some(tokens) = behind.and_then(Tokens::within) {
            let names = Names::new(rest);
            return Ok(tokens
                .spell(names.bytes(), lines)
                .then_some((count, names, tokens)));
        }
    }
    Ok(None)
}

/// A number of symbols, with nothing up to the next multiple of 8.
fn count_at(bytes: &[u8]) -> Option<u32> {
    let bytes: [u8; 8] = bytes.get(..8)?.try_into().ok()?;
    let count = u32::try_from(u64::from_le_bytes(bytes)).ok()?;
    COUNTS.contains(&count).then_some(count)
}

/// The kernel's image.
struct Image<'m> {
    memory: &'m mut dyn KernelMemory,
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
    fn some(&mut self, from: u64, len: u64) -> Result<Option<Vec<u8>>, MemoryError> {
        let pieces = Self::pieces(from, len);
        let mut bytes = Vec::with_capacity(len as usize);
        let mut is_there = false;
        for (read, (_, len)) in self.memory.read_batch(&pieces)?.into_iter().zip(pieces) {
            match read {
                Some(read) => {
                    is_there = true;
                    bytes.extend_from_slice(&read);
                }
                None => bytes.resize(bytes.len() + len, 0),
            }
        }
        Ok(is_there.then_some(bytes))
    }

    /// These bytes; `None` if one of them is not there.
    fn all(&mut self, from: u64, len: u64) -> Result<Option<Vec<u8>>, MemoryError> {
        let read = self.memory.read_batch(&Self::pieces(from, len))?;
        let read: Option<Vec<Vec<u8>>> = read.into_iter().collect();
        Ok(read.map(|read| read.concat()))
    }

    /// The first of each row of places where numbers rise or fall as in a table of addresses.
    fn rising(&mut self, places: Range<u64>) -> Result<Vec<u64>, MemoryError> {
        let reads: Vec<(u64, usize)> = places
            .step_by(STEP as usize)
            .map(|at| (at, 4 * GLANCE))
            .collect();
        let mut rows = Vec::new();
        let mut was_one = false;
        for (read, (at, _)) in self.memory.read_batch(&reads)?.into_iter().zip(&reads) {
            let is_one = read.is_some_and(|bytes| rises(&words(&bytes).collect::<Vec<_>>()));
            if is_one && !was_one {
                rows.push(*at);
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
