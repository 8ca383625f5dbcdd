//! Which block device a task waits for.
//!
//! What a task waits for is on its stack: the request it wants, the page or buffer it
//! needs, the bio it sent. All of them lead to a disk, and a disk and its queue point at
//! each other: so what looks like one is one. Where the stack leads to several disks (a
//! mapped device and the one below), none is named.

use rustc_hash::FxHashSet;

use crate::{
    kernel::{
        arch::{is_image_address, is_kernel_address},
        block::{BioDisk, BlockLayout, QueueDisk},
        layout::Layout,
        memory::{KernelMemory, MemoryError, text, word},
        sleep_frames::{is_page_wait, is_swap_wait},
    },
    survey::{
        functions::Functions,
        holders::frame_end,
        look::{Look, TaskLook},
    },
};

/// The name of the only block device that the stack of a task at rest leads to.
///
/// # Errors
/// When kernel memory cannot be read at all.
pub(super) fn of_task(
    functions: &mut Functions<'_>,
    look: &Look,
    task: &TaskLook,
    layout: &Layout,
    memory: &mut dyn KernelMemory,
) -> Result<Option<String>, MemoryError> {
    let Some(block) = &layout.block else {
        return Ok(None);
    };
    let words = look.words(task);
    let mut disks = Disks {
        block,
        layout,
        memory,
    };
    let mut found = disks.of_allocations(words)?;
    if found.is_empty() {
        let stems = functions.stems(task);
        // The innermost frames have the page that they wait for.
        let waits = stems.iter().rposition(|stem| is_page_wait(stem));
        if let Some(index) = waits {
            // Where swap lies no page tells, and what else is on the stack may be of the past.
            if stems.iter().any(|stem| is_swap_wait(stem)) {
                return Ok(None);
            }
            let inner = look.pointers(&words[..frame_end(task, index)]);
            found = disks.of_pages(&inner)?;
        }
    }
    if found.is_empty() {
        found = disks.of_any(&look.pointers(words))?;
    }
    let mut found = found.into_iter();
    match (found.next(), found.next()) {
        (Some(disk), None) => disks.name(disk),
        _ => Ok(None),
    }
}

/// Follows pointers to disks (addresses of a `gendisk`).
struct Disks<'a> {
    block: &'a BlockLayout,
    layout: &'a Layout,
    memory: &'a mut dyn KernelMemory,
}

