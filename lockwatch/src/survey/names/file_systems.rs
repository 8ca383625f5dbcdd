//! Inodes and super blocks: the objects of file systems, which contain locks.

use super::Identity;
use crate::{
    kernel::{
        arch::is_kernel_address,
        layout::Layout,
        memory::{KernelMemory, MemoryError, half_word, text, word},
    },
    lock::{LockAddr, LockClass, LockObject},
    survey::paths::{Paths, Place},
};

/// Longest name of a file system type.
const FS_NAME_LEN: usize = 32;

/// The inode, or the mapping inside an inode, that contains the lock.
pub(super) fn inode(
    lock: LockAddr,
    layout: &Layout,
    memory: &mut dyn KernelMemory,
    namespace: Option<u64>,
) -> Result<Option<Identity>, MemoryError> {
    let places = [
        (layout.inode.i_rwsem, LockClass::InodeRwsem),
        (layout.inode.invalidate_lock, LockClass::InvalidateLock),
    ];
    for (offset, class) in places {
        let Some(offset) = offset else { continue };
        let inode = lock.0.wrapping_sub(offset);
        let Some((object, what)) = inode_object(inode, layout, memory, namespace)? else {
            continue;
        };
        return Ok(Some(Identity {
            name: format!("{class} of {what}"),
            class,
            object: Some(object),
            object_address: Some(inode),
            note: None,
        }));
    }
    Ok(None)
}

/// The inode at this address, and what people call it; `None` if there is none.
pub(super) fn inode_object(
    inode: u64,
    layout: &Layout,
    memory: &mut dyn KernelMemory,
    namespace: Option<u64>,
) -> Result<Option<(LockObject, String)>, MemoryError> {
    if !is_kernel_address(inode) {
        return Ok(None);
    }
    let Some(bytes) = memory.read(inode, layout.inode.size)? else {
        return Ok(None);
    };
    // An inode's mapping points back into it, except for device files.
    if word(&bytes, layout.inode.mapping) != inode.wrapping_add(layout.inode.data) {
        return Ok(None);
    }
    let Some((fstype, sb)) = file_system(word(&bytes, layout.inode.sb), layout, memory)? else {
        return Ok(None);
    };
    let ino = word(&bytes, layout.inode.ino);
    let mut paths = Paths {
        layout,
        memory,
        namespace,
    };
    let (path, what) = match paths.of_inode(inode, &bytes)? {
        Some(Place::Path(path)) => (Some(path.clone()), path),
        Some(Place::Inside(inside)) => {
            (None, format!("{inside} in {fstype} {sb}, not mounted here"))
        }
        None => (None, format!("inode {ino} in {fstype} {sb}")),
    };
    let object = LockObject::Inode {
        inode,
        fstype,
        sb,
        ino,
        path,
    };
    Ok(Some((object, what)))
}

pub(super) fn super_block(
    lock: LockAddr,
    layout: &Layout,
    memory: &mut dyn KernelMemory,
    namespace: Option<u64>,
) -> Result<Option<Identity>, MemoryError> {
    let super_block = lock.0.wrapping_sub(layout.super_block.s_umount);
    let Some((fstype, id)) = file_system(super_block, layout, memory)? else {
        return Ok(None);
    };
    let mut paths = Paths {
        layout,
        memory,
        namespace,
    };
    let mount = paths.of_super_block(super_block)?;
    let place = match &mount {
        Some(mount) => format!(" on {mount}"),
        None => ", not mounted here".to_owned(),
    };
    Ok(Some(Identity {
        name: format!("s_umount of {fstype} {id}{place}"),
        class: LockClass::SuperUmount,
        object: Some(LockObject::SuperBlock {
            super_block,
            fstype,
            id,
            mount,
        }),
        object_address: Some(super_block),
        note: None,
    }))
}

/// Type and id of a super block; `None` if there is none at this address.
pub(in crate::survey) fn file_system(
    super_block: u64,
    layout: &Layout,
    memory: &mut dyn KernelMemory,
) -> Result<Option<(String, String)>, MemoryError> {
    if !is_kernel_address(super_block) {
        return Ok(None);
    }
    let Some(bytes) = memory.read(super_block, layout.super_block.size)? else {
        return Ok(None);
    };
    let fs_type = word(&bytes, layout.super_block.fs_type);
    let Some(name) = memory.read_u64(fs_type.wrapping_add(layout.super_block.fs_name))? else {
        return Ok(None);
    };
    let Some(name) = memory.read(name, FS_NAME_LEN)? else {
        return Ok(None);
    };
    let (name, id) = (
        text(&name),
        &bytes[layout.super_block.id..][..layout.super_block.id_len],
    );
    // Names of types are plain words; anything else is no file system type.
    let plausible = !name.is_empty()
        && name.len() < FS_NAME_LEN
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        && half_word(id, 0) != 0;
    Ok(plausible.then(|| (name, text(id))))
}
