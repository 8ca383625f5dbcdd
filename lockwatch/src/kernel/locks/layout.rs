//! Where the words and the queues of the sleeping locks lie.

use super::{
    MUTEX_SLOW_PATHS, PERCPU_SLOW_PATHS, RWSEM_SLOW_PATHS, SEMAPHORE_SLOW_PATHS, WordLayout,
};
use crate::{
    kernel::btf::{Btf, BtfError},
    lock::{LockKind, LockMode},
};

/// How the queue hangs on the lock, each with the member's offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueLink {
    /// A list whose head lies in the lock.
    Head(usize),
    /// A pointer to the first entry of a ring of entries (`first_waiter`, 7.1+).
    First(usize),
}

/// How an entry says how its task wants the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryMode {
    /// It does not: the lock knows one way only.
    Exclusive,
    /// `enum rwsem_waiter_type` at this offset (kernel/locking/rwsem.c, since 3.10).
    Type(usize),
    /// `wait_queue_entry.flags` at this offset, with a custom bit for readers
    /// (kernel/locking/percpu-rwsem.c).
    WakeFlags(usize),
}

/// `WQ_FLAG_CUSTOM`: 8 up to 6.5, where 4 is a bookmark no task makes, 4 later, where 8
/// belongs to waits for pages (include/linux/wait.h).
const WAKE_CUSTOM: u32 = 0x4 | 0x8;
/// All flags of a wait-queue entry there have been.
const WAKE_KNOWN: u32 = 0x3f;

impl EntryMode {
    /// The mode by the 32-bit word at its offset; `None` for a word that is none.
    pub const fn decode(self, word: u32) -> Option<LockMode> {
        match (self, word) {
            (Self::Exclusive, _) | (Self::Type(_), 0) => Some(LockMode::Write),
            (Self::Type(_), 1) => Some(LockMode::Read),
            (Self::Type(_), _) => None,
            (Self::WakeFlags(_), flags) if flags & !WAKE_KNOWN != 0 => None,
            (Self::WakeFlags(_), flags) if flags & WAKE_CUSTOM != 0 => Some(LockMode::Read),
            (Self::WakeFlags(_), _) => Some(LockMode::Write),
        }
    }

    /// Where that word lies.
    pub const fn offset(self) -> usize {
        match self {
            Self::Exclusive => 0,
            Self::Type(offset) | Self::WakeFlags(offset) => offset,
        }
    }
}

/// How the entry looks of a task that was granted the lock and has not run since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granted {
    /// A reader's; its task is cleared. Told from other zeroes by its time-out.
    TaskCleared,
    /// Its task is cleared, and its links point at itself.
    Unlinked,
    /// Not told from what is left of old entries.
    Untold,
}

/// A queue entry: lies on its waiter's stack, above a return address into a slow path.
#[derive(Clone, Copy, Debug)]
pub struct EntryLayout {
    /// Its `list_head`.
    pub links: usize,
    /// The task it belongs to.
    pub task: usize,
    /// How it looks once granted.
    pub granted: Granted,
    /// How that wants the lock.
    pub mode: EntryMode,
    /// When it may ask for a hand-off, in jiffies.
    pub timeout: Option<usize>,
    /// Bytes of it up to the last of these.
    pub size: usize,
    /// `task_struct.stack`: an entry lies on the stack of its task.
    pub task_stack: u64,
}

/// A lock whose waiters queue with entries on their stacks.
#[derive(Clone, Copy, Debug)]
pub struct LockLayout {
    /// Which primitive.
    pub kind: LockKind,
    /// Stems of the functions whose frames have the entries.
    pub slow_paths: &'static [&'static str],
    /// Bytes of the whole lock.
    pub size: usize,
    /// Its words.
    pub word: WordLayout,
    /// How the queue hangs on it.
    pub queue: QueueLink,
    /// Its entries.
    pub entry: EntryLayout,
    /// `osq.tail`, where optimistic spinners queue; absent without spinning.
    pub osq: Option<usize>,
}

