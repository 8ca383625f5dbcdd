//! A second file system beside the lab's own, for decoys that need one.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    mount::{MsFlags, mount},
    unistd::mkdtemp,
};

use crate::fuse::{Server, Source, Tree};

/// Which file system it is.
pub(crate) enum Kind {
    /// An overlay that shows the lab's file system, read-only.
    Overlay,
    /// One more FUSE file system, on a block device: the kernel tells only
    /// those of a `sync`.
    Device(Tree),
}

/// The second file system, mounted after the first.
pub(crate) struct Beside {
    pub(crate) mount: PathBuf,
    server: Option<Server>,
}

impl Beside {
    /// Makes the directory that [`Beside::mount`] mounts on.
    pub(crate) fn place() -> Result<PathBuf> {
        mkdtemp("/tmp/stall-lab-beside-XXXXXX")
            .context("cannot make a directory in /tmp: the lab mounts there")
    }

    /// Mounts it on `at`, beside the lab's file system on `lab`.
    pub(crate) fn mount(at: &Path, kind: Kind, lab: &Path, max_delay: Duration) -> Result<Self> {
        let server = match kind {
            Kind::Overlay => {
                mount_overlay(at, lab)?;
                None
            }
            Kind::Device(tree) => Some(Server::start(at, Source::Device, tree, max_delay)?),
        };
        Ok(Self {
            mount: at.to_owned(),
            server,
        })
    }

    pub(crate) fn server(&self) -> Result<&Server> {
        self.server
            .as_ref()
            .context("the second file system has no server")
    }

    /// Sets anew how late its answers may be, counted from now.
    pub(crate) fn limit(&self, max_delay: Duration) {
        if let Some(server) = &self.server {
            server.limit(max_delay);
        }
    }

    /// Its server, if it has one, has seen the unmount.
    pub(crate) fn has_ended(&self) -> bool {
        self.server.as_ref().is_none_or(Server::has_ended)
    }
}

fn mount_overlay(at: &Path, lab: &Path) -> Result<()> {
    let known = fs::read_to_string("/proc/filesystems").context("cannot list file systems")?;
    // Without an upper directory the kernel asks for two lower ones; `at` is
    // empty as long as nothing is mounted there.
    let options = format!("lowerdir={}:{}", lab.display(), at.display());
    mount(
        Some("stall-lab"),
        at,
        Some("overlay"),
        MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some(options.as_str()),
    )
    .with_context(|| {
        let hint = if known.lines().any(|line| line.ends_with("\toverlay")) {
            ""
        } else {
            ": this scenario needs a kernel with overlayfs (`modprobe overlay`)"
        };
        format!("cannot mount an overlay on {}{hint}", at.display())
    })
}
