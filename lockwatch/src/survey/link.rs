//! Whether the pointers under a function on a stack leave a doubt about which object
//! it holds the lock of.
//!
//! A function that will release a lock keeps the object, and what it calls saves the
//! registers it is in; but other objects of the same kind pass through the same
//! registers: the directory of the layer below, the super block before this one. Only
//! where a single one is pointed at does a pointer say which.

use crate::{
    kernel::{
        arch::is_kernel_address,
        layout::Layout,
        memory::{KernelMemory, MemoryError, word},
    },
    lock::LockClass,
    survey::{
        look::Look,
        names::{Identity, file_system},
    },
};

/// Whether any of the words points at an object of the lock's class (or at the lock in
/// it) other than the lock's own.
///
/// # Errors
/// When kernel memory cannot be read at all.
pub(super) fn points_at_another(
    lock: &Identity,
    words: &[u64],
    look: &Look,
    layout: &Layout,
    memory: &mut dyn KernelMemory,
) -> Result<bool, MemoryError> {
    let Some(own) = lock.object_address else {
        return Ok(false);
    };
    let offset = match lock.class {
        LockClass::MmapLock => layout.mm.mmap_lock,
        LockClass::InodeRwsem => layout.inode.i_rwsem,
        LockClass::InvalidateLock => layout.inode.invalidate_lock.unwrap_or(layout.inode.data),
        LockClass::SuperUmount => layout.super_block.s_umount,
        LockClass::SuperWriters
        | LockClass::VmaLock
        | LockClass::FilePosition
        | LockClass::Pipe
        | LockClass::Symbol(_)
        | LockClass::KernelData
        | LockClass::Unknown => return Ok(false),
    };
    let mut candidates: Vec<u64> = words
        .iter()
        .copied()
        .filter(|&word| is_kernel_address(word) && word.is_multiple_of(8))
        .filter(|&word| !look.in_a_stack(word))
        .flat_map(|word| [word, word.wrapping_sub(offset)])
        .filter(|&candidate| candidate != own && candidate != own.wrapping_sub(offset))
        .collect();
    candidates.sort_unstable();
    candidates.dedup();
    match lock.class {
        LockClass::MmapLock => Ok(candidates
            .iter()
            .any(|&mm| look.tasks.iter().any(|task| task.record.mm == mm))),
        LockClass::SuperUmount => any_super_block(&candidates, layout, memory),
        _ => any_inode(&candidates, layout, memory),
    }
}

/// An inode's mapping points back into it.
fn any_inode(
    candidates: &[u64],
    layout: &Layout,
    memory: &mut dyn KernelMemory,
) -> Result<bool, MemoryError> {
    let mapping = |inode: &u64| (inode.wrapping_add(layout.inode.mapping as u64), 8);
    let reads: Vec<(u64, usize)> = candidates.iter().map(mapping).collect();
    let read = memory.read_batch(&reads)?;
    Ok(candidates.iter().zip(read).any(|(inode, bytes)| {
        bytes.is_some_and(|bytes| word(&bytes, 0) == inode.wrapping_add(layout.inode.data))
    }))
}

fn any_super_block(
    candidates: &[u64],
    layout: &Layout,
    memory: &mut dyn KernelMemory,
) -> Result<bool, MemoryError> {
    for &candidate in candidates {
        if file_system(candidate, layout, memory)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}
