//! Who writes to a file system that somebody wants to freeze.
//!
//! How many write is spread over the CPUs, and where each CPU keeps its part is not to be
//! known on every kernel: so the count stays open, and no such name is certain.

use crate::{
    kernel::{
        arch::is_kernel_address,
        layout::Layout,
        memory::{KernelMemory, MemoryError, half_word, word},
        writer_frames::{BY_LEVEL, FAULT_ENTRIES, Keeps, WriterFrame},
    },
    lock::{Evidence, EvidenceKind, LockAddr, LockObject},
    survey::{
        holders::{Scene, reason},
        look::{Look, TaskLook},
        names::{Identity, file_system},
    },
};

/// `S_IFMT`, `S_IFREG` (include/uapi/linux/stat.h)
const FILE_TYPE: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;

/// What the stack of a task says about holding this level of a freeze.
///
/// # Errors
/// When kernel memory cannot be read at all.
pub(super) fn on_stack(
    scene: &mut Scene<'_, '_>,
    address: LockAddr,
    lock: &Identity,
    task: &TaskLook,
) -> Result<Vec<Evidence>, MemoryError> {
    let Some(LockObject::SuperBlock { super_block, .. }) = lock.object else {
        return Ok(Vec::new());
    };
    let layout = &scene.layout.super_block;
    let place = address.0.wrapping_sub(super_block + layout.writers);
    let level = place.checked_div(layout.writers_len.0).unwrap_or(u64::MAX);
    let Some(table) = usize::try_from(level)
        .ok()
        .and_then(|level| BY_LEVEL.get(level))
    else {
        return Ok(Vec::new());
    };
    let stems = scene.functions.stems(task);
    for (known, window) in writing(table, task, &stems, scene.look.words(task)) {
        let found = super_blocks(known.keeps, window, scene.look, scene.layout, scene.memory)?;
        let kind = match found.as_slice() {
            [one] if *one == super_block => EvidenceKind::HoldFrame,
            // Some of the pointers are stale, or of what the writing does besides.
            several if several.contains(&super_block) => EvidenceKind::ObjectWord,
            _ => continue,
        };
        return Ok(vec![reason(kind, Some(known.function), None)]);
    }
    Ok(Vec::new())
}

/// The functions on a stack that write, each with the words from the end of its frame
/// inwards: what it keeps lies there, for what it calls saves its registers.
fn writing<'a>(
    table: &'static [WriterFrame],
    task: &TaskLook,
    stems: &[&str],
    words: &'a [u64],
) -> Vec<(&'static WriterFrame, &'a [u64])> {
    let mut found = Vec::new();
    for (index, stem) in stems.iter().enumerate() {
        let Some(known) = table.iter().find(|known| known.function == *stem) else {
            continue;
        };
        let callee = index.checked_sub(1).map_or("", |callee| stems[callee]);
        // The outermost frame has no known end.
        let (Some(_), Some(outer)) = (task.frames.get(index), task.frames.get(index + 1)) else {
            continue;
        };
        let fault = stems[..index]
            .iter()
            .rposition(|stem| FAULT_ENTRIES.contains(stem));
        let start = fault.map_or(0, |fault| task.frames[fault].at);
        if known.holds_in(callee) {
            found.push((known, &words[start..outer.at]));
        }
    }
    found
}

/// The super blocks of all objects of this sort that the words point at, each once.
fn super_blocks(
    keeps: Keeps,
    words: &[u64],
    look: &Look,
    layout: &Layout,
    memory: &mut dyn KernelMemory,
) -> Result<Vec<u64>, MemoryError> {
    let mut pointers: Vec<u64> = words
        .iter()
        .copied()
        .filter(|&word| is_kernel_address(word) && word.is_multiple_of(8))
        .filter(|&word| !look.in_a_stack(word))
        .collect();
    pointers.sort_unstable();
    pointers.dedup();
    let mut found = match keeps {
        Keeps::File => {
            let inodes = words_at(&pointers, layout.file.inode, memory)?;
            of_regular_inodes(&inodes, layout, memory)?
        }
        Keeps::Inode => of_regular_inodes(&pointers, layout, memory)?,
        Keeps::Mount => of_mounts(&pointers, layout, memory)?,
    };
    found.sort_unstable();
    found.dedup();
    let mut real = Vec::new();
    for super_block in found {
        if file_system(super_block, layout, memory)?.is_some() {
            real.push(super_block);
        }
    }
    Ok(real)
}

/// The words at this offset of each of the objects, where there are any.
fn words_at(
    objects: &[u64],
    offset: u64,
    memory: &mut dyn KernelMemory,
) -> Result<Vec<u64>, MemoryError> {
    let at: Vec<(u64, usize)> = objects
        .iter()
        .map(|object| (object.wrapping_add(offset), 8))
        .collect();
    let read = memory.read_batch(&at)?.into_iter();
    Ok(read.flatten().map(|bytes| word(&bytes, 0)).collect())
}

/// An inode's mapping points back into it.
fn of_regular_inodes(
    inodes: &[u64],
    layout: &Layout,
    memory: &mut dyn KernelMemory,
) -> Result<Vec<u64>, MemoryError> {
    let inode = &layout.inode;
    let inodes: Vec<u64> = inodes
        .iter()
        .copied()
        .filter(|&inode| is_kernel_address(inode))
        .collect();
    let reads: Vec<(u64, usize)> = inodes.iter().map(|&at| (at, inode.size)).collect();
    let read = memory.read_batch(&reads)?;
    let super_block = |(&at, bytes): (&u64, Option<Vec<u8>>)| {
        let bytes = bytes?;
        let is_inode = word(&bytes, inode.mapping) == at.wrapping_add(inode.data);
        let is_regular = half_word(&bytes, inode.mode) & FILE_TYPE == REGULAR;
        (is_inode && is_regular).then(|| word(&bytes, inode.sb))
    };
    Ok(inodes.iter().zip(read).filter_map(super_block).collect())
}

/// A mount's root is a dentry of its super block.
fn of_mounts(
    mounts: &[u64],
    layout: &Layout,
    memory: &mut dyn KernelMemory,
) -> Result<Vec<u64>, MemoryError> {
    let mount = &layout.mount;
    let mut found = Vec::new();
    let size = mount.vfs_root.max(mount.vfs_sb) + 8;
    let reads: Vec<(u64, usize)> = mounts.iter().map(|&at| (at, size)).collect();
    for bytes in memory.read_batch(&reads)?.into_iter().flatten() {
        let (root, super_block) = (word(&bytes, mount.vfs_root), word(&bytes, mount.vfs_sb));
        if is_kernel_address(root)
            && is_kernel_address(super_block)
            && memory.read_u64(root.wrapping_add(layout.dentry.sb))? == Some(super_block)
        {
            found.push(super_block);
        }
    }
    Ok(found)
}
