//! Paths, walked in kernel memory: asking the file system could hang on the very
//! lock that is being named.

use crate::kernel::{
    arch::is_kernel_address,
    layout::Layout,
    memory::{KernelMemory, MemoryError, text, word},
};

/// Deepest path and longest chain of mounts that is followed.
const DEPTH_MAX: usize = 256;
/// Mounts of one super block that are tried: every container may have one.
const MOUNTS_MAX: usize = 1024;
/// Longest name of a path component.
const NAME_LEN: usize = 256;

/// Where an inode is.
pub(super) enum Place {
    /// Its path from the root of our mount tree.
    Path(String),
    /// Its path from the root of its file system, which is not mounted here: in another
    /// mount namespace, or nowhere any more.
    Inside(String),
}

/// The mount namespace of a task, by the address of its `task_struct`.
///
/// # Errors
/// When kernel memory cannot be read at all.
pub(super) fn mount_namespace(
    task: u64,
    layout: &Layout,
    memory: &mut dyn KernelMemory,
) -> Result<Option<u64>, MemoryError> {
    match memory.read_u64(task + layout.mount.task_nsproxy)? {
        Some(nsproxy) if is_kernel_address(nsproxy) => {
            memory.read_u64(nsproxy + layout.mount.nsproxy_namespace)
        }
        _ => Ok(None),
    }
}

/// Walks dentries and mounts.
pub(super) struct Paths<'a> {
    /// The kernel's layouts.
    pub(super) layout: &'a Layout,
    /// Kernel memory.
    pub(super) memory: &'a mut dyn KernelMemory,
    /// Our mount namespace; paths are as seen from there.
    pub(super) namespace: Option<u64>,
}

/// Names from a dentry up to where the walk ended.
struct Ascent {
    names: Vec<String>,
    /// The dentry it ended at: the one asked for, or the root of the file system.
    top: u64,
}

