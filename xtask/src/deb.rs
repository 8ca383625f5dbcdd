//! Debian packages as files.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::process::{self, say};

/// Fetches packages, each a `name` or `name=version`, into a folder; installs nothing.
pub(crate) fn download(packages: &[String], into: &Path) -> Result<()> {
    let fetch = || {
        let mut command = Command::new("apt-get");
        command.current_dir(into).args(["-q", "download"]);
        if nix::unistd::geteuid().is_root() {
            // apt's own user may not write into root's cache.
            command.args(["-o", "APT::Sandbox::User=root"]);
        }
        process::run(command.args(packages).stdout(Stdio::null()))
    };
    let Err(first) = fetch() else { return Ok(()) };
    if !nix::unistd::geteuid().is_root() {
        return Err(first.context("download failed: run `apt-get update` as root and try again"));
    }
    // An index older than the archive names files that are gone.
    say("download failed; once more after apt-get update");
    process::run(
        Command::new("apt-get")
            .args(["-q", "update"])
            .stdout(Stdio::null()),
    )?;
    fetch().context("download failed twice: is the Debian archive reachable?")
}

/// Unpacks a package, or some members of it, owned by the caller.
pub(crate) fn unpack(deb: &Path, members: &[&str], into: &Path) -> Result<()> {
    let mut reader = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start dpkg-deb")?;
    let stream = reader.stdout.take().context("dpkg-deb has no stdout")?;
    let status = Command::new("tar")
        .args(["-x", "--no-same-owner", "--wildcards", "-C"])
        .arg(into)
        .args(members)
        .stdin(stream)
        .status()
        .context("cannot start tar")?;
    let read = reader.wait()?;
    if !status.success() || !read.success() {
        bail!(
            "{} does not unpack {} (dpkg-deb {read}, tar {status})",
            deb.display(),
            members.join(" ")
        );
    }
    Ok(())
}
