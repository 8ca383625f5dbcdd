//! Debian packages as files.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

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
