//! Who waits for which FUSE connection, and who has its device open, from one look.
//!
//! A request is never told by a pointer on a stack alone: the task has to be queued on the
//! request's own wait queue, by an entry that lies in its stack and points back.

use lockwatch_ebpf::survey::OpenFile;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    kernel::{
        arch::is_kernel_address,
        fuse::{self, ANSWER_WAITS, FuseLayout},
        layout::Layout,
        memory::{KernelMemory, MemoryError, half_word, text, word},
    },
    survey::{
        functions::Functions,
        holders::frame_end,
        look::{Look, TaskLook},
        names::{file_system, own_namespace},
        paths::Paths,
    },
};

/// How far out the function that waits for an answer may be: it calls the scheduler.
const INNERMOST: usize = 4;

/// Longest subtype of a file system.
const SUBTYPE_LEN: usize = 64;

/// A task that waits for the answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// Index into [`Look::tasks`].
    pub(super) task: usize,
    /// Address of the `fuse_req`.
    pub(super) address: u64,
    /// Address of the `fuse_conn`.
    pub(super) connection: u64,
    /// A daemon has read it.
    pub(super) is_sent: bool,
}

/// A table of open files that has a connection's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Device {
    /// Address of the `files_struct`.
    pub(super) files: u64,
    /// Address of the `fuse_conn`.
    pub(super) connection: u64,
}

/// What people call a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    /// Directory under `/sys/fs/fuse/connections`.
    pub(super) number: Option<u32>,
    /// In words.
    pub(super) name: String,
}

/// What one look says of FUSE.
#[derive(Debug, Default)]
pub(super) struct SeenFuse {
    /// Requests with tasks that wait for them.
    pub(super) requests: Vec<Request>,
    /// Who has the devices of their connections open.
    pub(super) devices: Vec<Device>,
    /// What the connections are called, by address.
    pub(super) connections: FxHashMap<u64, Connection>,
    /// Tasks that wait for FUSE, nobody can tell for which request.
    pub(super) unresolved: Vec<usize>,
}

impl SeenFuse {
    /// Whether a task waits for FUSE.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.requests.is_empty() || !self.unresolved.is_empty()
    }
}

/// Tasks asleep in a function that waits for the answer to a FUSE request, and how much of
/// their stack belongs to it.
pub(super) fn waits(functions: &mut Functions<'_>, look: &Look) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (index, task) in look.tasks.iter().enumerate() {
        if task.record.on_cpu != 0 || task.record.moved != 0 || !task.state.is_asleep() {
            continue;
        }
        let outermost = task.frames.iter().take(INNERMOST).rposition(|frame| {
            let stem = functions.stem(frame.return_address);
            ANSWER_WAITS.contains(&stem)
        });
        if let Some(outermost) = outermost {
            found.push((index, frame_end(task, outermost)));
        }
    }
    found
}

/// A request that was found on the stack of the task that waits for it, before it is known
/// whose it is.
struct Found {
    task: usize,
    address: u64,
    bytes: Vec<u8>,
}

/// Reads what a FUSE connection and its requests are made of.
pub(super) struct Reader<'a> {
    /// The look.
    pub(super) look: &'a Look,
    /// The kernel's layouts.
    pub(super) layout: &'a Layout,
    /// Where FUSE has its things.
    pub(super) fuse: &'a FuseLayout,
    /// Kernel memory.
    pub(super) memory: &'a mut dyn KernelMemory,
}

