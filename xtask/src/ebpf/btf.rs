//! The type graphs in `.BTF` and what `.BTF.ext` hangs on them.
//!
//! Layout: Documentation/bpf/btf.rst of the kernel. Only what a comparison
//! needs: each type is a labelled node, so no kind is modelled by itself.

use std::collections::HashSet;

use anyhow::{Context as _, Result, bail, ensure};

use super::elf::plain_name;

const MAGIC: u16 = 0xeb9f;
const KINDS: [&str; 20] = [
    "void",
    "int",
    "pointer",
    "array",
    "struct",
    "union",
    "enum",
    "forward",
    "typedef",
    "volatile",
    "const",
    "restrict",
    "function",
    "prototype",
    "variable",
    "section",
    "float",
    "declaration tag",
    "type tag",
    "enum64",
];
const FUNC: u32 = 12;
const DATASEC: u32 = 15;

/// All types of an object, by id.
#[derive(Debug)]
pub(crate) struct Btf {
    types: Vec<Type>,
    strings: Vec<u8>,
}

/// One type: a label, and edges to other types.
#[derive(Debug, Default)]
struct Type {
    kind: u32,
    name: String,
    /// Everything that is neither a name nor a type: sizes, flags, offsets, values.
    numbers: Vec<u32>,
    members: Vec<String>,
    edges: Vec<u32>,
}

/// A record of `.BTF.ext` about one instruction.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Info {
    /// Section and byte offset in it.
    pub(crate) place: (String, u32),
    pub(crate) type_id: u32,
    /// For a CO-RE relocation: what it asks for.
    pub(crate) access: String,
}

