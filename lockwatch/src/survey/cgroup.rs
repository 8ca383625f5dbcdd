//! The control group of a task, and whether it keeps the task from running: from kernel
//! memory, for /proc/PID/cgroup waits for whoever moves tasks between groups.

use crate::{
    kernel::{
        arch::is_kernel_address,
        cgroup::{CgroupLayout, ThrottleLayout},
        memory::{KernelMemory, MemoryError, half_word, text},
    },
    survey::look::TaskLook,
    task::TaskState,
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

/// Whether the limit of a group's CPU time keeps a task from running that could run.
///
/// # Errors
/// When kernel memory cannot be read at all.
pub(super) fn is_throttled(
    task: &TaskLook,
    layout: ThrottleLayout,
    memory: &mut dyn KernelMemory,
) -> Result<Option<bool>, MemoryError> {
    if task.state != TaskState::Runnable {
        return Ok(Some(false));
    }
    let own = task.record.task;
    Ok(match layout {
        ThrottleLayout::Task(throttled) => memory
            .read(own.wrapping_add(throttled.offset.into()), 1)?
            .map(|byte| byte != [0]),
        ThrottleLayout::Group { task_queue, count } => {
            let queue = pointer(own.wrapping_add(task_queue), memory)?;
            let count = match queue {
                Some(queue) => memory.read(queue.wrapping_add(count), 4)?,
                None => None,
            };
            count.map(|bytes| half_word(&bytes, 0) as i32 > 0)
        }
    })
}
