//! The programs of a machine: how they are made small, and the libraries they need.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process;

/// A binary without its debug sections, which would fill the machine's memory.
pub(crate) fn stripped(binary: &Path, work: &Path) -> Result<Vec<u8>> {
    let name = binary.file_name().context("a binary without a name")?;
    let to = work.join(name);
    let mut strip = Command::new("strip");
    process::capture(strip.arg("-o").arg(&to).arg(binary))
        .context("binaries are made smaller with strip, of package binutils")?;
    let bytes = fs::read(&to).with_context(|| format!("cannot read {}", to.display()))?;
    fs::remove_file(&to)?;
    Ok(bytes)
}

/// The shared libraries of some binaries, and the loader, as the machine at hand finds them.
pub(crate) fn libraries(binaries: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for binary in binaries {
        let output = Command::new("ldd")
            .arg(binary)
            // Cargo's makes the loader look for libraries in its own folders.
            .env_remove("LD_LIBRARY_PATH")
            .output()
            .context("cannot start ldd")?;
        let text = String::from_utf8_lossy(&output.stdout);
        if text.contains("=> not found") {
            bail!("{} lacks a library: {text}", binary.display());
        }
        found.extend(parse_ldd(&text));
    }
    Ok(found)
}

/// Takes the paths of `name => path (address)` and `path (address)` rows.
fn parse_ldd(text: &str) -> Vec<PathBuf> {
    text.lines()
        .filter_map(|line| line.trim().rsplit_once(" (")?.0.rsplit("=> ").next())
        .filter(|path| path.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_absolute_paths() {
        let text = "\tlinux-vdso.so.1 (0x00007ffe3a9f2000)
\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f7d4b1c2000)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f7d4b3c8000)
";
        let wanted = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(parse_ldd(text), wanted.map(PathBuf::from));
        assert!(parse_ldd("\tnot a dynamic executable\n").is_empty());
        assert!(parse_ldd("\tstatically linked\n").is_empty());
    }
}
