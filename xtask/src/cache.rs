//! The cache outside of the tree: downloads and what is made of them.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::process::say;

/// `$LOCKWATCH_CACHE`, else where the XDG rules put caches.
pub(crate) fn directory() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let directory = if let Some(cache) = set("LOCKWATCH_CACHE") {
        PathBuf::from(cache)
    } else if let Some(cache) = set("XDG_CACHE_HOME") {
        PathBuf::from(cache).join("lockwatch")
    } else {
        let home = set("HOME").context("no HOME: set LOCKWATCH_CACHE to a directory for caches")?;
        PathBuf::from(home).join(".cache/lockwatch")
    };
    std::path::absolute(&directory).with_context(|| format!("bad path {}", directory.display()))
}

/// Held until dropped; a second run waits instead of unpacking over the first.
pub(crate) fn lock(cache: &Path) -> Result<File> {
    let path = cache.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    if file.try_lock().is_err() {
        say(format_args!(
            "waiting for another run that holds {} …",
            path.display()
        ));
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

/// Makes a directory beside its final place `home` and renames it, so that a broken run leaves
/// nothing usable. `make` gets the new and empty directory `work`, and says what in it is to
/// become `home`.
pub(crate) fn make_whole(
    home: &Path,
    work: &Path,
    make: impl FnOnce(&Path) -> Result<PathBuf>,
) -> Result<()> {
    remove(work)?;
    fs::create_dir_all(work).with_context(|| format!("cannot create {}", work.display()))?;
    let made = make(work).and_then(|new| {
        remove(home)?;
        fs::rename(&new, home).with_context(|| format!("cannot make {}", home.display()))
    });
    made.and(remove(work))
}

/// Removes a directory and all that is in it, if it exists.
pub(crate) fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}