impl Reader<'_> {
    /// The requests that these tasks wait for, and the tasks for which none was found.
    ///
    /// # Errors
    /// When kernel memory cannot be read at all.
    pub(super) fn requests(
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
    pub(super) fn devices(&mut self, open: &[OpenFile]) -> Result<Vec<Device>, MemoryError> {
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
    pub(super) fn name(
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kernel::symbols::Symbols,
        survey::image::{ASLEEP, FUSE, Image, Sleeper, layout},
    };

    const ANSWER_WAIT: u64 = 0xffff_ffff_8101_0050;
    const ELSEWHERE: u64 = 0xffff_ffff_8102_0050;
    const REQUEST: u64 = 0xffff_8883_0000_0000;
    const MOUNT: u64 = 0xffff_8883_0001_0000;
    const CONNECTION: u64 = 0xffff_8883_0002_0000;
    const SUPER_BLOCK: u64 = 0xffff_8883_0003_0000;
    const DEVICE: u64 = 0xffff_8883_0004_0000;

    const SENT: u64 = 1 << 8;
    const PENDING: u64 = 1 << 7;
    const FINISHED: u64 = 1 << 9;

    /// Task 1 waits for an answer; its request has these flags.
    fn waiting(flags: u64) -> Image {
        let mut image = Image::default();
        let head = REQUEST + 120;
        let frames = vec![
            (ANSWER_WAIT, vec![0, head, head, REQUEST]),
            (ELSEWHERE, vec![0]),
        ];
        let sleeper = Sleeper {
            state: ASLEEP,
            files: 0,
            switches: 0,
            frames,
        };
        let scheduler = [0, REQUEST, 7];
        let sp = image.sleep(1, &scheduler, sleeper);
        // Behind the scheduler's words, the return address and a word of the frame.
        let entry = sp + 8 * (scheduler.len() as u64 + 2);
        image.set_all(REQUEST, &[0; 19]);
        image.set(REQUEST + 48, flags);
        image.set_all(head, &[entry, entry]);
        image.set(REQUEST + 144, MOUNT);
        image.set_all(MOUNT, &[CONNECTION, SUPER_BLOCK]);
        image.set_all(SUPER_BLOCK, &[0; 14]);
        image.set(SUPER_BLOCK + 16, MOUNT);
        image.set_all(CONNECTION, &[0, 0, 45, CONNECTION + 24]);
        image
    }

    fn requests(image: &mut Image) -> (Vec<Request>, Vec<usize>) {
        let text = "ffffffff81010000 t request_wait_answer\nffffffff81020000 t elsewhere\n";
        let symbols = Symbols::parse(text.to_owned()).unwrap();
        let look = image.look(2);
        let waits = waits(&mut Functions::new(&symbols), &look);
        let layout = layout();
        let mut reader = Reader {
            look: &look,
            layout: &layout,
            fuse: &FUSE,
            memory: image,
        };
        reader.requests(&waits).unwrap()
    }

    #[test]
    fn a_request_is_told_by_the_queue_that_its_task_is_on() {
        let request = |is_sent| Request {
            task: 0,
            address: REQUEST,
            connection: CONNECTION,
            is_sent,
        };
        let sent = requests(&mut waiting(SENT));
        assert_eq!(sent, (vec![request(true)], vec![]));
        let queued = requests(&mut waiting(PENDING));
        assert_eq!(queued, (vec![request(false)], vec![]));
    }

    #[test]
    fn what_only_looks_like_a_request_is_none() {
        let nothing = (vec![], vec![0]);
        assert_eq!(requests(&mut waiting(FINISHED)), nothing);
        assert_eq!(requests(&mut waiting(SENT | 1 << 40)), nothing);
        // An old pointer: the request is another task's by now.
        let mut stale = waiting(SENT);
        stale.set(REQUEST + 120, SUPER_BLOCK);
        assert_eq!(requests(&mut stale), nothing);
        // The task is on the queue of something else.
        let mut other = waiting(SENT);
        let look = other.look(1);
        let at = look.tasks[0].word_address(5);
        other.set(at, MOUNT);
        assert_eq!(requests(&mut other), nothing);
    }

    #[test]
    fn a_mount_counts_only_if_its_super_block_names_it() {
        let mut freed = waiting(SENT);
        freed.set(SUPER_BLOCK + 16, MOUNT + 64);
        assert_eq!(requests(&mut freed), (vec![], vec![0]));
        // A character device has none: its connection names it.
        let mut device = waiting(SENT);
        device.set(MOUNT + 8, 0);
        assert_eq!(requests(&mut device), (vec![], vec![0]));
        device.set(CONNECTION + 24, MOUNT + 16);
        assert_eq!(requests(&mut device).0.len(), 1);
    }

    #[test]
    fn devices_are_told_with_their_tables_and_names_with_their_numbers() {
        let mut image = waiting(SENT);
        image.set(DEVICE, CONNECTION);
        let look = image.look(2);
        let layout = layout();
        let mut reader = Reader {
            look: &look,
            layout: &layout,
            fuse: &FUSE,
            memory: &mut image,
        };
        let file = |files, private| OpenFile { files, private };
        // Before the mount; with its flag; twice in one table; in two tables.
        let open = [
            file(8, 0),
            file(8, 1),
            file(16, DEVICE),
            file(16, DEVICE | 1),
            file(24, DEVICE),
        ];
        let device = |files| Device {
            files,
            connection: CONNECTION,
        };
        assert_eq!(reader.devices(&open).unwrap(), [device(16), device(24)]);
        let named = reader.name(CONNECTION, REQUEST).unwrap();
        assert_eq!(named.number, Some(45));
        assert_eq!(named.name, "FUSE connection 45");
    }
}
