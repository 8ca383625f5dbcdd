//! A kernel in the cache: the file that boots, and the modules it needs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::catalogue::{self, Kernel, MODULES, MODULES_IF_SHIPPED};
use super::module;
use crate::archive::Archive;
use crate::process::{say, timed};
use crate::{cache, deb};

/// The folder below the cache, raised when what is in it changes, its layout or which modules
/// there are: trees of different age can share a cache.
pub(crate) const LAYOUT: &str = "3";
/// The archive's index may name a package that is gone; then an older one is tried.
const ATTEMPTS: usize = 3;

/// Written last: a folder without it is not used.
#[derive(Debug, Serialize, Deserialize)]
struct Stamp {
    /// What `uname -r` will say.
    release: String,
    /// Size of the packages, bytes.
    download: u64,
    /// File names, in the order in which they are loaded.
    modules: Vec<String>,
}

/// A kernel that can be booted.
#[derive(Debug)]
pub(crate) struct Image {
    /// Debian's package.
    pub(crate) package: String,
    /// What `uname -r` will say.
    pub(crate) release: String,
    /// Size of the packages, bytes.
    pub(crate) download: u64,
    /// The bootable file.
    pub(crate) vmlinuz: PathBuf,
    /// Modules, unpacked, in the order in which they are loaded.
    pub(crate) modules: Vec<PathBuf>,
    /// The kernel's own maker of lockups, or why there is none.
    pub(crate) generator: Result<PathBuf, String>,
}

/// The newest image of a kernel: from the cache, else fetched.
///
/// `packages` are the names that the archive knows; none if it cannot be asked.
pub(crate) fn newest(
    kernel: &Kernel,
    archive: &Archive,
    packages: &[String],
    cache: &Path,
) -> Result<Image> {
    if packages.is_empty() {
        return newest_in_cache(kernel, cache);
    }
    let candidates = kernel.newest_first(packages.iter().map(String::as_str));
    if candidates.is_empty() {
        bail!(
            "Debian's archive has no package {}*{}",
            kernel.prefix,
            kernel.suffix
        );
    }
    let mut last = None;
    for package in candidates.iter().take(ATTEMPTS) {
        let home = cache.join(package);
        if let Ok(image) = check(package, &home) {
            return Ok(image);
        }
        match make(archive, package, cache) {
            Ok(()) => {
                prune(kernel, package, cache)?;
                return check(package, &home);
            }
            Err(error) => {
                say(format_args!("{package} cannot be had: {error:#}"));
                last = Some(error);
            }
        }
    }
    Err(last.context("no attempt was made")?)
}

/// The archive cannot be asked: what an earlier run has fetched is as good.
pub(crate) fn newest_in_cache(kernel: &Kernel, cache: &Path) -> Result<Image> {
    let names = names(cache)?;
    kernel
        .newest_first(names.iter().map(String::as_str))
        .into_iter()
        .find_map(|package| check(package, &cache.join(package)).ok())
        .context("it is not in the cache, and the archive cannot be asked")
}

/// Older images of a kernel are of no more use.
fn prune(kernel: &Kernel, newest: &str, cache: &Path) -> Result<()> {
    let names = names(cache)?;
    for old in kernel.newest_first(names.iter().map(String::as_str)) {
        if old != newest {
            cache::remove(&cache.join(old))?;
        }
    }
    Ok(())
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    Ok(entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect())
}

/// Accepts only what the stamp describes.
fn check(package: &str, home: &Path) -> Result<Image> {
    let path = home.join("stamp.json");
    let text = fs::read(&path).with_context(|| format!("no {}", path.display()))?;
    let stamp: Stamp =
        serde_json::from_slice(&text).with_context(|| format!("bad {}", path.display()))?;
    let image = Image {
        package: package.to_owned(),
        release: stamp.release,
        download: stamp.download,
        vmlinuz: home.join("vmlinuz"),
        modules: stamp.modules.iter().map(|name| home.join(name)).collect(),
        generator: Err("it is not built for this kernel".to_owned()),
    };
    for file in image.modules.iter().chain([&image.vmlinuz]) {
        fs::metadata(file).with_context(|| format!("{} is gone", file.display()))?;
    }
    Ok(image)
}

/// Builds beside the final place and renames, so that a broken run leaves nothing usable.
fn make(archive: &Archive, package: &str, cache: &Path) -> Result<()> {
    let work = cache.join("making");
    // The lock on the cache is ours: what lies here is left from a run that was killed.
    cache::remove(&work)?;
    let made = make_in(archive, package, &work).and_then(|new| {
        let home = cache.join(package);
        cache::remove(&home)?;
        fs::rename(&new, &home).with_context(|| format!("cannot make {}", home.display()))
    });
    made.and(cache::remove(&work))
}

fn make_in(archive: &Archive, package: &str, work: &Path) -> Result<PathBuf> {
    let (debs, unpacked, new) = (work.join("debs"), work.join("unpacked"), work.join("new"));
    for folder in [&debs, &unpacked, &new] {
        fs::create_dir_all(folder)?;
    }
    let mut download = 0;
    for part in catalogue::parts(package) {
        let (deb, size) = archive.download(&part, &debs)?;
        download += size;
        timed("unpacking it", || deb::unpack(&deb, &[], &unpacked))?;
    }
    let vmlinuz = bootable(&unpacked).with_context(|| format!("{package} has no vmlinuz"))?;
    fs::rename(vmlinuz, new.join("vmlinuz"))?;
    let release = package
        .split_once('-')
        .and_then(|(_, rest)| rest.split_once('-'))
        .map(|(_, release)| release.to_owned())
        .with_context(|| format!("{package} is no name of a kernel package"))?;
    let modules = module::gather(&MODULES, &MODULES_IF_SHIPPED, &unpacked, &new)?;
    let stamp = Stamp {
        release,
        download,
        modules,
    };
    fs::write(new.join("stamp.json"), serde_json::to_vec_pretty(&stamp)?)?;
    Ok(new)
}

/// In /boot up to 7.1, among the modules in packages that are split.
fn bootable(unpacked: &Path) -> Option<PathBuf> {
    let below = |folder: &str| {
        fs::read_dir(unpacked.join(folder))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
    };
    below("boot")
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
        })
        .or_else(|| {
            below("usr/lib/modules")
                .map(|release| release.join("vmlinuz"))
                .find(|path| path.is_file())
        })
}
