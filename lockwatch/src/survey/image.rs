//! A kernel made by hand, for tests: tasks with stacks, and the memory behind them.

use std::collections::BTreeMap;

use lockwatch_ebpf::{
    Member,
    survey::{OpenFileLayout, TaskLayout, TaskRecord},
};
use zerocopy::{FromZeros, IntoBytes};

use crate::{
    kernel::{
        btf::Bit,
        fault::{FAULT_FRAMES, FaultRules},
        fuse::{FuseLayout, RequestLayout},
        layout::{
            DentryLayout, FaultLayout, FileLayout, InodeLayout, Layout, MmLayout, MountLayout,
            PipeLayout, SuperBlockLayout,
        },
        locks::{EntryLayout, EntryMode, Granted, LockLayout, LockLayouts, QueueLink, WordLayout},
        memory::{KernelMemory, MemoryError},
        scheduler::SchedulerLayout,
        wait_queues::{self, KeyLayout, SimpleLayout, WaitLayout},
    },
    lock::LockKind,
    survey::{look::Look, queue::Row},
};

pub(super) const THREAD_SIZE: u32 = 16 * 1024;
/// A return address into the read slow path.
pub(super) const SLOW_PATH: u64 = 0xffff_ffff_8100_0250;
pub(super) const JIFFIES: u64 = 0x1_0000_0000;

/// The layout of 5.3 – 7.0.
pub(super) const RWSEM: LockLayout = LockLayout {
    kind: LockKind::Rwsem,
    slow_paths: &[],
    size: 40,
    word: WordLayout::RwsemBits { count: 0, owner: 8 },
    queue: QueueLink::Head(24),
    entry: EntryLayout {
        links: 0,
        task: 16,
        granted: Granted::TaskCleared,
        mode: EntryMode::Type(24),
        timeout: Some(32),
        size: 40,
        task_stack: 32,
    },
    osq: Some(16),
};

/// A `struct percpu_rw_semaphore`.
pub(super) const PERCPU_RWSEM: LockLayout = LockLayout {
    kind: LockKind::PercpuRwsem,
    size: 96,
    word: WordLayout::PercpuRwsem {
        block: 88,
        writer: 56,
    },
    queue: QueueLink::Head(72),
    // wait_queue_entry: flags, private, func, entry.
    entry: EntryLayout {
        links: 24,
        task: 8,
        granted: Granted::Unlinked,
        mode: EntryMode::WakeFlags(0),
        timeout: None,
        size: 40,
        task_stack: RWSEM.entry.task_stack,
    },
    osq: None,
    ..RWSEM
};

/// Where things lie in this kernel. FUSE has the members of 5.10 to 7.1.
pub(super) fn layout() -> Layout {
    Layout {
        task_flags: Member::ABSENT,
        task_prio: Member::ABSENT,
        task: TaskLayout::default(),
        locks: LockLayouts {
            queued: vec![RWSEM],
            pi: None,
            rt_rwsem: None,
            vma: None,
            degraded: Vec::new(),
        },
        mm: MmLayout {
            mmap_lock: 0x40,
            owner: None,
            start_stack: Some(0x30),
        },
        anon_vma: None,
        fault: FaultLayout {
            frames: FAULT_FRAMES,
            fault_vma: Some(0),
            fault_address: 8,
            fault_pgoff: 16,
            fault_flags: 40,
            fault_size: 44,
            rules: FaultRules::default(),
            vma_start: 0,
            vma_end: 8,
            vma_mm: 16,
            vma_pgoff: 24,
            vma_size: 24,
        },
        inode: InodeLayout {
            i_rwsem: Some(0x40),
            sb: 0,
            mode: 8,
            mapping: 16,
            ino: 24,
            generation: None,
            dentries: 32,
            data: 0x80,
            invalidate_lock: Some(0x88),
            host: None,
            mmap_rwsem: None,
            size: 40,
        },
        dentry: DentryLayout {
            parent: 0,
            name: 8,
            inode: 16,
            sb: 24,
            alias: 32,
            size: 40,
        },
        super_block: SuperBlockLayout {
            s_umount: 0x80,
            fs_type: 0,
            fs_name: 0,
            number: 8,
            private: 16,
            subtype: 24,
            id: 32,
            id_len: 32,
            mounts: 64,
            mounts_is_list: true,
            writers: None,
            root: None,
            size: 112,
        },
        mount: MountLayout {
            vfs_root: 0,
            vfs_sb: 8,
            parent: 0,
            mountpoint: 8,
            root: 16,
            namespace: 24,
            source: Some(40),
            task_nsproxy: 0x100,
            nsproxy_namespace: 0,
            instance: 32,
            size: 48,
        },
        file: FileLayout {
            pos_lock: 0,
            inode: 32,
            mapping: None,
        },
        pipe: PipeLayout {
            mutex: 0,
            ring_size: 32,
        },
        block: None,
        cgroup: None,
        open_file: OpenFileLayout::default(),
        fuse: Some(FUSE),
        scheduler: Some(SCHEDULER),
        io_wait: Some(Bit {
            byte: 0x118,
            mask: 4,
        }),
        waits: Some(WAITS),
        readers_clear_owner: false,
    }
}

