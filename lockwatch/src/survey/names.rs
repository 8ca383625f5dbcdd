//! Which lock this is: what contains it, and what people call that.

mod file_systems;

pub(super) use self::file_systems::file_system;
use self::file_systems::{inode, inode_object, super_block};
use crate::{
    kernel::{
        arch::{is_image_address, is_kernel_address},
        layout::Layout,
        locks::{FREEZE_LEVELS, VmaLockLayout, is_frozen, is_pi_futex, locks_a_pipe},
        memory::{KernelMemory, MemoryError, half_word, word},
        sleep_frames::{ASK_FOR_OTHERS, is_lock_function, is_trampoline},
        symbols::Symbols,
    },
    lock::{LockAddr, LockClass, LockKind, LockObject},
    survey::{
        look::Look,
        paths::{Paths, mount_namespace},
        queue::Queue,
    },
    task::{Tgid, Tid},
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
    /// Why nobody can be named who holds it for write, where that is known.
    pub(super) note: Option<String>,
}

/// Whether a function on a stack, by its stem, is not one of the lock's own, nor one that
/// asks for it on behalf of others, nor a tracer's.
pub(super) fn is_caller(stem: &str) -> bool {
    !stem.is_empty()
        && !is_lock_function(stem)
        && !ASK_FOR_OTHERS.contains(&stem)
        && !is_trampoline(stem)
}

/// Names the lock of a queue; `caller` is the function its first waiter asks from.
///
/// # Errors
/// When kernel memory cannot be read at all.
pub(super) fn identify(
    queue: &Queue,
    caller: Option<&str>,
    look: &Look,
    layout: &Layout,
    symbols: &Symbols,
    memory: &mut dyn KernelMemory,
) -> Result<Identity, MemoryError> {
    let lock = queue.lock;
    let what = if queue.is_spinlock {
        "sleeping spinlock"
    } else {
        queue.kind.words()
    };
    if is_image_address(lock.0) {
        return Ok(in_image(lock, what, symbols));
    }
    let namespace = own_namespace(look, layout, memory)?;
    let known = match queue.kind {
        LockKind::Rwsem => rwsem(queue, look, layout, memory, namespace)?,
        LockKind::VmaLock => vma(queue, look, layout, memory)?,
        LockKind::Mutex => match file_position(lock, layout, memory, namespace)? {
            Some(identity) => Some(identity),
            None => pipe(lock, caller, layout, memory)?,
        },
        LockKind::PercpuRwsem => super_writers(lock, layout, memory, namespace)?,
        LockKind::RtMutex | LockKind::Semaphore | LockKind::Unknown => None,
    };
    Ok(known.unwrap_or_else(|| Identity {
        class: LockClass::Unknown,
        object: None,
        object_address: None,
        name: match caller {
            Some(caller) if queue.kind == LockKind::RtMutex && is_pi_futex(caller) => {
                "PI futex".to_owned()
            }
            Some(caller) if queue.kind != LockKind::Rwsem => format!("{what} {lock} in {caller}"),
            _ => format!("unnamed {what} {lock}"),
        },
        note: None,
    }))
}

/// The mount namespace we are in.
///
/// # Errors
/// When kernel memory cannot be read at all.
pub(super) fn own_namespace(
    look: &Look,
    layout: &Layout,
    memory: &mut dyn KernelMemory,
) -> Result<Option<u64>, MemoryError> {
    let own_tgid = std::process::id();
    let any = || look.tasks.iter().find(|task| task.name.tgid.0 == own_tgid);
    match look.thread(Tid(own_tgid)).or_else(any) {
        Some(own) => mount_namespace(own.record.task, layout, memory),
        None => Ok(None),
    }
}

fn rwsem(
    queue: &Queue,
    look: &Look,
    layout: &Layout,
    memory: &mut dyn KernelMemory,
    namespace: Option<u64>,
) -> Result<Option<Identity>, MemoryError> {
    let lock = queue.lock;
    if let Some(identity) = mm(lock, look, layout, memory)? {
        return Ok(Some(identity));
    }
    if let Some(identity) = vma(queue, look, layout, memory)? {
        return Ok(Some(identity));
    }
    if let Some(identity) = inode(lock, layout, memory, namespace)? {
        return Ok(Some(identity));
    }
    super_block(lock, layout, memory, namespace)
}

