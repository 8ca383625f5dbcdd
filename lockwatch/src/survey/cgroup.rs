//! The control group of a task: from kernel memory, for /proc/PID/cgroup waits for whoever
//! moves tasks between groups.

use crate::{
    kernel::{
        arch::is_kernel_address,
        cgroup::CgroupLayout,
        memory::{KernelMemory, MemoryError, text},
    },
    survey::look::TaskLook,
};

/// Deepest group that is followed.
const DEPTH_MAX: usize = 64;

/// Bytes of a name that are read (`NAME_MAX`, include/uapi/linux/limits.h, and its end).
const NAME_LEN: usize = 256;

/// The path of a task's group below the root of the v2 hierarchy; `/` for the root, in
/// which tasks are, too, where only v1 hierarchies are used.
///
/// # Errors
/// When kernel memory cannot be read at all.
pub(super) fn path(
    task: &TaskLook,
    layout: &CgroupLayout,
    memory: &mut dyn KernelMemory,
) -> Result<Option<String>, MemoryError> {
    let mut at = task.record.task;
    for offset in [layout.task_set, layout.set_group, layout.group_node] {
        match pointer(at.wrapping_add(offset), memory)? {
            Some(next) => at = next,
            None => return Ok(None),
        }
    }
    let mut names = Vec::new();
    for _ in 0..DEPTH_MAX {
        let Some(parent) = memory.read_u64(at.wrapping_add(layout.node_parent))? else {
            return Ok(None);
        };
        if parent == 0 {
            names.reverse();
            return Ok(Some(format!("/{}", names.join("/"))));
        }
        let Some(name) = name(at.wrapping_add(layout.node_name), memory)? else {
            return Ok(None);
        };
        if !is_kernel_address(parent) {
            return Ok(None);
        }
        names.push(name);
        at = parent;
    }
    Ok(None)
}

fn pointer(at: u64, memory: &mut dyn KernelMemory) -> Result<Option<u64>, MemoryError> {
    Ok(memory.read_u64(at)?.filter(|&to| is_kernel_address(to)))
}

/// The name that a pointer points at; `None` if it can be none. It may end right before
/// memory that is not there.
fn name(at: u64, memory: &mut dyn KernelMemory) -> Result<Option<String>, MemoryError> {
    let Some(start) = pointer(at, memory)? else {
        return Ok(None);
    };
    let read = memory.read_batch(&[(start, NAME_LEN), (start, 16)])?;
    let Some(bytes) = read.into_iter().flatten().next() else {
        return Ok(None);
    };
    let name = text(&bytes);
    let is_whole = name.len() < bytes.len();
    Ok(Some(name).filter(|name| is_whole && !name.is_empty() && !name.contains('/')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::survey::image::{Image, task_address};

    const LAYOUT: CgroupLayout = CgroupLayout {
        task_set: 0x100,
        set_group: 0x70,
        group_node: 0x100,
        node_parent: 8,
        node_name: 16,
    };
    const SET: u64 = 0xffff_8883_0000_0000;
    const GROUP: u64 = 0xffff_8883_0001_0000;
    const NODES: u64 = 0xffff_8883_0002_0000;

    /// Task 1 in the innermost of these groups.
    fn path_in(names: &[&[u8; 16]], root: u64) -> Option<String> {
        let mut image = Image::default();
        image.task(1);
        image.set(task_address(1) + LAYOUT.task_set, SET);
        image.set(SET + LAYOUT.set_group, GROUP);
        let node = |depth: usize| NODES + 0x1000 * depth as u64;
        image.set(GROUP + LAYOUT.group_node, node(names.len()));
        image.set(node(0) + LAYOUT.node_parent, root);
        for (name, depth) in names.iter().zip(1..) {
            image.set(node(depth) + LAYOUT.node_parent, node(depth - 1));
            image.set(node(depth) + LAYOUT.node_name, node(depth) + 0x100);
            let halves = [&name[..8], &name[8..]];
            let words = halves.map(|half| u64::from_le_bytes(half.try_into().unwrap()));
            image.set_all(node(depth) + 0x100, &words);
        }
        let look = image.look(1);
        path(&look.tasks[0], &LAYOUT, &mut image).unwrap()
    }

    #[test]
    fn a_path_begins_at_the_root() {
        let names = [b"system.slice\0\0\0\0", b"db.service\0\0\0\0\0\0"];
        assert_eq!(
            path_in(&names, 0).as_deref(),
            Some("/system.slice/db.service")
        );
        assert_eq!(path_in(&[], 0).as_deref(), Some("/"));
    }

    #[test]
    fn what_is_no_path_is_not_shown() {
        assert_eq!(
            path_in(&[b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"], 0),
            None,
            "no name"
        );
        assert_eq!(path_in(&[b"sixteen letters!"], 0), None, "cut off");
        assert_eq!(path_in(&[b"a/b\0\0\0\0\0\0\0\0\0\0\0\0\0"], 0), None);
        assert_eq!(
            path_in(&[b"a\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"], 7),
            None,
            "no root"
        );
        let names: [&[u8; 16]; 70] = [b"a\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"; 70];
        assert_eq!(path_in(&names, 0), None, "too deep");
    }
}
