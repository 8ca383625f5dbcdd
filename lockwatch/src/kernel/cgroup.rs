//! Where a task's control group lies, and what programs know one by.
//!
//! Sources: include/linux/cgroup-defs.h and include/linux/kernfs.h of 5.10, 6.1, 6.12, 6.18
//! and 7.3.

use std::{os::unix::fs::MetadataExt as _, path::Path};

use super::btf::Btf;

/// `CGROUP2_SUPER_MAGIC` of include/uapi/linux/magic.h
const CGROUP2: i64 = 0x6367_7270;

/// The id of a control group (v2), which is the inode number of its folder
/// (fs/kernfs/inode.c, `kernfs_init_inode`).
///
/// # Errors
/// When there is no such folder, or it is none of a control group.
pub fn id_of(folder: &str) -> Result<u64, String> {
    let path = Path::new(folder);
    let file_system = rustix::fs::statfs(path).map_err(|error| error.to_string())?;
    if file_system.f_type != CGROUP2 {
        return Err("not a folder of the cgroup v2 file system".to_owned());
    }
    let metadata = path.metadata().map_err(|error| error.to_string())?;
    Ok(metadata.ino())
}

/// Offsets from a task to the names of its group and of those above.
#[derive(Clone, Copy, Debug)]
pub struct CgroupLayout {
    /// `task_struct.cgroups`, a `css_set`
    pub task_set: u64,
    /// `css_set.dfl_cgrp`: its group in the v2 hierarchy
    pub set_group: u64,
    /// `cgroup.kn`
    pub group_node: u64,
    /// `kernfs_node.__parent` (6.15+), else `parent`
    pub node_parent: u64,
    /// `kernfs_node.name`
    pub node_name: u64,
}

impl CgroupLayout {
    /// `None` for a kernel without control groups, or one that spells them in another way.
    pub fn from_btf(btf: &Btf) -> Option<Self> {
        let at = |path: &str| btf.member(path).map(|member| u64::from(member.offset));
        Some(Self {
            task_set: at("task_struct.cgroups")?,
            set_group: at("css_set.dfl_cgrp")?,
            group_node: at("cgroup.kn")?,
            node_parent: at("kernfs_node.__parent").or_else(|| at("kernfs_node.parent"))?,
            node_name: at("kernfs_node.name")?,
        })
    }
}
