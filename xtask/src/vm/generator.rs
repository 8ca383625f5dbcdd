//! The kernel's own `test_lockup`, a module that Debian does not build: a second maker of
//! lockups, which nobody here has written.
//!
//! Its source is taken out of Debian's package of the kernel's source, and built with
//! Debian's headers for the kernel that is booted. What is needed for that is kept in the
//! cache; the source is never part of this tree.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::image::Image;
use crate::archive::Archive;
use crate::process::{self, timed};
use crate::{cache, deb};

/// The module.
pub(crate) const NAME: &str = "test_lockup";
/// The place of its source in that of the kernel.
const SOURCE: &str = "lib/test_lockup.c";
/// A program of the kernel's build: if it runs here, so do the others.
const PROBE: &str = "scripts/basic/fixdep";

/// The module for an image, from the cache or built.
///
/// # Errors
/// Why it cannot be built here, such as headers whose programs need a newer system.
pub(crate) fn module(
    archive: &Archive,
    series: &str,
    image: &Image,
    cache: &Path,
) -> Result<PathBuf> {
    let home = cache.join("generators").join(&image.release);
    let module = home.join(format!("{NAME}.ko"));
    if module.is_file() {
        return Ok(module);
    }
    // One of an older image is of no more use.
    let others = fs::read_dir(cache.join("generators")).into_iter().flatten();
    let prefix = format!("{series}.");
    for other in others.flatten() {
        if other.file_name().to_string_lossy().starts_with(&prefix) {
            cache::remove(&other.path())?;
        }
    }
    let work = cache.join("making");
    cache::remove(&work)?;
    let built = build(archive, series, image, &work).and_then(|built| {
        fs::create_dir_all(&home)?;
        fs::rename(&built, &module).context("cannot keep the module")
    });
    built.and(cache::remove(&work))?;
    Ok(module)
}

fn build(archive: &Archive, series: &str, image: &Image, work: &Path) -> Result<PathBuf> {
    let (debs, root, source) = (work.join("debs"), work.join("root"), work.join("source"));
    for folder in [&debs, &root, &source] {
        fs::create_dir_all(folder)?;
    }
    let headers = format!("linux-headers-{}", image.release);
    let needed = archive.depends(&headers)?;
    let of_build = needed
        .iter()
        .filter(|name| name.starts_with("linux-headers-") || name.starts_with("linux-kbuild-"));
    for package in of_build.chain([&headers]) {
        let (deb, _) = archive.download(package, &debs)?;
        deb::unpack(&deb, &[], &root)?;
    }
    let tree = root.join("usr/src").join(&headers);
    does_run(&tree.join(PROBE))?;
    // It names the place where it would be installed.
    let makefile = tree.join("Makefile");
    let text = fs::read_to_string(&makefile).context("the headers have no Makefile")?;
    let here = format!("{}/", root.join("usr/src").display());
    fs::write(&makefile, text.replace("/usr/src/", &here))?;

    let (deb, _) = archive.download(&format!("linux-source-{series}"), &debs)?;
    timed(&format!("taking {SOURCE} out of it"), || {
        take(&deb, series, &source)
    })?;
    fs::write(source.join("Makefile"), format!("obj-m := {NAME}.o\n"))?;
    timed(&format!("building {NAME} for {}", image.release), || {
        let mut make = Command::new("make");
        make.arg("-C").arg(&tree);
        make.arg(format!("M={}", source.display())).arg("modules");
        process::capture(&mut make)
    })?;
    let module = source.join(format!("{NAME}.ko"));
    process::capture(Command::new("strip").arg("--strip-debug").arg(&module))?;
    Ok(module)
}

/// Headers of a newer Debian bring programs that need its C library.
fn does_run(program: &Path) -> Result<()> {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    let said = command
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let text = String::from_utf8_lossy(&said.stderr);
    if text.contains("version `") && text.contains("not found") {
        bail!("the kernel's build does not run here: {}", text.trim());
    }
    Ok(())
}

/// One file of an archive in a package. The readers before tar end with it, early.
fn take(deb: &Path, series: &str, into: &Path) -> Result<()> {
    let mut package = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start dpkg-deb")?;
    let mut outer = Command::new("tar")
        .arg("-xO")
        .arg(format!("./usr/src/linux-source-{series}.tar.xz"))
        .stdin(package.stdout.take().context("dpkg-deb has no stdout")?)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start tar")?;
    let found = Command::new("tar")
        .args([
            "-xJ",
            "--occurrence=1",
            "--strip-components=2",
            "--no-same-owner",
            "-C",
        ])
        .arg(into)
        .arg(format!("linux-source-{series}/{SOURCE}"))
        .stdin(outer.stdout.take().context("tar has no stdout")?)
        .output()
        .context("cannot start tar")?;
    outer.wait()?;
    package.wait()?;
    let name = Path::new(SOURCE).file_name().context("a file has a name")?;
    if !into.join(name).is_file() {
        bail!(
            "{} has no {SOURCE}: {}",
            deb.display(),
            String::from_utf8_lossy(&found.stderr).trim()
        );
    }
    Ok(())
}
