//! Which lock this is: what contains it, and what people call that.

use crate::{
    kernel::{
        arch::{is_image_address, is_kernel_address},
        layout::Layout,
        memory::{KernelMemory, MemoryError, half_word, text, word},
        symbols::Symbols,
    },
    lock::{LockAddr, LockClass, LockObject},
    survey::{
        look::Look,
        paths::{Paths, Place, mount_namespace},
    },
    task::Tgid,
};

/// What a lock is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// Which of the kernel's locks.
    pub(super) class: LockClass,
    /// What it belongs to.
    pub(super) object: Option<LockObject>,
    /// Address of the structure that contains it.
    pub(super) object_address: Option<u64>,
    /// In words.
    pub(super) name: String,
}

/// Longest name of a file system type.
const FS_NAME_LEN: usize = 32;

/// Names a lock by its address.
///
/// # Errors
/// When kernel memory cannot be read at all.
pub(super) fn identify(
    lock: LockAddr,
    look: &Look,
    layout: &Layout,
    symbols: &Symbols,
    memory: &mut dyn KernelMemory,
) -> Result<Identity, MemoryError> {
    if is_image_address(lock.0) {
        return Ok(in_image(lock, symbols));
    }
    if let Some(identity) = mm(lock, look, layout, memory)? {
        return Ok(identity);
    }
    let own = look
        .tasks
        .iter()
        .find(|task| task.name.tgid.0 == std::process::id());
    let namespace = match own {
        Some(own) => mount_namespace(own.record.task, layout, memory)?,
        None => None,
    };
    if let Some(identity) = inode(lock, layout, memory, namespace)? {
        return Ok(identity);
    }
    if let Some(identity) = super_block(lock, layout, memory, namespace)? {
        return Ok(identity);
    }
    Ok(Identity {
        class: LockClass::Unknown,
        object: None,
        object_address: None,
        name: format!("unnamed rwsem {lock}"),
    })
}

fn in_image(lock: LockAddr, symbols: &Symbols) -> Identity {
    let symbol = symbols.exact(lock.0).map(ToOwned::to_owned);
    let (class, name) = match &symbol {
        Some(symbol) => (LockClass::Symbol(symbol.clone()), symbol.clone()),
        None => (
            LockClass::KernelData,
            format!("unnamed rwsem {lock} in kernel data"),
        ),
    };
    Identity {
        class,
        object: symbol.map(LockObject::Symbol),
        object_address: None,
        name,
    }
}

/// The address space that some task of this look uses.
fn mm(
    lock: LockAddr,
    look: &Look,
    layout: &Layout,
    memory: &mut dyn KernelMemory,
) -> Result<Option<Identity>, MemoryError> {
    let mm = lock.0.wrapping_sub(layout.mm.mmap_lock);
    let users: Vec<_> = look
        .tasks
        .iter()
        .filter(|task| task.record.mm == mm)
        .collect();
    if users.is_empty() {
        return Ok(None);
    }
    // vfork and CLONE_VM share an mm between processes: its owner gives the name.
    let owner = match layout.mm.owner {
        Some(offset) => memory.read_u64(mm + offset)?,
        None => None,
    };
    let user = users
        .iter()
        .find(|task| owner == Some(task.record.task))
        .or_else(|| users.iter().min_by_key(|task| task.name.key.start_ns));
    // Threads have names of their own; the process goes by its leader's.
    let named = user.and_then(|user| {
        let tgid = user.name.tgid;
        let leader = look.tasks.iter().find(|task| task.name.key.tid.0 == tgid.0);
        Some((tgid, leader.or(Some(*user))?.name.comm.clone()))
    });
    let name = match &named {
        Some((Tgid(tgid), comm)) => format!("mmap_lock of {comm}[{tgid}]"),
        None => format!("mmap_lock of mm {mm:#x}"),
    };
    Ok(Some(Identity {
        class: LockClass::MmapLock,
        object: Some(LockObject::Mm { mm, owner: named }),
        object_address: Some(mm),
        name,
    }))
}

/// The inode, or the mapping inside an inode, that contains the lock.
fn inode(
    lock: LockAddr,
    layout: &Layout,
    memory: &mut dyn KernelMemory,
    namespace: Option<u64>,
) -> Result<Option<Identity>, MemoryError> {
    let places = [
        (Some(layout.inode.i_rwsem), LockClass::InodeRwsem),
        (layout.inode.invalidate_lock, LockClass::InvalidateLock),
    ];
    for (offset, class) in places {
        let Some(offset) = offset else { continue };
        let inode = lock.0.wrapping_sub(offset);
        let Some(bytes) = memory.read(inode, layout.inode.size)? else {
            continue;
        };
        // An inode's mapping points back into it, except for device files.
        if word(&bytes, layout.inode.mapping) != inode + layout.inode.data {
            continue;
        }
        let Some((fstype, sb)) = file_system(word(&bytes, layout.inode.sb), layout, memory)? else {
            continue;
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
        return Ok(Some(Identity {
            name: format!("{class} of {what}"),
            class,
            object: Some(LockObject::Inode {
                inode,
                fstype,
                sb,
                ino,
                path,
            }),
            object_address: Some(inode),
        }));
    }
    Ok(None)
}

fn super_block(
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
    }))
}

/// Type and id of a super block; `None` if there is none at this address.
pub(super) fn file_system(
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
