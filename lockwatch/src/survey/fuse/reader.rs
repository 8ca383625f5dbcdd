//! Reads what a FUSE connection and its requests are made of.

use lockwatch_ebpf::survey::OpenFile;
use rustc_hash::FxHashSet;

use super::{Connection, Device, Request};
use crate::{
    kernel::{
        arch::is_kernel_address,
        fuse::{self, FuseLayout},
        layout::Layout,
        memory::{KernelMemory, MemoryError, half_word, text, word},
    },
    survey::{
        look::{Look, TaskLook},
        names::{file_system, own_namespace},
        paths::Paths,
    },
};

/// Longest subtype of a file system.
const SUBTYPE_LEN: usize = 64;

/// A request that was found on the stack of the task that waits for it, before it is known
/// whose it is.
struct Found {
    task: usize,
    address: u64,
    bytes: Vec<u8>,
}

/// Reads what a FUSE connection and its requests are made of.
pub(in crate::survey) struct Reader<'a> {
    /// The look.
    pub(in crate::survey) look: &'a Look,
    /// The kernel's layouts.
    pub(in crate::survey) layout: &'a Layout,
    /// Where FUSE has its things.
    pub(in crate::survey) fuse: &'a FuseLayout,
    /// Kernel memory.
    pub(in crate::survey) memory: &'a mut dyn KernelMemory,
}

