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
        look::Look,
        names::{file_system, own_namespace},
        paths::Paths,
    },
};

/// Longest subtype of a file system.
const SUBTYPE_LEN: usize = 64;

/// What looks like an entry in a wait queue, in a task's stack.
struct Linked {
    task: usize,
    /// Where its links lie.
    entry: u64,
    /// Where they point.
    head: u64,
}

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
        waits: &[usize],
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
        let is_unknown = |task: &usize| !known.contains(task);
        let unresolved = waits.iter().copied().filter(is_unknown).collect();
        Ok((requests, unresolved))
    }

    /// The requests whose wait queues the tasks are on, by the entry in the task's own stack.
    /// Its links name the head of the queue, which lies in the request; whether the head
    /// names the entry tells the live one from what is left of an earlier wait.
    fn on_stacks(&mut self, waits: &[usize]) -> Result<Vec<Found>, MemoryError> {
        let layout = self.fuse.request;
        let mut entries: Vec<Linked> = Vec::new();
        for &task in waits {
            let seen = &self.look.tasks[task];
            let words = self.look.words(seen);
            for (at, links) in words.windows(2).enumerate() {
                // It waits alone: nobody else is told of an answer.
                if links[0] == links[1] && is_object(self.look, links[0]) {
                    entries.push(Linked {
                        task,
                        entry: seen.word_address(at),
                        head: links[0],
                    });
                }
            }
        }
        let heads: Vec<(u64, usize)> = entries.iter().map(|linked| (linked.head, 8)).collect();
        let mut first = self.memory.read_batch(&heads)?.into_iter();
        entries.retain(|linked| {
            let first = first.next().flatten();
            first.is_some_and(|bytes| word(&bytes, 0) == linked.entry)
        });
        let request = |linked: &Linked| linked.head.wrapping_sub(layout.waiters as u64);
        let reads: Vec<(u64, usize)> = entries
            .iter()
            .map(|linked| (request(linked), layout.size))
            .collect();
        let requests = self.memory.read_batch(&reads)?;
        let found = entries.iter().zip(requests).filter_map(|(linked, bytes)| {
            let bytes = bytes?;
            let flags = word(&bytes, layout.flags);
            // All its flags fit in 16 bits: anything else is none.
            let is_open = flags >> 16 == 0 && flags & layout.finished == 0;
            is_open.then(|| Found {
                task: linked.task,
                address: request(linked),
                bytes,
            })
        });
        Ok(found.collect())
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
        let is_named = match self.super_of(mount)? {
            Some(_) => true,
            None => match self.fuse.mounts {
                Some((head, node)) => {
                    let first = self.pointer(connection, head)?;
                    first == Some(mount.wrapping_add(node))
                }
                None => false,
            },
        };
        Ok(is_named.then_some(connection))
    }

    /// The super block of a mount, which names it as its own.
    fn super_of(&mut self, mount: u64) -> Result<Option<u64>, MemoryError> {
        let private = self.layout.super_block.private as u64;
        for at in self.fuse.mount_super {
            if let Some(super_block) = self.pointer(mount, at)?
                && self.pointer(super_block, private)? == Some(mount)
            {
                return Ok(Some(super_block));
            }
        }
        Ok(None)
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
        if self.fuse.channel.is_none() {
            for at in self.fuse.request.owner {
                let Some(mount) = self.pointer(request, at as u64)? else {
                    continue;
                };
                if self.of_mount(mount)? == Some(connection) {
                    return self.super_of(mount);
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
                let super_block = self.super_of(mount)?;
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