/// `struct rt_mutex_waiter` and the lock it waits for: found through
/// `task_struct.pi_blocked_on`.
#[derive(Clone, Copy, Debug)]
pub struct PiLayout {
    /// The waiter's node in the lock's tree.
    pub waiter_node: usize,
    /// The waiter's task.
    pub waiter_task: usize,
    /// The lock it waits for.
    pub waiter_lock: usize,
    /// Bytes to read of a waiter.
    pub waiter_size: usize,
    /// `rb_node.rb_left`
    pub node_left: usize,
    /// `rb_node.rb_right`
    pub node_right: usize,
    /// The root of the lock's tree of waiters.
    pub root: usize,
    /// `owner`
    pub owner: usize,
    /// Bytes of an rt_mutex.
    pub size: usize,
    /// `task_struct.stack`
    pub task_stack: u64,
}

/// `struct rw_semaphore` of PREEMPT_RT.
#[derive(Clone, Copy, Debug)]
pub struct RtRwsemLayout {
    /// The rt_mutex inside it.
    pub rtmutex: usize,
    /// Its words.
    pub word: WordLayout,
    /// Bytes of it.
    pub size: usize,
}

/// The lock of a VMA.
#[derive(Clone, Copy, Debug)]
pub enum VmaLockLayout {
    /// `vma->vm_lock->lock`, an rwsem of its own (6.4 – 6.14).
    Rwsem {
        /// `vm_area_struct.vm_lock`
        vm_lock: usize,
        /// `vma_lock.lock`
        lock: u64,
    },
    /// `vma->vm_refcnt`, and the writer that waits in the mm (6.15+).
    Refcount {
        /// `vm_area_struct.vm_refcnt`
        refcnt: usize,
        /// `mm_struct.vma_writer_wait.task`
        writer: u64,
        /// Bytes of a `vm_area_struct`.
        vma_size: usize,
    },
}

/// Every lock this kernel has that the survey can read.
#[derive(Clone, Debug)]
pub struct LockLayouts {
    /// Those with queue entries on stacks.
    pub queued: Vec<LockLayout>,
    /// rt_mutexes.
    pub pi: Option<PiLayout>,
    /// rwsems of PREEMPT_RT; there mutexes are rt_mutexes as well.
    pub rt_rwsem: Option<RtRwsemLayout>,
    /// VMA locks; absent where the kernel has none, too.
    pub vma: Option<VmaLockLayout>,
    /// What is missing, one line each.
    pub degraded: Vec<String>,
}

impl LockLayouts {
    /// The words of an rwsem, and its size in bytes.
    pub fn rwsem(&self) -> Option<(WordLayout, usize)> {
        let queued = self
            .queued
            .iter()
            .find(|layout| layout.kind == LockKind::Rwsem)
            .map(|layout| (layout.word, layout.size));
        let rt = self.rt_rwsem.as_ref().map(|rt| (rt.word, rt.size));
        queued.or(rt)
    }

    /// Chooses the form of each lock. One that this kernel spells in an unknown way is left
    /// out, with a line that says so; an rwsem nobody knows is an error.
    ///
    /// # Errors
    /// When not even the rwsem is known.
    pub fn from_btf(btf: &Btf) -> Result<Self, BtfError> {
        let mut degraded = Vec::new();
        let rt_rwsem = rt_rwsem(btf);
        let is_rt = rt_rwsem.is_some();
        let mut queued = Vec::new();
        if !is_rt {
            queued.push(rwsem(btf)?);
            queued.extend(keep(&mut degraded, "mutexes", mutex(btf)));
        }
        queued.extend(keep(&mut degraded, "semaphores", semaphore(btf)));
        queued.extend(keep(&mut degraded, "per-CPU rwsems", percpu(btf)));
        let pi = if is_rt {
            // Without them no rwsem can be read.
            Some(pi(btf)?)
        } else {
            keep(&mut degraded, "rt_mutexes", pi(btf))
        };
        Ok(Self {
            queued,
            pi,
            rt_rwsem,
            vma: keep(&mut degraded, "VMA locks", vma(btf)).flatten(),
            degraded,
        })
    }

    /// The row of a primitive with queue entries on stacks.
    pub fn queued_of(&self, kind: LockKind) -> Option<&LockLayout> {
        self.queued.iter().find(|layout| layout.kind == kind)
    }
}

