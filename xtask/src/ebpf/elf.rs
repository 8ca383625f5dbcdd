//! A BPF object as its loader sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};

use anyhow::{Context as _, Result, ensure};
use object::read::elf::ElfFile64;
use object::{
    LittleEndian, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationFlags,
    RelocationTarget, SectionFlags, SymbolKind, elf,
};

/// Bytes of one BPF instruction slot.
const INSTRUCTION: u64 = 8;

/// The parts of an object that decide what runs in the kernel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Object {
    /// Section with instructions → its bytes.
    pub(crate) programs: BTreeMap<String, Vec<u8>>,
    /// Map definitions, `.rodata`, `.data…`, `license` → bytes.
    pub(crate) data: BTreeMap<String, Vec<u8>>,
    /// All relocations of programs and data.
    pub(crate) relocations: BTreeSet<Relocation>,
    /// Named functions, variables and maps: where each one lies.
    pub(crate) symbols: BTreeSet<Symbol>,
    /// Raw `.BTF`.
    pub(crate) btf: Vec<u8>,
    /// Raw `.BTF.ext`.
    pub(crate) btf_ext: Vec<u8>,
}

/// One relocation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Relocation {
    pub(crate) section: String,
    pub(crate) offset: u64,
    /// Name of the symbol, or of the section where the symbol is that section.
    pub(crate) symbol: String,
    pub(crate) r_type: u32,
}

/// A named thing and where it lies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Symbol {
    pub(crate) name: String,
    pub(crate) section: String,
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

impl Object {
    /// Reads a relocatable little-endian BPF object.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let file = ElfFile64::<LittleEndian>::parse(bytes).context("no ELF object")?;
        ensure!(
            file.architecture() == object::Architecture::Bpf,
            "an object for {:?}, not for BPF",
            file.architecture()
        );
        let mut found = Self::default();
        for section in file.sections() {
            let name = section.name()?.to_owned();
            let SectionFlags::Elf { sh_flags } = section.flags() else {
                continue;
            };
            match name.as_str() {
                ".BTF" => found.btf = section.data()?.to_vec(),
                ".BTF.ext" => found.btf_ext = section.data()?.to_vec(),
                _ if sh_flags & u64::from(elf::SHF_EXECINSTR) != 0 => {
                    if section.size() > 0 {
                        found
                            .programs
                            .insert(name.clone(), section.data()?.to_vec());
                    }
                }
                _ if sh_flags & u64::from(elf::SHF_ALLOC) != 0 => {
                    let mut data = section.data()?.to_vec();
                    // .bss has a size and no bytes.
                    data.resize(usize::try_from(section.size())?, 0);
                    found.data.insert(name.clone(), data);
                }
                _ => continue,
            }
            if name.starts_with(".BTF") {
                continue;
            }
            for (offset, relocation) in section.relocations() {
                let RelocationTarget::Symbol(symbol) = relocation.target() else {
                    continue;
                };
                let RelocationFlags::Elf { r_type } = relocation.flags() else {
                    continue;
                };
                let symbol = file.symbol_by_index(symbol)?;
                let symbol = match symbol.section_index() {
                    Some(index) if symbol.kind() == SymbolKind::Section => {
                        file.section_by_index(index)?.name()?
                    }
                    _ => symbol.name()?,
                };
                found.relocations.insert(Relocation {
                    section: name.clone(),
                    offset,
                    symbol: plain_name(symbol),
                    r_type,
                });
            }
        }
        for symbol in file.symbols() {
            let Some(index) = symbol.section_index() else {
                continue;
            };
            let name = symbol.name()?;
            if symbol.kind() == SymbolKind::Section || name.is_empty() {
                continue;
            }
            found.symbols.insert(Symbol {
                name: plain_name(name),
                section: file.section_by_index(index)?.name()?.to_owned(),
                offset: symbol.address(),
                size: symbol.size(),
            });
        }
        Ok(found)
    }

    /// Program section → number of instruction slots.
    pub(crate) fn instruction_counts(&self) -> BTreeMap<String, u64> {
        self.programs
            .iter()
            .map(|(name, bytes)| (name.clone(), bytes.len() as u64 / INSTRUCTION))
            .collect()
    }
}

/// Opcodes that may end a program: exit, and the two unconditional jumps.
const LAST_OPCODES: [u8; 3] = [0x95, 0x05, 0x06];

impl Object {
    /// Program sections that every verifier refuses, because a path runs off
    /// their end: rustc ends a block so where it calls a panic.
    pub(crate) fn runaway_programs(&self) -> Vec<&str> {
        self.programs
            .iter()
            .filter(|(_, bytes)| {
                let last = bytes.len().checked_sub(INSTRUCTION as usize);
                last.is_some_and(|at| !LAST_OPCODES.contains(&bytes[at]))
            })
            .map(|(name, _)| name.as_str())
            .filter(|name| !name.starts_with(".text"))
            .collect()
    }
}

impl Display for Relocation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            section,
            offset,
            symbol,
            r_type,
        } = self;
        write!(f, "{section}+{offset:#x} → {symbol} (type {r_type})")
    }
}

impl Display for Symbol {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            section,
            offset,
            size,
        } = self;
        write!(f, "{name} ({size} bytes at {section}+{offset:#x})")
    }
}

/// A name without the hashes that another compiler, or another place, makes otherwise.
pub(crate) fn plain_name(symbol: &str) -> String {
    // rustc names its constants `anon.<hash>.<number>`.
    if let Some(rest) = symbol.strip_prefix("anon.") {
        return format!("anon.{}", rest.rsplit('.').next().unwrap_or(rest));
    }
    format!("{:#}", rustc_demangle::demangle(symbol))
}

#[cfg(test)]
mod tests {
    use super::{Object, plain_name};

    #[test]
    fn a_program_that_ends_in_a_call_is_named() {
        let call = vec![0x85, 0, 0, 0, 0, 0, 0, 0];
        let exit = vec![0x95, 0, 0, 0, 0, 0, 0, 0];
        let mut object = Object::default();
        object
            .programs
            .insert("raw_tp".into(), [exit.clone(), call.clone()].concat());
        object
            .programs
            .insert("iter/task".into(), [call.clone(), exit].concat());
        object.programs.insert(".text.unlikely.".into(), call);
        assert_eq!(object.runaway_programs(), ["raw_tp"]);
    }

    #[test]
    fn names_lose_their_hashes_only() {
        assert_eq!(plain_name("READ_PAGE"), "READ_PAGE");
        assert_eq!(
            plain_name("_RNvNtCsc9IQzU3lXcw_6survey3bpf4bump"),
            "survey::bpf::bump"
        );
        assert_eq!(
            plain_name("anon.75641109be394b55ad797137069f6d24.3"),
            "anon.3"
        );
    }
}
