//! What is run in a machine: lockwatch, the stall lab, the live tests, and the
//! libraries and tools they need.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::process;
use crate::workspace::{self, Workspace};

/// Test targets whose tests are for a machine of their own.
const KINDS: [&str; 2] = ["live", "vm"];
/// The one of them that takes minutes where nothing is emulated.
const SOAK: &str = "live_soak";

/// A test binary and its tests.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) binary: PathBuf,
    pub(crate) tests: Vec<String>,
}

/// Builds lockwatch and the lab as released.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    process::run(&mut crate::demo::build_command(workspace))
}

/// Builds the test targets.
pub(crate) fn build_tests(workspace: &Workspace) -> Result<Vec<Target>> {
    let wanted = |name: &str| {
        name != SOAK
            && KINDS.iter().any(|kind| {
                name.strip_prefix(kind)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
            })
    };
    let mut command = workspace::cargo();
    command.current_dir(&workspace.root).args([
        "test",
        "--workspace",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    let names: Vec<&String> = workspace
        .test_targets
        .iter()
        .filter(|name| wanted(name))
        .collect();
    if names.is_empty() {
        bail!("tests/tests/ has no live_*.rs");
    }
    for name in names {
        command.args(["--test", name]);
    }
    let messages = process::capture(&mut command)?;
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| {
            let binary = message["executable"].as_str()?;
            let name = message["target"]["name"].as_str()?;
            let is_test = message["profile"]["test"] == true && wanted(name);
            is_test.then(|| (name.to_owned(), PathBuf::from(binary)))
        })
        .map(|(name, binary)| {
            let tests = list(&binary)?;
            Ok(Target {
                name,
                binary,
                tests,
            })
        })
        .collect()
}

/// The tests that a binary has; runs none.
fn list(binary: &Path) -> Result<Vec<String>> {
    let mut command = Command::new(binary);
    let text = process::capture(command.args(["--list", "--format", "terse"]))?;
    Ok(parse_list(&text))
}

fn parse_list(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .map(str::to_owned)
        .collect()
}

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
    fn tests_are_listed_without_benchmarks() {
        let text = "one::two: test\nslow: benchmark\n\n1 tests, 1 benchmarks\n";
        assert_eq!(parse_list(text), ["one::two"]);
    }

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