/// A layout, or one line about what it costs that this kernel spells it otherwise.
fn keep<T>(degraded: &mut Vec<String>, locks: &str, layout: Result<T, BtfError>) -> Option<T> {
    match layout {
        Ok(layout) => Some(layout),
        Err(error) => {
            degraded.push(format!("waits for {locks} are not seen: {error}"));
            None
        }
    }
}

fn at(btf: &Btf, path: &str) -> Result<usize, BtfError> {
    Ok(btf.require(path)?.offset as usize)
}

fn optional(btf: &Btf, path: &str) -> Option<usize> {
    btf.member(path).map(|member| member.offset as usize)
}

fn size(btf: &Btf, name: &str) -> Result<usize, BtfError> {
    btf.size_of(name)
        .and_then(|size| usize::try_from(size).ok())
        .ok_or_else(|| BtfError::NoMember(name.to_owned()))
}

fn task_stack(btf: &Btf) -> Result<u64, BtfError> {
    Ok(btf.require("task_struct.stack")?.offset.into())
}

/// Where a lock's own list hangs: `wait_list` up to 7.0, then `first_waiter`.
fn queue_link(btf: &Btf, lock: &str) -> Result<QueueLink, BtfError> {
    match optional(btf, &format!("{lock}.first_waiter")) {
        Some(first) => Ok(QueueLink::First(first)),
        None => Ok(QueueLink::Head(at(btf, &format!("{lock}.wait_list"))?)),
    }
}

fn rwsem(btf: &Btf) -> Result<LockLayout, BtfError> {
    let timeout = optional(btf, "rwsem_waiter.timeout");
    let count = at(btf, "rw_semaphore.count")?;
    let owner = optional(btf, "rw_semaphore.owner");
    // A plain pointer, or none at all, stands beside biases; 5.3 made it an atomic_long_t.
    let word = match (owner, btf.member("rw_semaphore.owner.counter")) {
        (Some(owner), Some(_)) => WordLayout::RwsemBits { count, owner },
        _ => WordLayout::RwsemBiases { count, owner },
    };
    let mode = at(btf, "rwsem_waiter.type")?;
    Ok(LockLayout {
        kind: LockKind::Rwsem,
        slow_paths: RWSEM_SLOW_PATHS,
        size: size(btf, "rw_semaphore")?,
        word,
        queue: queue_link(btf, "rw_semaphore")?,
        entry: EntryLayout {
            links: at(btf, "rwsem_waiter.list")?,
            task: at(btf, "rwsem_waiter.task")?,
            granted: if timeout.is_some() {
                Granted::TaskCleared
            } else {
                Granted::Untold
            },
            mode: EntryMode::Type(mode),
            timeout,
            size: timeout.map_or(mode + 8, |timeout| timeout + 8),
            task_stack: task_stack(btf)?,
        },
        osq: optional(btf, "rw_semaphore.osq.tail"),
    })
}

fn mutex(btf: &Btf) -> Result<LockLayout, BtfError> {
    let task = at(btf, "mutex_waiter.task")?;
    // Up to 4.9 the owner was a plain pointer beside a count.
    btf.require("mutex.owner.counter")?;
    Ok(LockLayout {
        kind: LockKind::Mutex,
        slow_paths: MUTEX_SLOW_PATHS,
        size: size(btf, "mutex")?,
        word: WordLayout::Mutex {
            owner: at(btf, "mutex.owner")?,
        },
        queue: queue_link(btf, "mutex")?,
        entry: EntryLayout {
            links: at(btf, "mutex_waiter.list")?,
            task,
            granted: Granted::Untold,
            mode: EntryMode::Exclusive,
            timeout: None,
            size: task + 8,
            task_stack: task_stack(btf)?,
        },
        osq: None,
    })
}

fn semaphore(btf: &Btf) -> Result<LockLayout, BtfError> {
    let task = at(btf, "semaphore_waiter.task")?;
    Ok(LockLayout {
        kind: LockKind::Semaphore,
        slow_paths: SEMAPHORE_SLOW_PATHS,
        size: size(btf, "semaphore")?,
        word: WordLayout::Semaphore {
            count: at(btf, "semaphore.count")?,
            last_holder: optional(btf, "semaphore.last_holder"),
        },
        queue: queue_link(btf, "semaphore")?,
        entry: EntryLayout {
            links: at(btf, "semaphore_waiter.list")?,
            task,
            granted: Granted::Untold,
            mode: EntryMode::Exclusive,
            timeout: None,
            size: task + 8,
            task_stack: task_stack(btf)?,
        },
        osq: None,
    })
}

