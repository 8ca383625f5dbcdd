//! When the kernel writes dirty pages of the file system back on its own.

use std::{fs, path::Path};

use anyhow::{Context, Result};

/// Share of the host's limit of dirty pages, in per cent; FUSE may have no more
/// (`fuse_bdi_init` in fs/fuse/inode.c sets the upper bound to 1).
const SHARE: &[u8] = b"1";

/// Gives the file system mounted at `at` a sure share of dirty pages.
///
/// A FUSE file system has a limit of its own, in proportion to what it wrote lately
/// (mm/page-writeback.c, `BDI_CAP_STRICTLIMIT`): next to nothing for a new one. The first
/// dirty page can be past it, and is then written back at once, before the lab wants it.
pub(super) fn ensure_share(at: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    let device = device_of(&mounts, &at.to_string_lossy())
        .with_context(|| format!("{} is not among the mounts", at.display()))?;
    let path = format!("/sys/class/bdi/{device}/min_ratio");
    fs::write(&path, SHARE).with_context(|| format!("cannot write {path}: is /sys mounted?"))
}

/// `major:minor` of what is mounted there last (proc_pid_mountinfo(5)).
fn device_of<'m>(mounts: &'m str, at: &str) -> Option<&'m str> {
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(2);
            let (device, _, place) = (fields.next()?, fields.next()?, fields.next()?);
            (place == at).then_some(device)
        })
        .next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_mount_of_a_place_counts() {
        let mounts = "21 1 0:20 / /a rw - tmpfs t rw\n\
                      22 21 0:26 / /a rw shared:1 - fuse stall-lab rw\n\
                      23 1 0:27 / /ab rw - tmpfs t rw\n";
        assert_eq!(device_of(mounts, "/a"), Some("0:26"));
        assert_eq!(device_of(mounts, "/"), None);
    }
}
