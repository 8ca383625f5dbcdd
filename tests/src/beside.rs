//! A second file system beside the lab's own, for decoys that need one.

use std::{
    fs::{self, File},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    libc,
    mount::{MsFlags, mount},
    unistd::mkdtemp,
};

use crate::{
    device::Device,
    ext2,
    fuse::{Server, Source, Tree},
    nfs,
    scenario::NotHere,
};

/// Comm of the thread that serves it.
pub(crate) const COMM: &str = "lab-server-2";

/// Which file system it is.
pub(crate) enum Kind {
    /// An overlay that shows the lab's file system, read-only.
    Overlay,
    /// One more FUSE file system, on a block device: the kernel tells only
    /// those of a `sync`.
    Device(Tree),
    /// One more FUSE file system.
    Fuse(Tree),
    /// One that the target process mounts and serves itself.
    OfTarget(Tree),
    /// An empty ext2, which can be frozen, mounted as ext4.
    Ext2,
    /// The ext2 in this file of the lab's file system, mounted as ext4.
    Ext2In(&'static str),
    /// NFS, from a server in the lab.
    Nfs,
}

/// The second file system, mounted after the first.
pub(crate) struct Beside {
    pub(crate) mount: PathBuf,
    /// Name of the block device it is on, if the lab knows one.
    device: Option<String>,
    server: Option<Server>,
    nfs: Option<nfs::Server>,
}

impl Beside {
    /// Makes the directory that [`Beside::mount`] mounts on.
    pub(crate) fn place() -> Result<PathBuf> {
        mkdtemp("/tmp/stall-lab-beside-XXXXXX")
            .context("cannot make a directory in /tmp: the lab mounts there")
    }

    /// Mounts it on `at`, beside the lab's file system on `lab`.
    pub(crate) fn mount(at: &Path, kind: Kind, lab: &Path, max_delay: Duration) -> Result<Self> {
        let mut beside = Self {
            mount: at.to_owned(),
            device: None,
            server: None,
            nfs: None,
        };
        match kind {
            Kind::Overlay => mount_overlay(at, lab)?,
            Kind::Ext2 => beside.device = Some(mount_ext2(at, &Device::attach(&ext2::image())?)?),
            Kind::Ext2In(name) => {
                let device = Device::over(&open_direct(&lab.join(name))?)?;
                beside.device = Some(mount_ext2(at, &device)?);
            }
            Kind::Device(tree) => {
                let server = Server::start(COMM, at, Source::Device, tree, max_delay)?;
                beside.server = Some(server);
            }
            Kind::Fuse(tree) => {
                let server = Server::start(COMM, at, Source::Nothing, tree, max_delay)?;
                beside.server = Some(server);
            }
            Kind::Nfs => {
                if !is_known("nfs")? {
                    return Err(NotHere::because("the kernel has no NFS (`modprobe nfs`)"));
                }
                let server = beside.nfs.insert(nfs::Server::start(max_delay)?);
                server.mount(at)?;
            }
            Kind::OfTarget(_) => {}
        }
        Ok(beside)
    }

    /// The name of the block device it is on.
    pub(crate) fn device(&self) -> Result<&str> {
        self.device
            .as_deref()
            .context("the second file system is on no device of the lab")
    }

    pub(crate) fn server(&self) -> Result<&Server> {
        self.server
            .as_ref()
            .context("the second file system has no server")
    }

    pub(crate) fn nfs(&self) -> Result<&nfs::Server> {
        self.nfs
            .as_ref()
            .context("the second file system is no NFS")
    }

    /// Sets anew how late its answers may be, counted from now.
    pub(crate) fn limit(&self, max_delay: Duration) {
        if let Some(nfs) = &self.nfs {
            nfs.limit(max_delay);
        }
        if let Some(server) = &self.server {
            server.limit(max_delay);
        }
    }

    /// Its server, if it has one, has seen the unmount, or is told of it.
    pub(crate) fn has_ended(&self) -> bool {
        let nfs_has_ended = self.nfs.as_ref().is_none_or(|nfs| {
            nfs.end();
            nfs.has_ended()
        });
        nfs_has_ended && self.server.as_ref().is_none_or(Server::has_ended)
    }
}

/// Every read of the device is one request of the file then.
fn open_direct(path: &Path) -> Result<OwnedFd> {
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_DIRECT)
        .open(path)
        .with_context(|| format!("cannot open {} with O_DIRECT", path.display()))?;
    Ok(file.into())
}

/// Returns the name of the device.
fn mount_ext2(at: &Path, device: &Device) -> Result<String> {
    if !is_known("ext4")? {
        return Err(NotHere::because("the kernel has no ext4 (`modprobe ext4`)"));
    }
    mount(
        Some(&*device.path),
        at,
        Some("ext4"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME,
        // It would read the directory, too, which lies behind the inodes.
        Some("inode_readahead_blks=0"),
    )
    .with_context(|| format!("cannot mount {} on {}", device.path, at.display()))?;
    Ok(device.path.trim_start_matches("/dev/").to_owned())
}

/// Whether the kernel has this type of file system.
fn is_known(fstype: &str) -> Result<bool> {
    let known = fs::read_to_string("/proc/filesystems").context("cannot list file systems")?;
    Ok(known
        .lines()
        .any(|line| line.split_whitespace().last() == Some(fstype)))
}

fn mount_overlay(at: &Path, lab: &Path) -> Result<()> {
    if !is_known("overlay")? {
        return Err(NotHere::because(
            "the kernel has no overlayfs (`modprobe overlay`)",
        ));
    }
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
    .with_context(|| format!("cannot mount an overlay on {}", at.display()))
}