impl Disks<'_> {
    /// Those that requests are being allocated of.
    fn of_allocations(&mut self, words: &[u64]) -> Result<FxHashSet<u64>, MemoryError> {
        let allocation = self.block.allocation;
        let mut found = FxHashSet::default();
        for start in 0..words.len() {
            let member = |offset: usize| words.get(start + offset / 8).copied();
            let (Some(queue), Some(hctx)) = (member(allocation.queue), member(allocation.hctx))
            else {
                break;
            };
            let is_one = is_pointer(queue)
                && is_pointer(hctx)
                && queue != hctx
                && self.follow(hctx, allocation.hctx_queue)? == Some(queue);
            if is_one {
                found.extend(self.of_queue(queue)?);
            }
        }
        Ok(found)
    }

    /// Those that hold the file systems of pages.
    fn of_pages(&mut self, pointers: &[u64]) -> Result<FxHashSet<u64>, MemoryError> {
        let mapping = self.block.page_mapping;
        let mappings = self.follow_all(pointers, mapping)?;
        let mut found = FxHashSet::default();
        for mapping in mappings.into_iter().flatten() {
            found.extend(self.of_mapping(mapping)?);
        }
        Ok(found)
    }

    /// Those that anything at these addresses leads to.
    fn of_any(&mut self, pointers: &[u64]) -> Result<FxHashSet<u64>, MemoryError> {
        let block = self.block;
        let mut found = self.of_pages(pointers)?;
        for &pointer in pointers {
            found.extend(self.of_queue(pointer)?);
            found.extend(self.checked(pointer)?);
        }
        for (offset, what) in [
            (block.bdev_disk, Self::checked as Step<Self>),
            (block.request_queue, Self::of_queue),
            (block.buffer_bdev, Self::of_bdev),
            match block.bio {
                BioDisk::Bdev(bdev) => (bdev, Self::of_bdev),
                BioDisk::Disk(disk) => (disk, Self::checked),
            },
        ] {
            for target in self.follow_all(pointers, offset)?.into_iter().flatten() {
                found.extend(what(self, target)?);
            }
        }
        Ok(found)
    }

    fn of_queue(&mut self, queue: u64) -> Result<Option<u64>, MemoryError> {
        let disk = match self.block.queue_disk {
            QueueDisk::Pointer(disk) => self.follow(queue, disk)?,
            QueueDisk::Parent { parent, in_disk } => self
                .follow(queue, parent)?
                .map(|parent| parent.wrapping_sub(in_disk)),
        };
        let Some(disk) = disk else { return Ok(None) };
        let back = self.follow(disk, self.block.disk_queue)?;
        Ok(Some(disk).filter(|_| back == Some(queue)))
    }

    /// This disk, if it is one: its queue belongs to it.
    fn checked(&mut self, disk: u64) -> Result<Option<u64>, MemoryError> {
        let Some(queue) = self.follow(disk, self.block.disk_queue)? else {
            return Ok(None);
        };
        Ok(self.of_queue(queue)?.filter(|&found| found == disk))
    }

    fn of_bdev(&mut self, bdev: u64) -> Result<Option<u64>, MemoryError> {
        match self.follow(bdev, self.block.bdev_disk)? {
            Some(disk) => self.checked(disk),
            None => Ok(None),
        }
    }

    /// The device of the file system that a file's pages belong to.
    fn of_mapping(&mut self, mapping: u64) -> Result<Option<u64>, MemoryError> {
        let inode = self.layout.inode;
        let Some(host) = self.follow(mapping, self.block.mapping_host)? else {
            return Ok(None);
        };
        // A mapping lies in its inode, which points back at it.
        if mapping != host.wrapping_add(inode.data)
            || self.follow(host, inode.mapping as u64)? != Some(mapping)
        {
            return Ok(None);
        }
        let Some(super_block) = self.follow(host, inode.sb as u64)? else {
            return Ok(None);
        };
        match self.follow(super_block, self.block.super_bdev)? {
            Some(bdev) => self.of_bdev(bdev),
            None => Ok(None),
        }
    }

    fn name(&mut self, disk: u64) -> Result<Option<String>, MemoryError> {
        let at = disk.wrapping_add(self.block.disk_name);
        let name = self.memory.read(at, self.block.disk_name_len)?;
        Ok(name.map(|name| text(&name)).filter(|name| is_name(name)))
    }

    /// The pointer in a member of the structure at this address.
    fn follow(&mut self, address: u64, offset: u64) -> Result<Option<u64>, MemoryError> {
        let target = self.memory.read_u64(address.wrapping_add(offset))?;
        Ok(target.filter(|&target| is_pointer(target)))
    }

    fn follow_all(
        &mut self,
        addresses: &[u64],
        offset: u64,
    ) -> Result<Vec<Option<u64>>, MemoryError> {
        let member = |&address: &u64| (address.wrapping_add(offset), 8);
        let reads: Vec<(u64, usize)> = addresses.iter().map(member).collect();
        let read = self.memory.read_batch(&reads)?;
        let pointer = |bytes: Option<Vec<u8>>| Some(word(&bytes?, 0)).filter(|&at| is_pointer(at));
        Ok(read.into_iter().map(pointer).collect())
    }
}

/// From an address to the disk it leads to.
type Step<T> = fn(&mut T, u64) -> Result<Option<u64>, MemoryError>;

fn is_pointer(word: u64) -> bool {
    is_kernel_address(word) && word.is_multiple_of(8) && !is_image_address(word)
}

/// A name that a disk can have; it becomes a part of a path.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.!/:".contains(c))
}