impl Btf {
    /// Parses `.BTF`.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let header = Header::read(bytes).context(".BTF")?;
        let types = header.part(bytes, 0)?;
        let mut btf = Self {
            types: vec![Type::default()],
            strings: header.part(bytes, 1)?.to_vec(),
        };
        let mut words = Words(types);
        while !words.0.is_empty() {
            let next = btf
                .read_type(&mut words)
                .with_context(|| format!("BTF type {}", btf.types.len()))?;
            btf.types.push(next);
        }
        Ok(btf)
    }

    fn read_type(&self, words: &mut Words<'_>) -> Result<Type> {
        let name = self.string(words.next()?)?;
        let info = words.next()?;
        let size_or_type = words.next()?;
        let kind = (info >> 24) & 0x1f;
        let count = info & 0xffff;
        let mut found = Type {
            kind,
            name: plain_name(&name),
            numbers: vec![info],
            ..Type::default()
        };
        match kind {
            1 => found.numbers.extend([size_or_type, words.next()?]),
            3 => {
                found.edges.extend([words.next()?, words.next()?]);
                found.numbers.push(words.next()?);
            }
            4..=6 | 19 => {
                found.numbers.push(size_or_type);
                for _ in 0..count {
                    found.members.push(self.string(words.next()?)?);
                    match kind {
                        4 | 5 => {
                            found.edges.push(words.next()?);
                            found.numbers.push(words.next()?);
                        }
                        6 => found.numbers.push(words.next()?),
                        _ => found.numbers.extend([words.next()?, words.next()?]),
                    }
                }
            }
            2 | 8..=12 | 18 => found.edges.push(size_or_type),
            7 => {}
            13 => {
                found.edges.push(size_or_type);
                for _ in 0..count {
                    found.members.push(self.string(words.next()?)?);
                    found.edges.push(words.next()?);
                }
            }
            14 | 17 => {
                found.edges.push(size_or_type);
                found.numbers.push(words.next()?);
            }
            DATASEC => {
                found.numbers.push(size_or_type);
                for _ in 0..count {
                    found.edges.push(words.next()?);
                    found.numbers.extend([words.next()?, words.next()?]);
                }
            }
            16 => found.numbers.push(size_or_type),
            _ => bail!("unknown kind {kind}"),
        }
        Ok(found)
    }

    fn string(&self, offset: u32) -> Result<String> {
        let tail = self
            .strings
            .get(offset as usize..)
            .with_context(|| format!("string offset {offset} is out of range"))?;
        let end = tail
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(tail.len());
        Ok(String::from_utf8_lossy(&tail[..end]).into_owned())
    }

    /// Function infos and CO-RE relocations from `.BTF.ext`; line infos are left out,
    /// for they are only read by people.
    pub(crate) fn infos(&self, ext: &[u8]) -> Result<(Vec<Info>, Vec<Info>)> {
        if ext.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        let header = Header::read(ext).context(".BTF.ext")?;
        let functions = self.info_table(header.part(ext, 0)?)?;
        // Headers older than CO-RE end before it.
        let relocations = match header.part(ext, 2) {
            Ok(part) => self.info_table(part)?,
            Err(_) => Vec::new(),
        };
        Ok((functions, relocations))
    }

    fn info_table(&self, bytes: &[u8]) -> Result<Vec<Info>> {
        let mut found = Vec::new();
        if bytes.is_empty() {
            return Ok(found);
        }
        let mut words = Words(bytes);
        let record = words.next()? as usize;
        ensure!(
            record >= 8 && record.is_multiple_of(4),
            "record size {record}"
        );
        while !words.0.is_empty() {
            let section = self.string(words.next()?)?;
            for _ in 0..words.next()? {
                let place = (section.clone(), words.next()?);
                let type_id = words.next()?;
                let mut access = String::new();
                let rest = record / 4 - 2;
                if rest >= 2 {
                    access = self.string(words.next()?)?;
                    access.push_str(&format!(" kind {}", words.next()?));
                }
                for _ in 0..rest.saturating_sub(2) {
                    words.next()?;
                }
                found.push(Info {
                    place,
                    type_id,
                    access,
                });
            }
        }
        found.sort();
        Ok(found)
    }

    /// Ids and names of the data sections: from there all maps and globals are reached.
    pub(crate) fn data_sections(&self) -> Vec<(u32, &str)> {
        (0..)
            .zip(&self.types)
            .filter(|(_, found)| found.kind == DATASEC)
            .map(|(id, found)| (id, found.name.as_str()))
            .collect()
    }

    /// Walks both graphs from a pair of types; the answer names the first
    /// difference by the path that leads to it.
    pub(crate) fn difference(&self, id: u32, other: &Self, other_id: u32) -> Option<String> {
        self.walk(id, other, other_id, &mut HashSet::new(), &mut Vec::new())
    }

    fn walk(
        &self,
        id: u32,
        other: &Self,
        other_id: u32,
        seen: &mut HashSet<(u32, u32)>,
        path: &mut Vec<String>,
    ) -> Option<String> {
        // Types refer to themselves through pointers: a pair met again is equal so far.
        if !seen.insert((id, other_id)) {
            return None;
        }
        let (Some(a), Some(b)) = (
            self.types.get(id as usize),
            other.types.get(other_id as usize),
        ) else {
            return Some(format!(
                "{}: type id {id} or {other_id} does not exist",
                path.join(" → ")
            ));
        };
        path.push(a.label());
        let outcome = if a.label() != b.label() {
            Some(format!("{} is now {}", path.join(" → "), b.label()))
        } else if a.members != b.members {
            Some(format!("{}: other members or parameters", path.join(" → ")))
        } else if a.numbers != b.numbers || a.edges.len() != b.edges.len() {
            Some(format!(
                "{}: other size, offsets or values",
                path.join(" → ")
            ))
        } else {
            a.edges
                .iter()
                .zip(&b.edges)
                .find_map(|(next, other_next)| self.walk(*next, other, *other_next, seen, path))
        };
        path.pop();
        outcome
    }

    /// Name of a function type, for messages.
    pub(crate) fn function_name(&self, id: u32) -> &str {
        self.types
            .get(id as usize)
            .filter(|found| found.kind == FUNC)
            .map_or("?", |found| found.name.as_str())
    }
}

impl Type {
    fn label(&self) -> String {
        let kind = KINDS.get(self.kind as usize).unwrap_or(&"?");
        if self.name.is_empty() {
            (*kind).to_owned()
        } else {
            format!("{kind} {}", self.name)
        }
    }
}

/// The two sections begin alike: magic, version, flags, header length, then
/// pairs of offset and length relative to the header's end.
struct Header {
    length: usize,
    parts: Vec<(usize, usize)>,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self> {
        let mut words = Words(bytes);
        let magic = words.next()? & 0xffff;
        ensure!(magic == u32::from(MAGIC), "magic {magic:#x}");
        let length = words.next()? as usize;
        let mut parts = Vec::new();
        for _ in 0..length.saturating_sub(8) / 8 {
            parts.push((words.next()? as usize, words.next()? as usize));
        }
        Ok(Self { length, parts })
    }

    fn part<'b>(&self, bytes: &'b [u8], index: usize) -> Result<&'b [u8]> {
        let (offset, length) = *self.parts.get(index).context("short header")?;
        let start = self.length + offset;
        bytes
            .get(start..start + length)
            .with_context(|| format!("part {index} is out of range"))
    }
}

/// Little-endian words, read one after the other.
struct Words<'b>(&'b [u8]);

impl Words<'_> {
    fn next(&mut self) -> Result<u32> {
        let (word, rest) = self.0.split_first_chunk().context("ends too early")?;
        self.0 = rest;
        Ok(u32::from_le_bytes(*word))
    }
}
