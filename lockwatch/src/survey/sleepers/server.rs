//! The server of a network file system, or of a FUSE file system, that a task waits for.
//!
//! What a task of a network file system has at hand leads to its super block: the inode, the
//! dentry or the page it wants. A super block is one only if an inode of it points back at
//! what led there. Where the stack leads to several servers, none is named.

use crate::{
    daemon::ConnectionAddr,
    kernel::{
        arch::is_kernel_address,
        layout::Layout,
        memory::{KernelMemory, MemoryError, word},
        network_fs,
    },
    sleeper::Awaited,
    survey::{
        look::{Look, TaskLook},
        names::{file_system, own_namespace},
        paths::Paths,
    },
};

/// The only server that the stack of a task at rest leads to.
///
/// # Errors
/// When kernel memory cannot be read at all.
pub(super) fn of_task(
    look: &Look,
    task: &TaskLook,
    layout: &Layout,
    memory: &mut dyn KernelMemory,
) -> Result<Option<Awaited>, MemoryError> {
    let super_blocks = super_blocks(look, task, layout, memory)?;
    let namespace = own_namespace(look, layout, memory)?;
    let mut servers: Vec<Awaited> = Vec::new();
    for super_block in super_blocks {
        let Some((fstype, _)) = file_system(super_block, layout, memory)? else {
            continue;
        };
        if !network_fs::is_one(&fstype) {
            continue;
        }
        let mut paths = Paths {
            layout,
            memory,
            namespace,
        };
        let source = paths.source(super_block)?;
        let name = source.map_or_else(String::new, |source| network_fs::server(&source).to_owned());
        let server = Awaited::Server { fstype, name };
        if !servers.contains(&server) {
            servers.push(server);
        }
    }
    Ok(servers.pop().filter(|_| servers.is_empty()))
}

/// The only FUSE connection that the stack of a task at rest leads to: that of the file whose
/// page it waits for, which somebody else asked the daemon for. A super block and its mount
/// point at each other.
///
/// # Errors
/// When kernel memory cannot be read at all.
pub(super) fn connection_of_task(
    look: &Look,
    task: &TaskLook,
    layout: &Layout,
    memory: &mut dyn KernelMemory,
) -> Result<Option<ConnectionAddr>, MemoryError> {
    let Some(fuse) = &layout.fuse else {
        return Ok(None);
    };
    let mut found = Vec::new();
    for super_block in super_blocks(look, task, layout, memory)? {
        let private = super_block.wrapping_add(layout.super_block.private as u64);
        let Some(mount) = memory
            .read_u64(private)?
            .filter(|&at| is_kernel_address(at))
        else {
            continue;
        };
        let mut points_back = false;
        for at in fuse.mount_super {
            points_back |= memory.read_u64(mount.wrapping_add(at))? == Some(super_block);
        }
        let connection = memory.read_u64(mount.wrapping_add(fuse.mount_connection as u64))?;
        found.extend(connection.filter(|_| points_back).map(ConnectionAddr));
    }
    found.sort_unstable();
    found.dedup();
    Ok(found.pop().filter(|_| found.is_empty()))
}

/// The super blocks of all inodes that a stack leads to.
fn super_blocks(
    look: &Look,
    task: &TaskLook,
    layout: &Layout,
    memory: &mut dyn KernelMemory,
) -> Result<Vec<u64>, MemoryError> {
    let pointers = look.pointers(look.words(task));
    let mut found = Vec::new();
    for at in inodes(&pointers, layout, memory)? {
        let super_block = memory.read_u64(at.wrapping_add(layout.inode.sb as u64))?;
        found.extend(super_block.filter(|&at| is_kernel_address(at)));
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// The inodes among these objects, and those that dentries and pages among them belong to.
fn inodes(
    pointers: &[u64],
    layout: &Layout,
    memory: &mut dyn KernelMemory,
) -> Result<Vec<u64>, MemoryError> {
    let inode = &layout.inode;
    let mut candidates = pointers.to_vec();
    // From a page over its mapping, and from a dentry at once.
    let pages = layout.block.map(|block| block.page_mapping);
    for (offset, back) in [(pages, inode.data), (Some(layout.dentry.inode as u64), 0)] {
        let Some(offset) = offset else { continue };
        let reads: Vec<(u64, usize)> = pointers
            .iter()
            .map(|at| (at.wrapping_add(offset), 8))
            .collect();
        let targets = memory.read_batch(&reads)?;
        let targets = targets.into_iter().flatten().map(|bytes| word(&bytes, 0));
        candidates.extend(targets.map(|target| target.wrapping_sub(back)));
    }
    candidates.retain(|&at| is_kernel_address(at) && at.is_multiple_of(8));
    candidates.sort_unstable();
    candidates.dedup();
    // Its mapping lies in it.
    let reads: Vec<(u64, usize)> = candidates
        .iter()
        .map(|at| (at.wrapping_add(inode.mapping as u64), 8))
        .collect();
    let mappings = memory.read_batch(&reads)?;
    let points_back = |(at, bytes): (u64, Option<Vec<u8>>)| {
        let mapping = word(&bytes?, 0);
        (mapping == at.wrapping_add(inode.data)).then_some(at)
    };
    let pairs = candidates.into_iter().zip(mappings);
    Ok(pairs.filter_map(points_back).collect())
}