fn in_image(lock: LockAddr, what: &str, symbols: &Symbols) -> Identity {
    let symbol = symbols.exact(lock.0).map(ToOwned::to_owned);
    let (class, name) = match &symbol {
        Some(symbol) => (LockClass::Symbol(symbol.clone()), symbol.clone()),
        None => (
            LockClass::KernelData,
            format!("unnamed {what} {lock} in kernel data"),
        ),
    };
    Identity {
        class,
        object: symbol.map(LockObject::Symbol),
        object_address: None,
        name,
        note: None,
    }
}

/// The VMA whose lock this is.
fn vma(
    queue: &Queue,
    look: &Look,
    layout: &Layout,
    memory: &mut dyn KernelMemory,
) -> Result<Option<Identity>, MemoryError> {
    let vma = match layout.locks.vma {
        Some(VmaLockLayout::Refcount { refcnt, .. }) if queue.kind == LockKind::VmaLock => {
            Some(queue.lock.0.wrapping_sub(refcnt as u64))
        }
        Some(VmaLockLayout::Rwsem { vm_lock, lock }) => {
            vma_of_rwsem(queue, vm_lock, lock, look, memory)?
        }
        _ => None,
    };
    let Some(vma) = vma else { return Ok(None) };
    let Some(bytes) = memory.read(vma, layout.fault.vma_size)? else {
        return Ok(None);
    };
    let field = |offset: usize| word(&bytes, offset);
    let (start, end) = (field(layout.fault.vma_start), field(layout.fault.vma_end));
    let (_, owner) = mm_owner(field(layout.fault.vma_mm), look, layout, memory)?;
    let whose = match &owner {
        Some((Tgid(tgid), comm)) => format!("{comm}[{tgid}]"),
        None => "an address space".to_owned(),
    };
    Ok(Some(Identity {
        class: LockClass::VmaLock,
        object: Some(LockObject::Vma { start, end, owner }),
        object_address: Some(vma),
        name: format!("VMA lock of {whose} at {start:#x}-{end:#x}"),
        note: None,
    }))
}

/// Only writers queue on a VMA's rwsem, and they have the VMA at hand.
fn vma_of_rwsem(
    queue: &Queue,
    vm_lock: usize,
    lock: u64,
    look: &Look,
    memory: &mut dyn KernelMemory,
) -> Result<Option<u64>, MemoryError> {
    let Some(first) = queue.entries.first() else {
        return Ok(None);
    };
    let words = look.words(&look.tasks[first.task]);
    let mut candidates: Vec<u64> = words
        .iter()
        .copied()
        .filter(|&word| is_kernel_address(word) && word.is_multiple_of(8))
        .filter(|&word| !look.in_a_stack(word))
        .collect();
    candidates.sort_unstable();
    candidates.dedup();
    let reads: Vec<(u64, usize)> = candidates
        .iter()
        .map(|vma| (vma.wrapping_add(vm_lock as u64), 8))
        .collect();
    let wanted = queue.lock.0.wrapping_sub(lock);
    let read = memory.read_batch(&reads)?;
    let mut found = candidates.into_iter().zip(read).filter(|(vma, bytes)| {
        let is_it = bytes.as_ref().is_some_and(|bytes| word(bytes, 0) == wanted);
        is_it && *vma != wanted
    });
    Ok(found.next().map(|(vma, _)| vma))
}

/// The open file whose position the mutex guards.
fn file_position(
    lock: LockAddr,
    layout: &Layout,
    memory: &mut dyn KernelMemory,
    namespace: Option<u64>,
) -> Result<Option<Identity>, MemoryError> {
    let file = lock.0.wrapping_sub(layout.file.pos_lock);
    let Some(inode) = memory.read_u64(file.wrapping_add(layout.file.inode))? else {
        return Ok(None);
    };
    let Some((object, what)) = inode_object(inode, layout, memory, namespace)? else {
        return Ok(None);
    };
    Ok(Some(Identity {
        class: LockClass::FilePosition,
        object: Some(object),
        object_address: Some(file),
        name: format!("f_pos_lock of {what}"),
        note: None,
    }))
}

