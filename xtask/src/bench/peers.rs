//! Other tools, as Debian has them: fetched and unpacked with all that they need, not
//! installed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::archive::Archive;
use crate::{cache, deb, process};

/// Debian's release that they are taken from.
const RELEASE: &str = "trixie";

/// Packages, and the programs in them.
const PACKAGES: [(&str, &str); 3] = [
    ("libbpf-tools", "usr/sbin/klockstat-libbpf"),
    ("bpftrace", "usr/bin/bpftrace"),
    ("linux-perf", "usr/bin/perf"),
];

/// Where Debian has libraries, and the program that loads them.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "ld-linux-x86-64.so.2";

/// Their files by the paths that they are to have in a machine: programs in /peers/bin, libraries
/// and the loader in /peers/lib (`tests/src/loops/mode.rs` runs them).
pub(super) fn files() -> Result<Vec<(String, PathBuf)>> {
    let cache = cache::directory()?.join("peers");
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let _lock = cache::lock(&cache)?;
    let home = cache.join(RELEASE);
    if !home.is_dir() {
        cache::make_whole(&home, &cache.join("making"), |work| fetch(&cache, work))?;
    }
    let mut files = Vec::new();
    for folder in ["bin", "lib"] {
        for entry in fs::read_dir(home.join(folder))? {
            let entry = entry?;
            let name = entry.file_name();
            let path = format!("/peers/{folder}/{}", name.to_string_lossy());
            files.push((path, entry.path()));
        }
    }
    Ok(files)
}

/// Unpacks the programs and their libraries; where that is.
fn fetch(cache: &Path, work: &Path) -> Result<PathBuf> {
    let archive = Archive::of_release(&cache.join("apt"), RELEASE)?;
    if !archive.is_fresh() {
        archive.refresh()?;
    }
    let (debs, unpacked, home) = (work.join("debs"), work.join("all"), work.join("home"));
    let (bin, lib) = (home.join("bin"), home.join("lib"));
    for folder in [&debs, &unpacked, &bin, &lib] {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    for package in archive.download_all(&PACKAGES.map(|(package, _)| package), &debs)? {
        deb::unpack(&package, &["./usr"], &unpacked)?;
    }
    let loader = unpacked.join(LIBRARIES).join(LOADER);
    copy(&loader, &lib)?;
    for (_, program) in PACKAGES {
        let program = unpacked.join(program);
        for library in libraries(&loader, &unpacked.join(LIBRARIES), &program)? {
            copy(&library, &lib)?;
        }
        copy(&program, &bin)?;
    }
    Ok(home)
}

/// What a program loads, as its own loader finds it.
fn libraries(loader: &Path, folder: &Path, program: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut list = Command::new(loader);
    list.arg("--library-path").arg(folder);
    let listed = process::capture(list.arg("--list").arg(program))?;
    let paths = listed
        .lines()
        .filter_map(|line| line.split_once(" => ")?.1.rsplit_once(" ("));
    Ok(paths.map(|(path, _)| PathBuf::from(path)).collect())
}

/// A file, or what a link leads to, under its own name.
fn copy(file: &Path, into: &Path) -> Result<()> {
    let name = file.file_name().context("a file without a name")?;
    fs::copy(file, into.join(name))
        .map(drop)
        .with_context(|| format!("cannot copy {}", file.display()))
}
