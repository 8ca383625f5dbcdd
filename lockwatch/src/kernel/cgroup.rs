//! Where a task's control group lies.
//!
//! Sources: include/linux/cgroup-defs.h and include/linux/kernfs.h of 5.10, 6.1, 6.12, 6.18
//! and 7.3.

use super::btf::Btf;

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