/// A pipe's mutex: its address says nothing, but its caller and its ring do.
fn pipe(
    lock: LockAddr,
    caller: Option<&str>,
    layout: &Layout,
    memory: &mut dyn KernelMemory,
) -> Result<Option<Identity>, MemoryError> {
    if !caller.is_some_and(locks_a_pipe) {
        return Ok(None);
    }
    let pipe = lock.0.wrapping_sub(layout.pipe.mutex);
    let ring = memory.read(pipe.wrapping_add(layout.pipe.ring_size), 4)?;
    if !ring.is_some_and(|bytes| half_word(&bytes, 0).is_power_of_two()) {
        return Ok(None);
    }
    Ok(Some(Identity {
        class: LockClass::Pipe,
        object: None,
        object_address: Some(pipe),
        name: "mutex of a pipe".to_owned(),
        note: None,
    }))
}

/// One of the locks by which a file system is frozen.
fn super_writers(
    lock: LockAddr,
    layout: &Layout,
    memory: &mut dyn KernelMemory,
    namespace: Option<u64>,
) -> Result<Option<Identity>, MemoryError> {
    let Some(writers) = layout.super_block.writers else {
        return Ok(None);
    };
    let places =
        (0..writers.all).step_by(usize::try_from(writers.one.max(1)).unwrap_or(usize::MAX));
    for (level, offset) in FREEZE_LEVELS.iter().zip(places) {
        let super_block = lock.0.wrapping_sub(writers.locks + offset);
        let Some((fstype, id)) = file_system(super_block, layout, memory)? else {
            continue;
        };
        let frozen = super_block.wrapping_add(writers.frozen as u64);
        let frozen = memory
            .read(frozen, 4)?
            .map_or(0, |bytes| half_word(&bytes, 0));
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
        let note = is_frozen(frozen).then(|| {
            "no task: the file system is frozen (fsfreeze), until somebody thaws it".to_owned()
        });
        return Ok(Some(Identity {
            name: format!("s_writers ({level} level) of {fstype} {id}{place}"),
            class: LockClass::SuperWriters,
            object: Some(LockObject::SuperBlock {
                super_block,
                fstype,
                id,
                mount,
            }),
            object_address: None,
            note,
        }));
    }
    Ok(None)
}

/// The address space that some task of this look uses.
fn mm(
    lock: LockAddr,
    look: &Look,
    layout: &Layout,
    memory: &mut dyn KernelMemory,
) -> Result<Option<Identity>, MemoryError> {
    let mm = lock.0.wrapping_sub(layout.mm.mmap_lock);
    let (is_used, named) = mm_owner(mm, look, layout, memory)?;
    if !is_used {
        return Ok(None);
    }
    let name = match &named {
        Some((Tgid(tgid), comm)) => format!("mmap_lock of {comm}[{tgid}]"),
        None => format!("mmap_lock of mm {mm:#x}"),
    };
    Ok(Some(Identity {
        class: LockClass::MmapLock,
        object: Some(LockObject::Mm { mm, owner: named }),
        object_address: Some(mm),
        name,
        note: None,
    }))
}

/// Whether tasks of this look use an address space, and the process it goes by.
fn mm_owner(
    mm: u64,
    look: &Look,
    layout: &Layout,
    memory: &mut dyn KernelMemory,
) -> Result<(bool, Option<(Tgid, String)>), MemoryError> {
    let mut users = look.users_of(mm).peekable();
    if users.peek().is_none() {
        return Ok((false, None));
    }
    // vfork and CLONE_VM share an mm between processes: its owner gives the name.
    let owner = match layout.mm.owner {
        Some(offset) => memory.read_u64(mm + offset)?,
        None => None,
    };
    let user = look
        .users_of(mm)
        .find(|task| owner == Some(task.record.task))
        .or_else(|| users.min_by_key(|task| task.name.key.start_ns));
    // Threads have names of their own; the process goes by its leader's.
    let named = user.map(|user| {
        let tgid = user.name.tgid;
        let leader = look.thread(Tid(tgid.0));
        (tgid, leader.unwrap_or(user).name.comm.to_string())
    });
    Ok((true, named))
}
