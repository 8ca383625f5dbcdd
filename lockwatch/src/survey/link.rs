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
    let found = pointed_at(&lock.class, words, look, layout, memory)?;
    Ok(found.iter().any(|&(_, object)| object != own))
}

/// Where the locks of a class lie in their objects; `None` for a class whose objects are
/// not told by a pointer.
pub(super) fn offset_in_object(class: &LockClass, layout: &Layout) -> Option<u64> {
    match class {
        LockClass::MmapLock => Some(layout.mm.mmap_lock),
        LockClass::InodeRwsem => layout.inode.i_rwsem,
        LockClass::InvalidateLock => {
            Some(layout.inode.invalidate_lock.unwrap_or(layout.inode.data))
        }
        LockClass::SuperUmount => Some(layout.super_block.s_umount),
        LockClass::SuperWriters
        | LockClass::VmaLock
        | LockClass::InodeMmapRwsem
        | LockClass::AnonVma
        | LockClass::FilePosition
        | LockClass::Pipe
        | LockClass::Symbol(_)
        | LockClass::KernelData
        | LockClass::Unknown => None,
    }
}

/// The words that point at objects of a class of lock, or at the lock in one: their
/// indexes, with the objects' addresses.
///
/// # Errors
/// When kernel memory cannot be read at all.
pub(super) fn pointed_at(
    class: &LockClass,
    words: &[u64],
    look: &Look,
    layout: &Layout,
    memory: &mut dyn KernelMemory,
) -> Result<Vec<(usize, u64)>, MemoryError> {
    let Some(offset) = offset_in_object(class, layout) else {
        return Ok(Vec::new());
    };
    let is_pointer =
        |word: u64| is_kernel_address(word) && word.is_multiple_of(8) && !look.in_a_stack(word);
    let mut candidates: Vec<u64> = words
        .iter()
        .copied()
        .filter(|&word| is_pointer(word))
        .flat_map(|word| [word, word.wrapping_sub(offset)])
        .collect();
    candidates.sort_unstable();
    candidates.dedup();
    match class {
        LockClass::MmapLock => {
            candidates.retain(|&mm| look.users_of(mm).next().is_some());
        }
        LockClass::SuperUmount => keep_super_blocks(&mut candidates, layout, memory)?,
        _ => keep_inodes(&mut candidates, layout, memory)?,
    }
    let is_one = |address: &u64| candidates.binary_search(address).is_ok();
    let object = |word: u64| {
        [word, word.wrapping_sub(offset)]
            .into_iter()
            .find(|address| is_pointer(word) && is_one(address))
    };
    Ok(words
        .iter()
        .enumerate()
        .filter_map(|(at, &word)| Some((at, object(word)?)))
        .collect())
}

/// An inode's mapping points back into it.
fn keep_inodes(
    candidates: &mut Vec<u64>,
    layout: &Layout,
    memory: &mut dyn KernelMemory,
) -> Result<(), MemoryError> {
    let mapping = |inode: &u64| (inode.wrapping_add(layout.inode.mapping as u64), 8);
    let reads: Vec<(u64, usize)> = candidates.iter().map(mapping).collect();
    let mut read = memory.read_batch(&reads)?.into_iter();
    candidates.retain(|inode| {
        read.next()
            .flatten()
            .is_some_and(|bytes| word(&bytes, 0) == inode.wrapping_add(layout.inode.data))
    });
    Ok(())
}

fn keep_super_blocks(
    candidates: &mut Vec<u64>,
    layout: &Layout,
    memory: &mut dyn KernelMemory,
) -> Result<(), MemoryError> {
    // Most have no type: all of them are asked at once.
    let fs_type = |address: &u64| (address.wrapping_add(layout.super_block.fs_type as u64), 8);
    let reads: Vec<(u64, usize)> = candidates.iter().map(fs_type).collect();
    let mut read = memory.read_batch(&reads)?.into_iter();
    candidates.retain(|_| {
        read.next()
            .flatten()
            .is_some_and(|bytes| is_kernel_address(word(&bytes, 0)))
    });
    let mut found = Vec::new();
    for &candidate in candidates.iter() {
        if file_system(candidate, layout, memory)?.is_some() {
            found.push(candidate);
        }
    }
    *candidates = found;
    Ok(())
}
