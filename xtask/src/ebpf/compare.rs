//! Whether two objects do the same in the kernel.
//!
//! Bytes of a whole file are too much to ask: another patch release of the
//! compiler orders strings and names crates differently. What must be equal
//! is what the loader hands to the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use anyhow::{Context as _, Result};

use super::btf::{Btf, Info};
use super::elf::{Object, Symbol};

/// Sections that hold map definitions, old style and BTF style.
const MAP_SECTIONS: [&str; 2] = ["maps", ".maps"];

/// All differences, each a line that names what differs; none: the objects are equal.
pub(crate) fn differences(committed: &[u8], rebuilt: &[u8]) -> Result<Vec<String>> {
    let a = Object::parse(committed).context("the committed object")?;
    let b = Object::parse(rebuilt).context("the rebuilt object")?;
    let mut found = Vec::new();
    programs(&a, &b, &mut found);
    data(&a, &b, &mut found);
    sets("relocation", &a.relocations, &b.relocations, &mut found);
    // Other symbols lie in sections whose bytes are compared already.
    let named = |object: &Object| -> BTreeSet<Symbol> {
        let counts = |symbol: &&Symbol| {
            object.programs.contains_key(&symbol.section)
                || object.data.contains_key(&symbol.section)
        };
        object.symbols.iter().filter(counts).cloned().collect()
    };
    sets("symbol", &named(&a), &named(&b), &mut found);
    types(&a, &b, &mut found)?;
    Ok(found)
}

fn programs(a: &Object, b: &Object, found: &mut Vec<String>) {
    pairs(
        "program section",
        &a.programs,
        &b.programs,
        found,
        |name, old, new| {
            if old.len() != new.len() {
                let (old, new) = (old.len() / 8, new.len() / 8);
                return Some(format!(
                    "program section {name}: {old} instructions committed, {new} rebuilt"
                ));
            }
            let differing: Vec<usize> = old
                .chunks(8)
                .zip(new.chunks(8))
                .enumerate()
                .filter(|(_, (old, new))| old != new)
                .map(|(index, _)| index)
                .collect();
            let first = *differing.first()?;
            Some(format!(
                "program section {name}: instruction {first} is {:02x?} committed, {:02x?} rebuilt \
             ({} of {} differ)",
                &old[first * 8..first * 8 + 8],
                &new[first * 8..first * 8 + 8],
                differing.len(),
                old.len() / 8
            ))
        },
    );
}

fn data(a: &Object, b: &Object, found: &mut Vec<String>) {
    let sections = |object: &Object| -> BTreeMap<String, Vec<u8>> {
        let mut data = object.data.clone();
        data.retain(|name, _| !MAP_SECTIONS.contains(&name.as_str()));
        data
    };
    pairs(
        "section",
        &sections(a),
        &sections(b),
        found,
        |name, old, new| {
            let at = old.iter().zip(new).position(|(old, new)| old != new);
            match at {
                _ if old.len() != new.len() => Some(format!(
                    "section {name}: {} bytes committed, {} rebuilt",
                    old.len(),
                    new.len()
                )),
                Some(at) => Some(format!("section {name}: byte {at} differs")),
                None => None,
            }
        },
    );
    pairs("map", &maps(a), &maps(b), found, |name, old, new| {
        (old != new).then(|| format!("map {name}: other definition"))
    });
}

/// Map name → the bytes of its definition.
fn maps(object: &Object) -> BTreeMap<String, Vec<u8>> {
    object
        .symbols
        .iter()
        .filter(|symbol| MAP_SECTIONS.contains(&symbol.section.as_str()))
        .map(|symbol| {
            let start = usize::try_from(symbol.offset).unwrap_or(usize::MAX);
            let end = start.saturating_add(usize::try_from(symbol.size).unwrap_or(usize::MAX));
            let bytes = object
                .data
                .get(&symbol.section)
                .and_then(|data| data.get(start..end))
                .unwrap_or_default();
            (symbol.name.clone(), bytes.to_vec())
        })
        .collect()
}

fn types(a: &Object, b: &Object, found: &mut Vec<String>) -> Result<()> {
    if a.btf.is_empty() || b.btf.is_empty() {
        if a.btf.is_empty() != b.btf.is_empty() {
            found.push("only one object has BTF".to_owned());
        }
        return Ok(());
    }
    let old = Btf::parse(&a.btf).context("the committed object")?;
    let new = Btf::parse(&b.btf).context("the rebuilt object")?;
    let by_name = |btf: &Btf| -> BTreeMap<String, u32> {
        btf.data_sections()
            .into_iter()
            .map(|(id, name)| (name.to_owned(), id))
            .collect()
    };
    pairs(
        "BTF section",
        &by_name(&old),
        &by_name(&new),
        found,
        |name, old_id, new_id| {
            old.difference(*old_id, &new, *new_id)
                .map(|what| format!("BTF of section {name}: {what}"))
        },
    );
    let (old_functions, old_relocations) = old.infos(&a.btf_ext)?;
    let (new_functions, new_relocations) = new.infos(&b.btf_ext)?;
    let by_place = |infos: Vec<Info>| -> BTreeMap<String, Info> {
        infos
            .into_iter()
            .map(|info| (format!("{}+{}", info.place.0, info.place.1), info))
            .collect()
    };
    for (what, old_infos, new_infos) in [
        ("BTF function", old_functions, new_functions),
        ("CO-RE relocation", old_relocations, new_relocations),
    ] {
        pairs(
            what,
            &by_place(old_infos),
            &by_place(new_infos),
            found,
            |place, x, y| {
                let name = old.function_name(x.type_id);
                if x.access != y.access {
                    return Some(format!(
                        "{what} at {place}: {} became {}",
                        x.access, y.access
                    ));
                }
                old.difference(x.type_id, &new, y.type_id)
                    .map(|difference| format!("{what} {name} at {place}: {difference}"))
            },
        );
    }
    Ok(())
}

