//! Making an object small: what no loader reads is left out.

use anyhow::{Context as _, Result};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

/// Removes DWARF, and the relocations of `.BTF` and `.BTF.ext`, which only a
/// linker applies: loaders take the offsets that stand in place.
pub(crate) fn strip(linked: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(linked).context("the linked object is no ELF file")?;
    for section in &mut builder.sections {
        let name = section.name.to_string();
        section.delete = is_dead_weight(&name);
    }
    builder.delete_orphans();
    // LLVM keeps section and symbol names in one table, the builder in two.
    let has_names = |data: &SectionData<'_>| matches!(data, SectionData::SectionString);
    if !builder
        .sections
        .iter()
        .any(|section| has_names(&section.data))
    {
        let names = builder.sections.add();
        names.name = ".shstrtab".into();
        names.sh_type = SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = SectionData::SectionString;
    }
    let mut stripped = Vec::new();
    builder
        .write(&mut stripped)
        .context("cannot write the stripped object")?;
    Ok(stripped)
}

fn is_dead_weight(section: &str) -> bool {
    let of = section.strip_prefix(".rel").unwrap_or(section);
    of.starts_with(".debug_") || matches!(section, ".rel.BTF" | ".rel.BTF.ext")
}

#[cfg(test)]
mod tests {
    use super::is_dead_weight;

    #[test]
    fn what_a_loader_reads_stays() {
        for name in [
            ".BTF",
            ".BTF.ext",
            ".text",
            ".rel.text",
            ".maps",
            ".rodata",
            ".symtab",
        ] {
            assert!(!is_dead_weight(name), "{name}");
        }
        for name in [".debug_info", ".rel.debug_info", ".rel.BTF.ext"] {
            assert!(is_dead_weight(name), "{name}");
        }
    }
}
