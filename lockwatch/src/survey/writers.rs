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
        stack::Frame,
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
    let (Some(LockObject::SuperBlock { super_block, .. }), Some(layout)) =
        (&lock.object, scene.layout.super_block.writers)
    else {
        return Ok(Vec::new());
    };
    let super_block = *super_block;
    let place = address.0.wrapping_sub(super_block + layout.locks);
    let level = place.checked_div(layout.one).unwrap_or(u64::MAX);
    let Some(table) = usize::try_from(level)
        .ok()
        .and_then(|level| BY_LEVEL.get(level))
    else {
        return Ok(Vec::new());
    };
    let stems = scene.functions.stems(task);
    let words = scene.look.words(task);
    for (known, window) in writing(table, &task.frames, &stems, words) {
        let targets = targets(known.keeps, window, scene.look, scene.layout, scene.memory)?;
        let is_this = |target: &Target| target.super_block == super_block && target.is_held;
        let kind = match targets.as_slice() {
            [one] if is_this(one) => EvidenceKind::HoldFrame,
            // Some of the pointers are stale, or of what the writing does besides.
            several if several.iter().any(is_this) => EvidenceKind::ObjectWord,
            _ => continue,
        };
        return Ok(vec![reason(kind, Some(known.function), None)]);
    }
    Ok(Vec::new())
}

/// What somebody may be writing to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    super_block: u64,
    /// Who writes to it holds a level: to a file, and not to a pipe or socket that has its
    /// name there.
    is_held: bool,
}

/// The functions on a stack that write, each with the words from the end of its frame
/// inwards: what it keeps lies there, for what it calls saves its registers.
fn writing<'a>(
    table: &'static [WriterFrame],
    frames: &[Frame],
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
        let Some(outer) = frames.get(index + 1) else {
            continue;
        };
        let fault = stems[..index]
            .iter()
            .rposition(|stem| FAULT_ENTRIES.contains(stem));
        let start = match (known.keeps, fault) {
            (Keeps::Kiocb, _) => frames[index.saturating_sub(1)].at,
            (_, Some(fault)) => frames[fault].at,
            (_, None) => 0,
        };
        if known.holds_in(callee) {
            found.push((known, &words[start..outer.at]));
        }
    }
    found
}

/// All objects of this sort that the words point at, each sort of target once.
fn targets(
    keeps: Keeps,
    words: &[u64],
    look: &Look,
    layout: &Layout,
    memory: &mut dyn KernelMemory,
) -> Result<Vec<Target>, MemoryError> {
    let mut pointers: Vec<u64> = words
        .iter()
        .copied()
        .filter(|&word| is_kernel_address(word) && word.is_multiple_of(8))
        .filter(|&word| !look.in_a_stack(word))
        .collect();
    pointers.sort_unstable();
    pointers.dedup();
    let mut found = match keeps {
        Keeps::File | Keeps::Kiocb => of_files(&pointers, layout, memory)?,
        Keeps::Inode => of_regular_inodes(&pointers, layout, memory)?,
        Keeps::Mount => of_mounts(&pointers, layout, memory)?,
    };
    found.sort_unstable();
    found.dedup();
    let mut real = Vec::new();
    for target in found {
        if file_system(target.super_block, layout, memory)?.is_some() {
            real.push(target);
        }
    }
    Ok(real)
}

/// Open files of all kinds: one that is not regular may be what is written to, and the
/// regular one a left-over.
fn of_files(
    files: &[u64],
    layout: &Layout,
    memory: &mut dyn KernelMemory,
) -> Result<Vec<Target>, MemoryError> {
    let inode = &layout.inode;
    let at = |file: &u64| (file.wrapping_add(layout.file.inode), 8);
    let reads: Vec<(u64, usize)> = files.iter().map(at).collect();
    let read = memory.read_batch(&reads)?.into_iter();
    let inodes: Vec<(u64, usize)> = read
        .flatten()
        .map(|bytes| (word(&bytes, 0), inode.size))
        .filter(|&(inode, _)| is_kernel_address(inode))
        .collect();
    let read = memory.read_batch(&inodes)?.into_iter();
    let target = |bytes: Vec<u8>| Target {
        super_block: word(&bytes, inode.sb),
        is_held: half_word(&bytes, inode.mode) & FILE_TYPE == REGULAR,
    };
    Ok(read.flatten().map(target).collect())
}