/// Compares two tables by key; `compare` is asked about keys that are in both.
fn pairs<V>(
    what: &str,
    a: &BTreeMap<String, V>,
    b: &BTreeMap<String, V>,
    found: &mut Vec<String>,
    compare: impl Fn(&str, &V, &V) -> Option<String>,
) {
    for (name, old) in a {
        match b.get(name) {
            Some(new) => found.extend(compare(name, old, new)),
            None => found.push(format!("{what} {name}: only in the committed object")),
        }
    }
    let added = b.keys().filter(|name| !a.contains_key(*name));
    found.extend(added.map(|name| format!("{what} {name}: only in the rebuilt object")));
}

fn sets<T: Ord + Display>(what: &str, a: &BTreeSet<T>, b: &BTreeSet<T>, found: &mut Vec<String>) {
    let gone = a.difference(b);
    found.extend(gone.map(|item| format!("{what} {item}: only in the committed object")));
    let added = b.difference(a);
    found.extend(added.map(|item| format!("{what} {item}: only in the rebuilt object")));
}

#[cfg(test)]
mod tests {
    use object::build::Bytes;
    use object::build::elf::{Builder, SectionData};
    use object::elf::SHF_EXECINSTR;

    use super::*;

    /// The real survey object: what is committed is what has to be compared.
    fn committed() -> Vec<u8> {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        std::fs::read(super::super::object_path(&root, "survey")).unwrap()
    }

    fn mutated(change: impl FnOnce(&mut Builder<'_>)) -> Vec<String> {
        let bytes = committed();
        let mut builder = Builder::read(bytes.as_slice()).unwrap();
        change(&mut builder);
        let mut out = Vec::new();
        builder.write(&mut out).unwrap();
        differences(&bytes, &out).unwrap()
    }

    /// Changes the bytes of the first section that `pick` accepts.
    fn mutated_section(
        pick: impl Fn(&str, u64) -> bool,
        change: impl FnOnce(&mut Vec<u8>),
    ) -> Vec<String> {
        mutated(|builder| {
            let section = builder
                .sections
                .iter_mut()
                .find(|section| pick(&section.name.to_string(), section.sh_flags))
                .unwrap();
            let SectionData::Data(data) = &section.data else {
                panic!("no plain data")
            };
            let mut data = data.as_slice().to_vec();
            change(&mut data);
            section.data = SectionData::Data(Bytes::from(data));
        })
    }

    /// Overwrites the first byte after `needle`'s start in the BTF strings.
    fn mutated_btf_string(needle: &str) -> Vec<String> {
        mutated_section(
            |name, _| name == ".BTF",
            |data| {
                let at = data
                    .windows(needle.len())
                    .position(|window| window == needle.as_bytes())
                    .unwrap();
                data[at] = b'~';
            },
        )
    }

    #[test]
    fn an_object_equals_itself_written_anew() {
        assert_eq!(mutated(|_| {}), Vec::<String>::new());
    }

    #[test]
    fn a_flipped_instruction_is_found() {
        let found = mutated_section(
            |_, flags| flags & u64::from(SHF_EXECINSTR) != 0,
            |data| data[8] ^= 1,
        );
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("instruction 1 is"), "{found:?}");
    }

    #[test]
    fn a_dropped_relocation_is_found() {
        let found = mutated(|builder| {
            let dropped = builder
                .sections
                .iter_mut()
                .find_map(|section| match &mut section.data {
                    SectionData::Relocation(relocations) => relocations.pop(),
                    _ => None,
                });
            assert!(dropped.is_some());
        });
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("relocation "), "{found:?}");
        assert!(
            found[0].ends_with("only in the committed object"),
            "{found:?}"
        );
    }

    #[test]
    fn a_renamed_map_is_found() {
        let found = mutated(|builder| {
            let maps: Vec<_> = builder
                .sections
                .iter()
                .filter(|section| MAP_SECTIONS.contains(&section.name.to_string().as_str()))
                .map(object::build::elf::Section::id)
                .collect();
            let map = builder
                .symbols
                .iter_mut()
                .find(|symbol| {
                    symbol.section.is_some_and(|id| maps.contains(&id)) && !symbol.name.is_empty()
                })
                .unwrap();
            map.name = "OTHER".into();
        });
        let text = found.join("\n");
        assert!(
            text.contains("map OTHER: only in the rebuilt object"),
            "{text}"
        );
    }

    #[test]
    fn a_program_whose_btf_has_another_name_is_found() {
        let object = Object::parse(&committed()).unwrap();
        let program = object
            .symbols
            .iter()
            .find(|symbol| {
                object.programs.contains_key(&symbol.section)
                    && !symbol.section.starts_with(".text")
            })
            .unwrap();
        let found = mutated_btf_string(&format!("\0{}\0", program.name)[1..]);
        assert!(
            found.iter().any(|line| line.starts_with("BTF function")),
            "{found:?}"
        );
    }

    #[test]
    fn source_paths_in_btf_do_not_count() {
        assert_eq!(mutated_btf_string(".rs\0"), Vec::<String>::new());
    }

    #[test]
    fn no_bpf_object_is_an_error() {
        let error = differences(b"no object", b"no object").unwrap_err();
        assert!(
            format!("{error:#}").contains("the committed object"),
            "{error:#}"
        );
    }
}