/// Behind what else is kept of a task.
pub(super) const SCHEDULER: SchedulerLayout = SchedulerLayout {
    exec_start: 0x120,
    group_queue: 0x128,
    run_queue: 8,
    cpu: 0,
    clock: 8,
    clock_task: 16,
};

/// Wait queues as 6.12 has them.
pub(super) const WAITS: WaitLayout = WaitLayout {
    entry: wait_queues::EntryLayout {
        flags: 0,
        task: 8,
        wake: 16,
        links: 24,
        size: 40,
    },
    head: 8,
    bit: Some(KeyLayout {
        word: 0,
        bit: 8,
        entry: 24,
    }),
    page: Some(KeyLayout {
        word: 0,
        bit: 8,
        entry: 16,
    }),
    simple: Some(SimpleLayout {
        task: 0,
        links: 8,
        size: 24,
        head: 8,
        completion: Some((16, 0)),
    }),
};

/// FUSE as 6.12 has it.
pub(super) const FUSE: FuseLayout = FuseLayout {
    request: RequestLayout {
        waiters: 120,
        flags: 48,
        owner: [144; 2],
        pending: 1 << 7,
        finished: 1 << 9,
        size: 152,
    },
    device_owner: 0,
    channel: None,
    mount_connection: 0,
    mount_super: [8; 2],
    number: Some(16),
    mounts: Some((24, 16)),
};

/// A lock whose slow path is [`SLOW_PATH`]'s function.
pub(super) fn row(layout: LockLayout) -> Row {
    Row {
        layout,
        slow_paths: std::iter::once(SLOW_PATH - 0x50..SLOW_PATH + 0x50).collect(),
    }
}

/// Where the queue entry of task `n` lies.
pub(super) const fn entry_address(n: u64) -> u64 {
    stack_base(n) + 0x3000
}

/// The `task_struct` of task `n`.
pub(super) const fn task_address(n: u64) -> u64 {
    0xffff_8881_0000_0000 + n * 0x4000
}

/// Words of the scheduler between the stack pointer and the slow path.
pub(super) const ENTRY_OFFSET: usize = 8;

const fn stack_base(n: u64) -> u64 {
    0xffff_c900_0000_0000 + n * 0x8000
}

/// Kernel memory as words by address.
#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    words: BTreeMap<u64, u64>,
    /// What each task says it waits for (`pi_blocked_on`).
    pub(super) pi_blocked_on: BTreeMap<u64, u64>,
    /// Tasks whose frames are known.
    sleepers: BTreeMap<u64, Sleeper>,
}

/// A task that sleeps in known functions.
#[derive(Clone, Debug)]
pub(super) struct Sleeper {
    /// `task->__state`.
    pub(super) state: u32,
    /// `task->files`.
    pub(super) files: u64,
    /// How often it has left a CPU.
    pub(super) switches: u64,
    /// Its frames, innermost first: the return address, and the words of the frame.
    pub(super) frames: Vec<(u64, Vec<u64>)>,
}

/// `TASK_INTERRUPTIBLE`
pub(super) const ASLEEP: u32 = 1;
/// `TASK_UNINTERRUPTIBLE`
pub(super) const STUCK: u32 = 2;
/// `CLOCK_MONOTONIC` ns of every look.
pub(super) const TAKEN_AT_NS: u64 = 1_000;

impl Image {
    pub(super) fn set(&mut self, address: u64, word: u64) {
        self.words.insert(address, word);
    }

    /// These words from this address on.
    pub(super) fn set_all(&mut self, address: u64, words: &[u64]) {
        for (at, &word) in (address..).step_by(8).zip(words) {
            self.set(at, word);
        }
    }

    /// So many words from this address on, 0 where nothing was set.
    pub(super) fn words(&self, address: u64, count: usize) -> impl Iterator<Item = u64> {
        (address..)
            .step_by(8)
            .take(count)
            .map(|at| self.words.get(&at).copied().unwrap_or(0))
    }

    /// Puts task `n` to sleep in known functions; its stack then begins with the words of the
    /// scheduler. Gives the address of the first of these.
    pub(super) fn sleep(&mut self, n: u64, scheduler: &[u64], sleeper: Sleeper) -> u64 {
        self.task(n);
        let sp = stack_base(n) + 0x2f00;
        self.set_all(sp, scheduler);
        let mut at = sp + 8 * scheduler.len() as u64;
        for (return_address, words) in &sleeper.frames {
            self.set(at, *return_address);
            self.set_all(at + 8, words);
            at += 8 + 8 * words.len() as u64;
        }
        self.sleepers.insert(n, sleeper);
        sp
    }

