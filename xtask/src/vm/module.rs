//! Kernel modules out of a package: with what they depend on, unpacked, in order.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSection as _};

use crate::packages::{self, Program};

/// What a package has below its folders of modules.
#[derive(Debug, Default)]
struct Shipped {
    /// Packed modules by their names.
    files: BTreeMap<String, PathBuf>,
    /// Names of those that are part of the kernel itself.
    built_in: BTreeSet<String>,
}

/// Puts the modules and all they need into `into`; file names in load order.
/// One that is built in is none. Of `if_shipped`, what is not there is left out.
pub(crate) fn gather(
    wanted: &[&str],
    if_shipped: &[&str],
    unpacked: &Path,
    into: &Path,
) -> Result<Vec<String>> {
    let mut shipped = Shipped::default();
    for folder in ["lib/modules", "usr/lib/modules"] {
        index(&unpacked.join(folder), &mut shipped)?;
    }
    let mut order = Vec::new();
    for name in if_shipped {
        if shipped.files.contains_key(*name) {
            add(name, &shipped, into, &mut order)?;
        }
    }
    for name in wanted {
        add(name, &shipped, into, &mut order)?;
    }
    Ok(order)
}

fn add(name: &str, shipped: &Shipped, into: &Path, order: &mut Vec<String>) -> Result<()> {
    let file = format!("{name}.ko");
    if order.contains(&file) || shipped.built_in.contains(name) {
        return Ok(());
    }
    let packed = shipped
        .files
        .get(name)
        .with_context(|| format!("{name} is neither a module of the package nor built in"))?;
    let bytes = read(packed)?;
    for other in dependencies(&bytes).with_context(|| format!("{name} is no module"))? {
        add(&other, shipped, into, order)?;
    }
    fs::write(into.join(&file), bytes)?;
    order.push(file);
    Ok(())
}

/// All modules below a folder by their names, and the list of those built in.
fn index(folder: &Path, shipped: &mut Shipped) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if entry.file_type()?.is_dir() {
            index(&entry.path(), shipped)?;
        } else if name == "modules.builtin" {
            shipped
                .built_in
                .extend(parse_built_in(&fs::read_to_string(entry.path())?));
        } else if let Some((name, _)) = name.split_once(".ko") {
            shipped.files.insert(name.replace('-', "_"), entry.path());
        }
    }
    Ok(())
}

/// The names in a list of paths such as `kernel/fs/ext4/ext4.ko`.
fn parse_built_in(list: &str) -> impl Iterator<Item = String> {
    list.lines()
        .filter_map(|path| path.rsplit('/').next()?.strip_suffix(".ko"))
        .map(|name| name.replace('-', "_"))
}

/// A module's bytes, whatever it is packed with.
fn read(path: &Path) -> Result<Vec<u8>> {
    let (program, package) = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => ("xz", "xz-utils"),
        Some("zst") => ("zstd", "zstd"),
        _ => return fs::read(path).with_context(|| format!("cannot read {}", path.display())),
    };
    packages::ensure(&[Program {
        name: program,
        package,
        purpose: "unpacks kernel modules",
    }])?;
    let output = Command::new(program)
        .arg("-dc")
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!("{} does not unpack: {}", path.display(), output.status);
    }
    Ok(output.stdout)
}

/// The names behind `depends=` in its .modinfo.
fn dependencies(module: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(module)?;
    let section = file
        .section_by_name(".modinfo")
        .context("no section .modinfo")?;
    Ok(parse_depends(section.data()?))
}

fn parse_depends(modinfo: &[u8]) -> Vec<String> {
    modinfo
        .split(|byte| *byte == 0)
        .filter_map(|entry| entry.strip_prefix(b"depends="))
        .flat_map(|list| list.split(|byte| *byte == b','))
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_names_between_commas() {
        let modinfo = b"license=GPL\0depends=one-part,two\0name=three\0";
        assert_eq!(parse_depends(modinfo), ["one_part", "two"]);
        assert!(parse_depends(b"depends=\0").is_empty());
    }

    #[test]
    fn what_is_built_in_needs_no_module() {
        let list = "kernel/fs/ext4/ext4.ko\nkernel/lib/crc-itu-t.ko\n";
        let built_in: BTreeSet<String> = parse_built_in(list).collect();
        assert_eq!(built_in, ["crc_itu_t", "ext4"].map(str::to_owned).into());
        let shipped = Shipped {
            built_in,
            ..Shipped::default()
        };
        let nowhere = Path::new("/nonexistent");
        let mut order = Vec::new();
        add("ext4", &shipped, nowhere, &mut order).unwrap();
        assert!(order.is_empty());
        let error = add("fuse", &shipped, nowhere, &mut order).unwrap_err();
        assert!(error.to_string().contains("fuse is neither"), "{error}");
    }

    #[test]
    fn what_is_wanted_if_shipped_may_lack() {
        let nowhere = Path::new("/nonexistent");
        assert!(gather(&[], &["fuse"], nowhere, nowhere).unwrap().is_empty());
        assert!(gather(&["fuse"], &[], nowhere, nowhere).is_err());
    }
}
