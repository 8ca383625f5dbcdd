//! The kernel's symbol tables as they lie in its own memory, which /proc/kallsyms is made of.
//!
//! The kernel needs 40 to 75 ms to write that file's 120,000 lines; its tables are read and
//! unpacked in a tenth of that. They have no symbols themselves. But their order and format are
//! known (scripts/kallsyms.c, seen on 5.10–7.3), and the file's first lines say what the first
//! entries must be: by these each table is found, and what does not agree with them is not
//! believed.

mod addresses;
mod image;
mod names;
#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io::{self, Read as _},
    ops::Range,
};

use self::{
    addresses::Scale,
    image::Image,
    names::{MARKED, Markers, Names, TOKENS, Tokens},
};
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

/// How many symbols a kernel has.
const COUNTS: Range<u32> = 10_000..4_000_000;

/// A packed name takes no more than this, in bytes: its length, the letter of its kind, and
/// `KSYM_NAME_LEN`.
const NAME_MAX: usize = 2 + 1 + 512;

/// … and fewer on average, of all.
const NAME_MEAN_MAX: usize = 48;

/// A line of /proc/kallsyms.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    address: u64,
    /// The letter of its kind with its name behind, as the tables have them.
    spelled: String,
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
        let Some((table, scale)) = addresses::table(lines, near, &mut image)? else {
            continue;
        };
        let mut found = tables_before(lines, table, scale, &mut image)?;
        // They were put before it in 6.5.
        if found.is_none() && scale != Scale::Place {
            found = tables_behind(lines, table, scale, &mut image)?;
        }
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
        return Ok(names.symbols(&tokens, &addresses, scale.alignment()));
    }
    Ok(None)
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    let word = |bytes: &[u8]| bytes.try_into().map_or(0, u32::from_le_bytes);
    bytes.chunks_exact(4).map(word)
}

type Found = (u32, Names, Tokens);

/// The other tables, where they lie before that of the addresses, in this order: how many
/// symbols, their names, markers, tokens, where each token is (since 6.5).
fn tables_before(
    lines: &[Line],
    table: u64,
    scale: Scale,
    image: &mut Image<'_>,
) -> Result<Option<Found>, MemoryError> {
    // Each tells where the one before it ends, so no more is read than they take.
    let alignment = scale.alignment();
    let Some(before) = image.some(table - TOKENS, TOKENS)? else {
        return Ok(None);
    };
    let Some((tokens, len)) = Tokens::before(&before, alignment) else {
        return Ok(None);
    };
    let behind_markers = table - len as u64;
    let Some(before) = image.some(behind_markers - Markers::MAX, Markers::MAX)? else {
        return Ok(None);
    };
    let Some(markers) = Markers::before(&before, alignment) else {
        return Ok(None);
    };
    let last = u64::from(markers.last);
    if last > (markers.count * MARKED * NAME_MEAN_MAX) as u64 {
        return Ok(None);
    }
    let behind_names = behind_markers - markers.len as u64;
    let from = (behind_names - last - (MARKED * NAME_MAX) as u64) & !7;
    let Some(mut bytes) = image.some(from, behind_markers - from)? else {
        return Ok(None);
    };
    for at in (0..MARKED * NAME_MAX).step_by(alignment) {
        let Some(count) = count_at(&bytes[at..], alignment) else {
            continue;
        };
        let is_marked = (count as usize).div_ceil(MARKED) == markers.count;
        if is_marked && tokens.spell(&bytes[at + alignment..], lines) {
            let names = Names::new(bytes.split_off(at + alignment));
            return Ok(Some((count, names, tokens)));
        }
    }
    Ok(None)
}

/// … where they lie behind it, after the address that others are relative to: how many symbols,
/// their names, markers, (sequences,) tokens, where each token is (up to 6.4).
fn tables_behind(
    lines: &[Line],
    table: u64,
    scale: Scale,
    image: &mut Image<'_>,
) -> Result<Option<Found>, MemoryError> {
    let mut bytes: Vec<u8> = Vec::new();
    let (count, start) = loop {
        let searched = bytes.len().saturating_sub(16) & !7;
        let Some(next) = image.some(table + bytes.len() as u64, STEP * 8)? else {
            return Ok(None);
        };
        bytes.extend(next);
        let mut ends = (searched..bytes.len() - 16).step_by(8);
        let end = ends.find_map(|at| {
            let count = count_at(&bytes[at + 8..], scale.alignment())?;
            let is_end = (4 * count as usize).next_multiple_of(8) == at;
            is_end.then_some((count, at + 16))
        });
        if let Some(end) = end {
            break end;
        }
        // It ended before. (At the end there may be what lies behind it.)
        let written = words(&bytes[searched..bytes.len() - 32]);
        if !written.map(|it| scale.address(it, 0)).is_sorted() {
            return Ok(None);
        }
    };
    let mut rest = bytes.split_off(start);
    let symbols = count as usize;
    let mut most = rest.len() + symbols * NAME_MEAN_MAX;
    while rest.len() < most {
        let next = table + (start + rest.len()) as u64;
        let Some(next) = image.some(next, STEP * 8)? else {
            break;
        };
        rest.extend(next);
        let Some(names_len) = names::skip(&rest, count) else {
            continue;
        };
        // What is behind the names begins at a multiple of 8, too.
        let behind = rest.get(names_len.next_multiple_of(8)..);
        if let Some(tokens) = behind.and_then(Tokens::within) {
            let names = Names::new(rest);
            return Ok(tokens
                .spell(names.bytes(), lines)
                .then_some((count, names, tokens)));
        }
        // Sequences take up to 4 bytes a symbol, markers far less.
        most = most.min(names_len + 5 * symbols + TOKENS as usize);
    }
    Ok(None)
}

/// A number of symbols, with nothing up to the next multiple.
fn count_at(bytes: &[u8], alignment: usize) -> Option<u32> {
    let (count, filled) = bytes.get(..alignment)?.split_at_checked(4)?;
    let count = u32::from_le_bytes(count.try_into().ok()?);
    let is_filled = filled.iter().all(|&byte| byte == 0);
    (is_filled && COUNTS.contains(&count)).then_some(count)
}