fn percpu(btf: &Btf) -> Result<LockLayout, BtfError> {
    let links = at(btf, "wait_queue_entry.entry")?;
    let head = at(btf, "percpu_rw_semaphore.waiters")?
        + optional(btf, "wait_queue_head.head").unwrap_or(8);
    Ok(LockLayout {
        kind: LockKind::PercpuRwsem,
        slow_paths: PERCPU_SLOW_PATHS,
        size: size(btf, "percpu_rw_semaphore")?,
        word: WordLayout::PercpuRwsem {
            block: at(btf, "percpu_rw_semaphore.block")?,
            writer: at(btf, "percpu_rw_semaphore.writer.task")?,
        },
        queue: QueueLink::Head(head),
        entry: EntryLayout {
            links,
            task: at(btf, "wait_queue_entry.private")?,
            granted: Granted::Unlinked,
            mode: EntryMode::WakeFlags(at(btf, "wait_queue_entry.flags")?),
            timeout: None,
            size: links + 16,
            task_stack: task_stack(btf)?,
        },
        osq: None,
    })
}

fn pi(btf: &Btf) -> Result<PiLayout, BtfError> {
    btf.require("task_struct.pi_blocked_on")?;
    let task = at(btf, "rt_mutex_waiter.task")?;
    let lock = at(btf, "rt_mutex_waiter.lock")?;
    // One name up to 5.15, another since; the owner's structure was split off in 5.15.
    let node = ["rt_mutex_waiter.tree.entry", "rt_mutex_waiter.tree_entry"]
        .into_iter()
        .find_map(|path| optional(btf, path))
        .ok_or_else(|| BtfError::NoMember("rt_mutex_waiter.tree".to_owned()))?;
    let base = if btf.size_of("rt_mutex_base").is_some() {
        "rt_mutex_base"
    } else {
        "rt_mutex"
    };
    Ok(PiLayout {
        waiter_node: node,
        waiter_task: task,
        waiter_lock: lock,
        waiter_size: (task.max(lock) + 8).max(node + 24),
        node_left: at(btf, "rb_node.rb_left")?,
        node_right: at(btf, "rb_node.rb_right")?,
        root: at(btf, &format!("{base}.waiters.rb_root.rb_node"))?,
        owner: at(btf, &format!("{base}.owner"))?,
        size: size(btf, base)?,
        task_stack: task_stack(btf)?,
    })
}

/// `rwbase` (5.15+) or the same two members in place (the 5.10 patches).
fn rt_rwsem(btf: &Btf) -> Option<RtRwsemLayout> {
    let inner = |name: &str| {
        optional(btf, &format!("rw_semaphore.rwbase.{name}"))
            .or_else(|| optional(btf, &format!("rw_semaphore.{name}")))
    };
    let rtmutex = inner("rtmutex")?;
    Some(RtRwsemLayout {
        rtmutex,
        word: WordLayout::RwsemRt {
            readers: inner("readers")?,
            owner: inner("rtmutex.owner")?,
        },
        size: size(btf, "rw_semaphore").ok()?,
    })
}

/// The VMA lock of this kernel, if it has one.
fn vma(btf: &Btf) -> Result<Option<VmaLockLayout>, BtfError> {
    if let Some(refcnt) = optional(btf, "vm_area_struct.vm_refcnt") {
        return Ok(Some(VmaLockLayout::Refcount {
            refcnt,
            writer: btf.require("mm_struct.vma_writer_wait.task")?.offset.into(),
            vma_size: size(btf, "vm_area_struct")?,
        }));
    }
    if let Some(vm_lock) = optional(btf, "vm_area_struct.vm_lock") {
        return Ok(Some(VmaLockLayout::Rwsem {
            vm_lock,
            lock: btf.require("vma_lock.lock")?.offset.into(),
        }));
    }
    Ok(None)
}