    /// The stack of task `n`, as its `task_struct` tells it.
    pub(super) fn task(&mut self, n: u64) {
        self.set(task_address(n) + RWSEM.entry.task_stack, stack_base(n));
    }

    /// The queue entry of task `n`, with the links that the list has.
    pub(super) fn entry(&mut self, n: u64, kind: u64, next: u64, prev: u64) {
        self.task(n);
        let entry = [next, prev, task_address(n), kind, JIFFIES - 100];
        self.set_all(entry_address(n), &entry);
    }

    /// A lock word with its list.
    pub(super) fn lock(&mut self, lock: u64, count: u64, owner: u64, first: u64, last: u64) {
        self.set_all(lock, &[count, owner, 0, first, last]);
    }

    /// A queue of `kinds` (0 = write, 1 = read) of tasks 1, 2, … on a lock.
    pub(super) fn queue(&mut self, lock: u64, count: u64, owner: u64, kinds: &[u64]) {
        let head = lock + 24;
        let last = kinds.len() as u64;
        for (index, &kind) in kinds.iter().enumerate() {
            let n = index as u64 + 1;
            let prev = if n == 1 { head } else { entry_address(n - 1) };
            let next = if n == last {
                head
            } else {
                entry_address(n + 1)
            };
            self.entry(n, kind, next, prev);
        }
        self.lock(lock, count, owner, entry_address(1), entry_address(last));
    }

    /// A [`PERCPU_RWSEM`] for which task 1, a reader, queues, and that task 2 has shut and
    /// waits for others to leave.
    pub(super) fn drained(&mut self, lock: u64) {
        self.task(1);
        let head = lock + 72;
        let links = entry_address(1) + 24;
        self.set_all(entry_address(1), &[0x5, task_address(1), 0, head, head]);
        self.set_all(lock, &[0; 12]);
        self.set(lock + 56, task_address(2));
        self.set_all(head, &[links, links, 1]);
    }

    /// A look at tasks 1 to `count`, all asleep in the slow path, their stacks as the
    /// image has them.
    pub(super) fn look(&self, count: u64) -> Look {
        let mut words = Vec::new();
        for n in 1..=count {
            let mut record = TaskRecord::new_zeroed();
            record.task = task_address(n);
            record.tid = n as u32;
            record.tgid = n as u32;
            record.start_time_ns = n;
            record.state = STUCK;
            record.taken_at_ns = TAKEN_AT_NS;
            let sleeper = self.sleepers.get(&n);
            let frames: Vec<u64> = sleeper.map_or_else(Vec::new, |sleeper| {
                record.state = sleeper.state;
                record.files = sleeper.files;
                record.nvcsw = sleeper.switches;
                sleeper.frames.iter().map(|&(at, _)| at).collect()
            });
            record.frame_count = frames.len() as u32;
            record.pi_blocked_on = self.pi_blocked_on.get(&n).copied().unwrap_or(0);
            record.stack_base = stack_base(n);
            record.stack_offset = 0x2f00;
            record.sp = stack_base(n) + 0x2f00;
            record.jiffies = JIFFIES;
            record.stack_len = THREAD_SIZE - 0x2f00;
            words.extend(as_words(&record));
            words.extend(frames);
            let stack = (stack_base(n) + 0x2f00..stack_base(n) + u64::from(THREAD_SIZE)).step_by(8);
            words.extend(stack.map(|address| match address - stack_base(n) {
                0x2fe0 if sleeper.is_none() => SLOW_PATH,
                _ => self.words.get(&address).copied().unwrap_or(0),
            }));
        }
        Look::decode(&words, THREAD_SIZE)
    }
}

pub(super) fn as_words(record: &TaskRecord) -> Vec<u64> {
    record
        .as_bytes()
        .chunks_exact(8)
        .map(|chunk| u64::from_le_bytes(chunk.try_into().unwrap()))
        .collect()
}

impl KernelMemory for Image {
    fn read_batch(&mut self, reads: &[(u64, usize)]) -> Result<Vec<Option<Vec<u8>>>, MemoryError> {
        let read = |&(address, len): &(u64, usize)| {
            let words = (address..address + len as u64).step_by(8);
            let bytes: Option<Vec<[u8; 8]>> = words
                .map(|at| self.words.get(&at).map(|word| word.to_le_bytes()))
                .collect();
            bytes.map(|words| words.concat()[..len].to_vec())
        };
        Ok(reads.iter().map(read).collect())
    }
}