impl Paths<'_> {
    /// Where an inode is whose bytes have been read; `None` for one without a name.
    ///
    /// # Errors
    /// When kernel memory cannot be read at all.
    pub(super) fn of_inode(
        &mut self,
        inode: u64,
        bytes: &[u8],
    ) -> Result<Option<Place>, MemoryError> {
        let alias = word(bytes, self.layout.inode.dentries);
        let dentry = alias.wrapping_sub(self.layout.dentry.alias);
        let Some(found) = self.dentry(dentry)? else {
            return Ok(None);
        };
        if word(&found, self.layout.dentry.inode) != inode {
            return Ok(None);
        }
        for mount in self.mounts(word(bytes, self.layout.inode.sb))? {
            let root = word(&mount.bytes, self.layout.mount.root);
            if let Some(ascent) = self.ascend(dentry, root)?
                && ascent.top == root
                && let Some(mut path) = self.mountpoint(&mount)?
            {
                path.extend(ascent.names);
                return Ok(Some(Place::Path(join(&path))));
            }
        }
        let inside = self.ascend(dentry, 0)?;
        Ok(inside.map(|ascent| Place::Inside(join(&ascent.names))))
    }

    /// Where a super block is mounted, as seen from our mount namespace.
    ///
    /// # Errors
    /// When kernel memory cannot be read at all.
    pub(super) fn of_super_block(
        &mut self,
        super_block: u64,
    ) -> Result<Option<String>, MemoryError> {
        for mount in self.mounts(super_block)? {
            if let Some(path) = self.mountpoint(&mount)? {
                return Ok(Some(join(&path)));
            }
        }
        Ok(None)
    }

    /// What was mounted, as the first of a super block's mounts in our namespace has it:
    /// `fs1:/home`, `//fs1/share`.
    ///
    /// # Errors
    /// When kernel memory cannot be read at all.
    pub(super) fn source(&mut self, super_block: u64) -> Result<Option<String>, MemoryError> {
        let Some(source) = self.layout.mount.source else {
            return Ok(None);
        };
        for mount in self.mounts(super_block)? {
            let name = self.memory.read_u64(mount.address.wrapping_add(source))?;
            if let Some(name) = name.filter(|&name| is_kernel_address(name))
                && let Some(name) = self.string(name)?
                && !name.is_empty()
            {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    fn dentry(&mut self, dentry: u64) -> Result<Option<Vec<u8>>, MemoryError> {
        if !is_kernel_address(dentry) {
            return Ok(None);
        }
        self.memory.read(dentry, self.layout.dentry.size)
    }

    /// Names from `dentry` up to `until` or to the root of its file system.
    fn ascend(&mut self, dentry: u64, until: u64) -> Result<Option<Ascent>, MemoryError> {
        let mut names = Vec::new();
        let mut at = dentry;
        for _ in 0..DEPTH_MAX {
            let Some(bytes) = self.dentry(at)? else {
                return Ok(None);
            };
            let parent = word(&bytes, self.layout.dentry.parent);
            if at == until || parent == at {
                names.reverse();
                return Ok(Some(Ascent { names, top: at }));
            }
            let name = word(&bytes, self.layout.dentry.name);
            let Some(name) = self.string(name)? else {
                return Ok(None);
            };
            names.push(name);
            at = parent;
        }
        Ok(None)
    }

    /// A string that may end just before a page that is not there.
    fn string(&mut self, address: u64) -> Result<Option<String>, MemoryError> {
        let to_page_end = 4096 - (address % 4096) as usize;
        let parts = [(address, NAME_LEN.min(to_page_end)), (address, NAME_LEN)];
        let mut read = self.memory.read_batch(&parts)?;
        let longer = read.pop().flatten();
        Ok(longer
            .or_else(|| read.pop().flatten())
            .map(|bytes| text(&bytes)))
    }

    /// The mounts of a super block in our mount namespace.
    fn mounts(&mut self, super_block: u64) -> Result<Vec<Mount>, MemoryError> {
        let layout = self.layout;
        let head = super_block.wrapping_add(layout.super_block.mounts as u64);
        let mut mounts = Vec::new();
        let mut seen = 0;
        let mut next = self.memory.read_u64(head)?.unwrap_or(0);
        while is_kernel_address(next) && next != head && seen < MOUNTS_MAX {
            let instance = layout.mount.instance;
            let address = if layout.super_block.mounts_is_list {
                next.wrapping_sub(instance)
            } else {
                next
            };
            let Some(bytes) = self.memory.read(address, layout.mount.size)? else {
                break;
            };
            next = word(&bytes, usize::try_from(instance).unwrap_or(usize::MAX));
            seen += 1;
            if Some(word(&bytes, layout.mount.namespace)) == self.namespace {
                mounts.push(Mount { address, bytes });
            }
        }
        Ok(mounts)
    }

    /// The names of the place a mount is mounted on, from the root of the mount tree.
    /// `None` for mounts that are not in a tree (the kernel's own).
    fn mountpoint(&mut self, mount: &Mount) -> Result<Option<Vec<String>>, MemoryError> {
        let layout = self.layout.mount;
        let mut names: Vec<String> = Vec::new();
        let mut at = mount.clone();
        for depth in 0..DEPTH_MAX {
            let parent = word(&at.bytes, layout.parent);
            if parent == at.address {
                // The root of the tree, which has no mount point. A mount that is its
                // own root without being "/" belongs to the kernel.
                return Ok((depth > 0).then_some(names));
            }
            let Some(bytes) = self.memory.read(parent, layout.size)? else {
                return Ok(None);
            };
            let above = Mount {
                address: parent,
                bytes,
            };
            let root = word(&above.bytes, layout.root);
            let Some(ascent) = self.ascend(word(&at.bytes, layout.mountpoint), root)? else {
                return Ok(None);
            };
            names.splice(0..0, ascent.names);
            at = above;
        }
        Ok(None)
    }
}

/// A mount that has been read.
#[derive(Clone)]
struct Mount {
    address: u64,
    bytes: Vec<u8>,
}

fn join(names: &[String]) -> String {
    format!("/{}", names.join("/"))
}