/// An inode's mapping points back into it; a function may keep either.
fn of_regular_inodes(
    pointers: &[u64],
    layout: &Layout,
    memory: &mut dyn KernelMemory,
) -> Result<Vec<Target>, MemoryError> {
    let inode = &layout.inode;
    let reads: Vec<(u64, usize)> = pointers
        .iter()
        .flat_map(|&word| [word, word.wrapping_sub(inode.data)])
        .map(|at| (at, inode.size))
        .collect();
    let read = memory.read_batch(&reads)?;
    let target = |((at, _), bytes): (&(u64, usize), Option<Vec<u8>>)| {
        let bytes = bytes?;
        let is_inode = word(&bytes, inode.mapping) == at.wrapping_add(inode.data);
        let is_regular = half_word(&bytes, inode.mode) & FILE_TYPE == REGULAR;
        (is_inode && is_regular).then(|| Target {
            super_block: word(&bytes, inode.sb),
            is_held: true,
        })
    };
    Ok(reads.iter().zip(read).filter_map(target).collect())
}

/// A mount's root is a dentry of its super block.
fn of_mounts(
    mounts: &[u64],
    layout: &Layout,
    memory: &mut dyn KernelMemory,
) -> Result<Vec<Target>, MemoryError> {
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
            found.push(Target {
                super_block,
                is_held: true,
            });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Functions with the words of their frames, innermost first, as one stack.
    fn windows(stack: &[(&str, &[u64])]) -> Vec<(&'static str, Vec<u64>)> {
        let mut words = Vec::new();
        let mut frames = Vec::new();
        for (function, own) in stack {
            frames.push(Frame {
                return_address: function.len() as u64,
                at: words.len(),
            });
            words.push(function.len() as u64);
            words.extend_from_slice(own);
        }
        let stems: Vec<&str> = stack.iter().map(|(function, _)| *function).collect();
        writing(BY_LEVEL[0], &frames, &stems, &words)
            .into_iter()
            .map(|(known, window)| (known.function, window.to_vec()))
            .collect()
    }

    #[test]
    fn what_a_write_keeps_lies_in_its_frame_or_its_callees() {
        let found = windows(&[
            ("request_wait_answer", &[1]),
            ("filemap_fault", &[2]),
            ("exc_page_fault", &[3]),
            ("asm_exc_page_fault", &[4]),
            ("generic_perform_write", &[5]),
            ("ext4_file_write_iter", &[6]),
            ("vfs_write", &[7]),
            ("ksys_write", &[8]),
        ]);
        let [(function, window)] = found.as_slice() else {
            panic!("{found:?}");
        };
        assert_eq!(*function, "vfs_write");
        let inside = |word: u64| window.contains(&word);
        assert!((6..=7).all(inside), "{window:?}");
        assert!(![1, 2, 3, 4, 5, 8].into_iter().any(inside), "{window:?}");
    }

    #[test]
    fn a_fault_in_the_midst_of_a_write_is_cut_out() {
        let found = windows(&[
            ("filemap_fault", &[1]),
            ("exc_page_fault", &[2]),
            ("asm_exc_page_fault", &[3]),
            ("generic_perform_write", &[4]),
            ("do_iter_readv_writev", &[5]),
            ("vfs_writev", &[6]),
            ("do_writev", &[7]),
        ]);
        let [(function, window)] = found.as_slice() else {
            panic!("{found:?}");
        };
        assert_eq!(*function, "vfs_writev");
        let inside = |word: u64| window.contains(&word);
        assert!((3..=6).all(inside), "{window:?}");
        assert!(![1, 2, 7].into_iter().any(inside), "{window:?}");
    }

    #[test]
    fn who_waits_to_write_does_not_write() {
        assert_eq!(windows(&[("vfs_write", &[1]), ("ksys_write", &[2])]), []);
        let creates: &[(&str, &[u64])] = &[
            ("mnt_want_write", &[1]),
            ("filename_create", &[2]),
            ("do_mkdirat", &[3]),
            ("__x64_sys_mkdir", &[4]),
        ];
        assert_eq!(windows(creates), []);
        // Its end is not known.
        assert_eq!(
            windows(&[("new_sync_write", &[1]), ("vfs_write", &[2])]),
            []
        );
    }
}