impl Reader<'_> {
    /// The requests that these tasks wait for, and the tasks for which none was found.
    ///
    /// # Errors
    /// When kernel memory cannot be read at all.
    pub(in crate::survey) fn requests(
        &mut self,
        waits: &[(usize, usize)],
    ) -> Result<(Vec<Request>, Vec<usize>), MemoryError> {
        let mut requests = Vec::with_capacity(waits.len());
        for found in self.on_stacks(waits)? {
            if let Some(connection) = self.connection_of(&found.bytes)? {
                let flags = word(&found.bytes, self.fuse.request.flags);
                requests.push(Request {
                    task: found.task,
                    address: found.address,
                    connection,
                    is_sent: flags & self.fuse.request.pending == 0,
                });
            }
        }
        let known: FxHashSet<usize> = requests.iter().map(|request| request.task).collect();
        let tasks = waits.iter().map(|&(task, _)| task);
        let unresolved = tasks.filter(|task| !known.contains(task)).collect();
        Ok((requests, unresolved))
    }

    /// Words on the stacks that are requests which the task itself is queued on.
    fn on_stacks(&mut self, waits: &[(usize, usize)]) -> Result<Vec<Found>, MemoryError> {
        let layout = self.fuse.request;
        let mut candidates: Vec<(usize, u64)> = Vec::new();
        for &(task, end) in waits {
            let words = self.look.words(&self.look.tasks[task]);
            let from = candidates.len();
            for &word in &words[..end.min(words.len())] {
                let is_new = || !candidates[from..].contains(&(task, word));
                if is_object(self.look, word) && is_new() {
                    candidates.push((task, word));
                }
            }
        }
        let heads: Vec<(u64, usize)> = candidates
            .iter()
            .map(|&(_, request)| (request.wrapping_add(layout.waiters as u64), 8))
            .collect();
        let first = self.memory.read_batch(&heads)?;
        let mut queued = Vec::new();
        for ((candidate, head), first) in candidates.into_iter().zip(heads).zip(first) {
            let entry = first.map_or(0, |bytes| word(&bytes, 0));
            let task = &self.look.tasks[candidate.0];
            if let Some([next, prev]) = words_at(self.look, task, entry)
                // It waits alone: nobody else is told of an answer.
                && (next, prev) == (head.0, head.0)
            {
                queued.push(candidate);
            }
        }
        let reads: Vec<(u64, usize)> = queued
            .iter()
            .map(|&(_, request)| (request, layout.size))
            .collect();
        let mut requests = self.memory.read_batch(&reads)?.into_iter();
        let mut found: Vec<Found> = Vec::with_capacity(queued.len());
        for (task, address) in queued {
            let Some(bytes) = requests.next().flatten() else {
                continue;
            };
            let flags = word(&bytes, layout.flags);
            // All its flags fit in 16 bits: anything else is none.
            let is_open = flags >> 16 == 0 && flags & layout.finished == 0;
            if is_open && found.last().is_none_or(|last| last.task != task) {
                found.push(Found {
                    task,
                    address,
                    bytes,
                });
            }
        }
        Ok(found)
    }

    /// The connection of a request; `None` if the pointers on the way do not come back.
    fn connection_of(&mut self, request: &[u8]) -> Result<Option<u64>, MemoryError> {
        for at in self.fuse.request.owner {
            let owner = word(request, at);
            let connection = match self.fuse.channel {
                Some(channel) => self.of_channel(owner, channel.connection)?,
                None => self.of_mount(owner)?,
            };
            if connection.is_some() {
                return Ok(connection);
            }
        }
        Ok(None)
    }

    /// The connection of a channel, which names it as its own.
    fn of_channel(&mut self, channel: u64, connection: u64) -> Result<Option<u64>, MemoryError> {
        let Some(connection) = self.pointer(channel, connection)? else {
            return Ok(None);
        };
        let back = match self.fuse.channel {
            Some(layout) => self.pointer(connection, layout.of_connection)?,
            None => None,
        };
        Ok((back == Some(channel)).then_some(connection))
    }

    /// The connection of a mount, which is named as its own by its super block, or by its
    /// connection where it has none (character devices in user space).
    fn of_mount(&mut self, mount: u64) -> Result<Option<u64>, MemoryError> {
        let Some(connection) = self.pointer(mount, self.fuse.mount_connection as u64)? else {
            return Ok(None);
        };
        let back = match self.pointer(mount, self.fuse.mount_super as u64)? {
            Some(super_block) => {
                self.pointer(super_block, self.layout.super_block.private as u64)?
            }
            None => match self.fuse.mounts {
                Some((head, node)) => {
                    let first = self.pointer(connection, head)?;
                    first.map(|first| first.wrapping_sub(node))
                }
                None => None,
            },
        };
        Ok((back == Some(mount)).then_some(connection))
    }

    /// Of the open files those that belong to a connection.
    ///
    /// # Errors
    /// When kernel memory cannot be read at all.
    pub(in crate::survey) fn devices(
        &mut self,
        open: &[OpenFile],
    ) -> Result<Vec<Device>, MemoryError> {
        let mut devices: Vec<Device> = Vec::new();
        for file in open {
            let Some(device) = fuse::device(file.private) else {
                continue;
            };
            let Some(owner) = self.pointer(device, self.fuse.device_owner)? else {
                continue;
            };
            let connection = match self.fuse.channel {
                Some(channel) => self.of_channel(owner, channel.connection)?,
                None => Some(owner),
            };
            let device = connection.map(|connection| Device {
                files: file.files,
                connection,
            });
            devices.extend(device.filter(|device| !devices.contains(device)));
        }
        Ok(devices)
    }

    /// What people call a connection.
    ///
    /// # Errors
    /// When kernel memory cannot be read at all.
    pub(in crate::survey) fn name(
        &mut self,
        connection: u64,
        request: u64,
    ) -> Result<Connection, MemoryError> {
        let super_block = self.super_block(connection, request)?;
        let number = match (self.fuse.number, super_block) {
            (Some(at), _) => self.number(connection.wrapping_add(at))?,
            (None, Some(super_block)) => {
                let at = self.layout.super_block.number as u64;
                self.number(super_block.wrapping_add(at))?
            }
            (None, None) => None,
        };
        let mounted = match super_block {
            Some(super_block) => self.mounted(super_block)?,
            None => None,
        };
        let name = mounted.unwrap_or_else(|| match number {
            Some(number) => format!("FUSE connection {number}"),
            None => format!("FUSE connection at {connection:#x}"),
        });
        Ok(Connection { number, name })
    }

    /// The super block of the mount that a request is for, or of the first mount of its
    /// connection.
    fn super_block(&mut self, connection: u64, request: u64) -> Result<Option<u64>, MemoryError> {
        let at_super = self.fuse.mount_super as u64;
        if self.fuse.channel.is_none() {
            for at in self.fuse.request.owner {
                let Some(mount) = self.pointer(request, at as u64)? else {
                    continue;
                };
                if self.of_mount(mount)? == Some(connection) {
                    return self.pointer(mount, at_super);
                }
            }
        }
        let Some((head, node)) = self.fuse.mounts else {
            return Ok(None);
        };
        let head = connection.wrapping_add(head);
        match self.pointer(head, 0)? {
            Some(first) if first != head => {
                let mount = first.wrapping_sub(node);
                let is_its = self.of_mount(mount)? == Some(connection);
                let super_block = self.pointer(mount, at_super)?;
                Ok(super_block.filter(|_| is_its))
            }
            _ => Ok(None),
        }
    }

    /// `fuse.sshfs on /mnt/share`; `None` for what is not mounted here.
    fn mounted(&mut self, super_block: u64) -> Result<Option<String>, MemoryError> {
        let Some((fstype, _)) = file_system(super_block, self.layout, self.memory)? else {
            return Ok(None);
        };
        let namespace = own_namespace(self.look, self.layout, self.memory)?;
        let mut paths = Paths {
            layout: self.layout,
            memory: self.memory,
            namespace,
        };
        let Some(mount) = paths.of_super_block(super_block)? else {
            return Ok(None);
        };
        let subtype = match self.pointer(super_block, self.layout.super_block.subtype as u64)? {
            // Whoever mounts chooses it: it may end just before a page that is not there.
            Some(subtype) => {
                let to_page_end = 4096 - (subtype % 4096) as usize;
                let len = SUBTYPE_LEN.min(to_page_end);
                self.memory.read(subtype, len)?.map(|bytes| text(&bytes))
            }
            None => None,
        };
        Ok(Some(match subtype.filter(|subtype| !subtype.is_empty()) {
            Some(subtype) => format!("{fstype}.{subtype} on {mount}"),
            None => format!("{fstype} on {mount}"),
        }))
    }

    fn number(&mut self, address: u64) -> Result<Option<u32>, MemoryError> {
        let bytes = self.memory.read(address, 4)?;
        Ok(bytes.map(|bytes| half_word(&bytes, 0)))
    }

    /// The pointer at an offset, if both are plausible.
    fn pointer(&mut self, base: u64, offset: u64) -> Result<Option<u64>, MemoryError> {
        if !is_kernel_address(base) {
            return Ok(None);
        }
        let pointer = self.memory.read_u64(base.wrapping_add(offset))?;
        Ok(pointer.filter(|&pointer| is_kernel_address(pointer)))
    }
}

/// Whether a word may point at an object of the kernel's heap.
fn is_object(look: &Look, word: u64) -> bool {
    is_kernel_address(word) && word.is_multiple_of(8) && !look.in_a_stack(word)
}

/// Two words of a task's own stack.
fn words_at(look: &Look, task: &TaskLook, address: u64) -> Option<[u64; 2]> {
    let at = address.checked_sub(task.word_address(0))?;
    let index = usize::try_from(at / 8).ok()?;
    let words = look.words(task).get(index..index.checked_add(2)?)?;
    (at.is_multiple_of(8)).then_some([words[0], words[1]])
}
