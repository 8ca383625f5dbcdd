//! Kernel modules out of a package: with what they depend on, unpacked, in order.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSection as _};

use crate::packages::{self, Program};

/// Puts the modules and all they need into `into`; file names in load order.
pub(crate) fn gather(wanted: &[&str], unpacked: &Path, into: &Path) -> Result<Vec<String>> {
    let mut files = BTreeMap::new();
    if !wanted.is_empty() {
        for folder in ["lib/modules", "usr/lib/modules"] {
            index(&unpacked.join(folder), &mut files)?;
        }
    }
    let mut order = Vec::new();
    for name in wanted {
        add(name, &files, into, &mut order)?;
    }
    Ok(order)
}

fn add(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    into: &Path,
    order: &mut Vec<String>,
) -> Result<()> {
    let file = format!("{name}.ko");
    if order.contains(&file) {
        return Ok(());
    }
    let packed = files
        .get(name)
        .with_context(|| format!("the package has no module {name}"))?;
    let bytes = read(packed)?;
    for other in dependencies(&bytes).with_context(|| format!("{name} is no module"))? {
        add(&other, files, into, order)?;
    }
    fs::write(into.join(&file), bytes)?;
    order.push(file);
    Ok(())
}

/// All modules below a folder by their names.
fn index(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            index(&entry.path(), files)?;
        } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            files.insert(name.replace('-', "_"), entry.path());
        }
    }
    Ok(())
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
    fn nothing_wanted_is_nothing_looked_for() {
        let nowhere = Path::new("/nonexistent");
        assert!(gather(&[], nowhere, nowhere).unwrap().is_empty());
        let error = gather(&["fuse"], nowhere, nowhere).unwrap_err();
        assert!(error.to_string().contains("no module fuse"), "{error}");
    }
}
