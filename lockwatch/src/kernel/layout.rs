//! Where things lie in the running kernel's structures. All of it comes from BTF.

use lockwatch_ebpf::{
    Member,
    survey::{OpenFileLayout, STACK_MAX, TaskLayout},
};

use super::{
    arch::{ENTRY_FRAME_LEN, PT_REGS_LEN},
    block::BlockLayout,
    btf::{Bit, Btf, BtfError},
    cgroup::CgroupLayout,
    fault::{FAULT_FRAMES, FaultRules, OLD_FAULT_FRAMES},
    fuse::FuseLayout,
    locks::LockLayouts,
    scheduler::{self, SchedulerLayout},
    wait_queues::WaitLayout,
};

/// Every offset the survey uses.
#[derive(Clone, Debug)]
pub struct Layout {
    /// `struct task_struct`, as the kernel-side reader needs it.
    pub task: TaskLayout,
    /// The sleeping locks and their queues.
    pub locks: LockLayouts,
    /// `struct mm_struct`.
    pub mm: MmLayout,
    /// `struct anon_vma`.
    pub anon_vma: Option<AnonVmaLayout>,
    /// `struct vm_area_struct` and `struct vm_fault`.
    pub fault: FaultLayout,
    /// `struct inode` and `struct address_space`.
    pub inode: InodeLayout,
    /// `struct dentry`.
    pub dentry: DentryLayout,
    /// `struct super_block`.
    pub super_block: SuperBlockLayout,
    /// `struct mount`.
    pub mount: MountLayout,
    /// `struct file`.
    pub file: FileLayout,
    /// `struct pipe_inode_info`.
    pub pipe: PipeLayout,
    /// Block devices.
    pub block: Option<BlockLayout>,
    /// Control groups.
    pub cgroup: Option<CgroupLayout>,
    /// `task_struct.thread_info.flags`; absent up to 4.8, where it lies on the stack.
    pub task_flags: Member,
    /// `task_struct.prio`
    pub task_prio: Member,
    /// Open files, as the kernel-side reader needs them.
    pub open_file: OpenFileLayout,
    /// FUSE; `None` where the types of its module have not been read or are not known.
    pub fuse: Option<FuseLayout>,
    /// When a task went to sleep; `None` where that is kept in another way.
    pub scheduler: Option<SchedulerLayout>,
    /// `task_struct.in_iowait`
    pub io_wait: Option<Bit>,
    /// Wait queues; `None` where they are made in another way.
    pub waits: Option<WaitLayout>,
    /// Readers clear their own owner entry when they release
    /// (`DETECT_HUNG_TASK_BLOCKER` for rwsems, 6.17+).
    pub readers_clear_owner: bool,
}

/// `struct mm_struct`.
#[derive(Clone, Copy, Debug)]
pub struct MmLayout {
    /// `mmap_lock` (5.8+), else `mmap_sem`
    pub mmap_lock: u64,
    /// `owner` (`MEMCG`)
    pub owner: Option<u64>,
    /// `start_stack`: where the program's stack begins, another place at each exec.
    pub start_stack: Option<u64>,
}

/// `struct anon_vma`.
#[derive(Clone, Copy, Debug)]
pub struct AnonVmaLayout {
    /// `root`
    pub root: u64,
    /// `rwsem`; 3.9+.
    pub rwsem: u64,
}

/// What a page fault keeps on the stack.
#[derive(Clone, Copy, Debug)]
pub struct FaultLayout {
    /// Functions in whose frames a `vm_fault` lies.
    pub frames: &'static [&'static str],
    /// `vm_fault.vma`. Absent up to 4.9: the VMA is then told by the page it has at
    /// `fault_pgoff`.
    pub fault_vma: Option<usize>,
    /// `vm_fault.address` (4.10+), else `virtual_address`
    pub fault_address: usize,
    /// `vm_fault.pgoff`
    pub fault_pgoff: usize,
    /// `vm_fault.flags`
    pub fault_flags: usize,
    /// Bytes of a `vm_fault` up to its flags, address and pgoff.
    pub fault_size: usize,
    /// What its flags mean.
    pub rules: FaultRules,
    /// `vm_area_struct.vm_start`
    pub vma_start: usize,
    /// `vm_area_struct.vm_end`
    pub vma_end: usize,
    /// `vm_area_struct.vm_mm`
    pub vma_mm: usize,
    /// `vm_area_struct.vm_pgoff`
    pub vma_pgoff: usize,
    /// Bytes to read of a `vm_area_struct`.
    pub vma_size: usize,
}

/// `struct inode` and its `address_space`.
#[derive(Clone, Copy, Debug)]
pub struct InodeLayout {
    /// `i_rwsem`; 4.7+, before that a mutex was there.
    pub i_rwsem: Option<u64>,
    /// `i_sb`
    pub sb: usize,
    /// `i_mode`
    pub mode: usize,
    /// `i_mapping`
    pub mapping: usize,
    /// `i_ino`
    pub ino: usize,
    /// `i_generation`: another number for each file that has had this `i_ino`.
    pub generation: Option<u64>,
    /// `i_dentry.first`
    pub dentries: usize,
    /// `i_data`
    pub data: u64,
    /// `i_data.invalidate_lock`, from the start of the inode; 5.15+.
    pub invalidate_lock: Option<u64>,
    /// `i_data.host`, from the start of the inode.
    pub host: Option<u64>,
    /// `i_data.i_mmap_rwsem`, from the start of the inode; 3.19+.
    pub mmap_rwsem: Option<u64>,
    /// Bytes of an inode.
    pub size: usize,
}

/// `struct dentry`.
#[derive(Clone, Copy, Debug)]
pub struct DentryLayout {
    /// `d_parent`
    pub parent: usize,
    /// `d_name.name`
    pub name: usize,
    /// `d_inode`
    pub inode: usize,
    /// `d_sb`
    pub sb: u64,
    /// `d_u.d_alias`, the node on the inode's list.
    pub alias: u64,
    /// Bytes of a dentry.
    pub size: usize,
}

/// `struct super_block`.
#[derive(Clone, Copy, Debug)]
pub struct SuperBlockLayout {
    /// `s_umount`
    pub s_umount: u64,
    /// `s_type`
    pub fs_type: usize,
    /// `file_system_type.name`
    pub fs_name: u64,
    /// `s_dev`
    pub number: usize,
    /// `s_fs_info`
    pub private: usize,
    /// `s_subtype`: what follows the dot in `fuse.sshfs`.
    pub subtype: usize,
    /// `s_id`
    pub id: usize,
    /// Bytes of `s_id`.
    pub id_len: usize,
    /// `s_mounts`: a list head up to 6.17, a plain pointer to the first mount later.
    pub mounts: usize,
    /// Whether `s_mounts` is a list head.
    pub mounts_is_list: bool,
    /// The locks by which it is frozen; 4.4+, before that they were counters.
    pub writers: Option<WritersLayout>,
    /// `s_root`
    pub root: Option<u64>,
    /// Bytes of a super block.
    pub size: usize,
}

/// `super_block.s_writers`.
#[derive(Clone, Copy, Debug)]
pub struct WritersLayout {
    /// `s_writers.frozen`
    pub frozen: usize,
    /// `s_writers.rw_sem`, one for each level of a freeze.
    pub locks: u64,
    /// Bytes of one of them.
    pub one: u64,
    /// Bytes of all.
    pub all: u64,
}

/// `struct file`.
#[derive(Clone, Copy, Debug)]
pub struct FileLayout {
    /// `f_pos_lock`
    pub pos_lock: u64,
    /// `f_inode`
    pub inode: u64,
    /// `f_mapping`
    pub mapping: Option<u64>,
}

/// `struct pipe_inode_info`.
#[derive(Clone, Copy, Debug)]
pub struct PipeLayout {
    /// `mutex`
    pub mutex: u64,
    /// `ring_size` (5.5+), else `buffers`
    pub ring_size: u64,
}

/// `struct mount`, and the way from a task to its mount namespace.
#[derive(Clone, Copy, Debug)]
pub struct MountLayout {
    /// `vfsmount.mnt_root`
    pub vfs_root: usize,
    /// `vfsmount.mnt_sb`
    pub vfs_sb: usize,
    /// `mnt_parent`
    pub parent: usize,
    /// `mnt_mountpoint`
    pub mountpoint: usize,
    /// `mnt.mnt_root`
    pub root: usize,
    /// `mnt_ns`
    pub namespace: usize,
    /// `mnt_devname`: what was mounted.
    pub source: Option<u64>,
    /// `task_struct.nsproxy`
    pub task_nsproxy: u64,
    /// `nsproxy.mnt_ns`
    pub nsproxy_namespace: u64,
    /// `mnt_instance`, or `mnt_next_for_sb` where the list is a plain one.
    pub instance: u64,
    /// Bytes to read of a mount.
    pub size: usize,
}

impl Layout {
    /// Reads every offset.
    ///
    /// # Errors
    /// When the kernel lacks a member that the survey cannot do without.
    pub fn from_btf(btf: &Btf) -> Result<Self, BtfError> {
        Ok(Self {
            task: task_layout(btf)?,
            locks: LockLayouts::from_btf(btf)?,
            mm: MmLayout {
                mmap_lock: at64(btf, "mm_struct.mmap_lock")
                    .or_else(|_| at64(btf, "mm_struct.mmap_sem"))?,
                owner: at64(btf, "mm_struct.owner").ok(),
                start_stack: at64(btf, "mm_struct.start_stack").ok(),
            },
            anon_vma: btf
                .member("anon_vma.root")
                .zip(btf.member("anon_vma.rwsem"))
                .map(|(root, rwsem)| AnonVmaLayout {
                    root: root.offset.into(),
                    rwsem: rwsem.offset.into(),
                }),
            fault: fault_layout(btf)?,
            inode: inode_layout(btf)?,
            dentry: DentryLayout {
                parent: at(btf, "dentry.d_parent")?,
                name: at(btf, "dentry.d_name.name")?,
                inode: at(btf, "dentry.d_inode")?,
                sb: at64(btf, "dentry.d_sb")?,
                alias: at64(btf, "dentry.d_u.d_alias").or_else(|_| at64(btf, "dentry.d_alias"))?,
                size: size(btf, "dentry")?,
            },
            super_block: super_block_layout(btf)?,
            mount: mount_layout(btf)?,
            file: FileLayout {
                pos_lock: at64(btf, "file.f_pos_lock")?,
                inode: at64(btf, "file.f_inode")?,
                mapping: at64(btf, "file.f_mapping").ok(),
            },
            pipe: PipeLayout {
                mutex: at64(btf, "pipe_inode_info.mutex")?,
                ring_size: at64(btf, "pipe_inode_info.ring_size")
                    .or_else(|_| at64(btf, "pipe_inode_info.buffers"))?,
            },
            block: BlockLayout::from_btf(btf),
            cgroup: CgroupLayout::from_btf(btf),
            task_flags: btf
                .member("task_struct.thread_info.flags")
                .unwrap_or(Member::ABSENT),
            task_prio: btf.member("task_struct.prio").unwrap_or(Member::ABSENT),
            open_file: OpenFileLayout {
                task_files: btf.require("task_struct.files")?,
                operations: btf.require("file.f_op")?,
                private: btf.require("file.private_data")?,
                // `aio_read` before 3.16.
                read: btf
                    .require("file_operations.read_iter")
                    .or_else(|_| btf.require("file_operations.aio_read"))?,
            },
            fuse: FuseLayout::from_btf(btf),
            scheduler: SchedulerLayout::from_btf(btf),
            io_wait: scheduler::io_wait(btf),
            waits: WaitLayout::from_btf(btf),
            readers_clear_owner: !cfg!(feature = "mutation-no-reader-owner")
                && btf.member("task_struct.blocker").is_some()
                && btf.has_function("rwsem_owner"),
        })
    }
}

fn at(btf: &Btf, path: &str) -> Result<usize, BtfError> {
    Ok(btf.require(path)?.offset as usize)
}

fn at64(btf: &Btf, path: &str) -> Result<u64, BtfError> {
    Ok(btf.require(path)?.offset.into())
}

fn size(btf: &Btf, name: &str) -> Result<usize, BtfError> {
    btf.size_of(name)
        .and_then(|size| usize::try_from(size).ok())
        .ok_or_else(|| BtfError::NoMember(name.to_owned()))
}

fn task_layout(btf: &Btf) -> Result<TaskLayout, BtfError> {
    let required = |name: &str| btf.require(&format!("task_struct.{name}"));
    let optional = |name: &str| {
        btf.member(&format!("task_struct.{name}"))
            .unwrap_or(Member::ABSENT)
    };
    // `union thread_union { …; unsigned long stack[THREAD_SIZE / sizeof(long)]; }`
    let thread_size = btf
        .member("thread_union.stack")
        .map_or(STACK_MAX as u32, |member| member.size);
    if thread_size as usize > STACK_MAX || !thread_size.is_power_of_two() {
        return Err(BtfError::NoMember(format!(
            "kernel stack of at most {STACK_MAX} bytes"
        )));
    }
    Ok(TaskLayout {
        pid: required("pid")?,
        tgid: required("tgid")?,
        comm: required("comm")?,
        start_time: required("start_boottime").or_else(|_| required("real_start_time"))?,
        state: required("__state").or_else(|_| required("state"))?,
        exit_state: required("exit_state")?,
        flags: required("flags")?,
        on_cpu: required("on_cpu")?,
        on_rq: required("on_rq")?,
        // Up to 4.8 it lies in the thread_info on the stack.
        cpu: required("thread_info.cpu").unwrap_or_else(|_| optional("cpu")),
        nvcsw: required("nvcsw")?,
        nivcsw: required("nivcsw")?,
        last_arrival: optional("sched_info.last_arrival"),
        mm: required("mm")?,
        stack: required("stack")?,
        sp: required("thread.sp")?,
        blocker: optional("blocker"),
        pi_blocked_on: optional("pi_blocked_on"),
        thread_size,
        frames_size: thread_size.saturating_sub((PT_REGS_LEN + ENTRY_FRAME_LEN) as u32),
    })
}

fn fault_layout(btf: &Btf) -> Result<FaultLayout, BtfError> {
    let vma = btf.member("vm_fault.vma");
    let flags = btf.require("vm_fault.flags")?;
    let address = btf
        .require("vm_fault.address")
        .or_else(|_| btf.require("vm_fault.virtual_address"))?;
    let pgoff = btf.require("vm_fault.pgoff")?;
    let vma_mm = btf.require("vm_area_struct.vm_mm")?;
    let vma_end = btf.require("vm_area_struct.vm_end")?;
    let vma_pgoff = btf.require("vm_area_struct.vm_pgoff")?;
    let ends = |members: &[Member]| members.iter().map(|m| m.offset + m.size).max().unwrap_or(0);
    Ok(FaultLayout {
        frames: if vma.is_some() {
            FAULT_FRAMES
        } else {
            OLD_FAULT_FRAMES
        },
        fault_vma: vma.map(|vma| vma.offset as usize),
        fault_address: address.offset as usize,
        fault_pgoff: pgoff.offset as usize,
        fault_flags: flags.offset as usize,
        fault_size: ends(&[flags, address, pgoff]) as usize,
        rules: FaultRules {
            vma_lock_flag: btf
                .enumerator("fault_flag", "FAULT_FLAG_VMA_LOCK")
                .unwrap_or(0),
            // 5.1 began to drop the lock; from 4.10 on nothing in the types tells.
            keeps_for_io: vma.is_none(),
            has_nonlinear: btf.member("vm_area_struct.shared.nonlinear").is_some(),
        },
        vma_start: at(btf, "vm_area_struct.vm_start")?,
        vma_end: vma_end.offset as usize,
        vma_mm: vma_mm.offset as usize,
        vma_pgoff: vma_pgoff.offset as usize,
        vma_size: ends(&[vma_mm, vma_end, vma_pgoff]) as usize,
    })
}

fn inode_layout(btf: &Btf) -> Result<InodeLayout, BtfError> {
    let data = at64(btf, "inode.i_data")?;
    Ok(InodeLayout {
        i_rwsem: at64(btf, "inode.i_rwsem").ok(),
        sb: at(btf, "inode.i_sb")?,
        mode: at(btf, "inode.i_mode")?,
        mapping: at(btf, "inode.i_mapping")?,
        ino: at(btf, "inode.i_ino")?,
        generation: at64(btf, "inode.i_generation").ok(),
        dentries: at(btf, "inode.i_dentry.first")?,
        data,
        invalidate_lock: btf
            .member("address_space.invalidate_lock")
            .map(|member| data + u64::from(member.offset)),
        host: btf
            .member("address_space.host")
            .map(|member| data + u64::from(member.offset)),
        mmap_rwsem: btf
            .member("address_space.i_mmap_rwsem")
            .map(|member| data + u64::from(member.offset)),
        size: size(btf, "inode")?,
    })
}

fn super_block_layout(btf: &Btf) -> Result<SuperBlockLayout, BtfError> {
    let id = btf.require("super_block.s_id")?;
    let mounts = btf.require("super_block.s_mounts")?;
    let writers = match btf.member("super_block.s_writers.rw_sem") {
        Some(locks) => Some(WritersLayout {
            frozen: at(btf, "super_block.s_writers.frozen")?,
            locks: locks.offset.into(),
            one: size(btf, "percpu_rw_semaphore")? as u64,
            all: locks.size.into(),
        }),
        None => None,
    };
    Ok(SuperBlockLayout {
        s_umount: at64(btf, "super_block.s_umount")?,
        fs_type: at(btf, "super_block.s_type")?,
        fs_name: at64(btf, "file_system_type.name")?,
        number: at(btf, "super_block.s_dev")?,
        private: at(btf, "super_block.s_fs_info")?,
        subtype: at(btf, "super_block.s_subtype")?,
        id: id.offset as usize,
        id_len: id.size as usize,
        mounts: mounts.offset as usize,
        mounts_is_list: mounts.size == 16,
        writers,
        root: at64(btf, "super_block.s_root").ok(),
        size: size(btf, "super_block")?,
    })
}

fn mount_layout(btf: &Btf) -> Result<MountLayout, BtfError> {
    Ok(MountLayout {
        vfs_root: at(btf, "vfsmount.mnt_root")?,
        vfs_sb: at(btf, "vfsmount.mnt_sb")?,
        parent: at(btf, "mount.mnt_parent")?,
        mountpoint: at(btf, "mount.mnt_mountpoint")?,
        root: at(btf, "mount.mnt.mnt_root")?,
        namespace: at(btf, "mount.mnt_ns")?,
        source: at64(btf, "mount.mnt_devname").ok(),
        task_nsproxy: at64(btf, "task_struct.nsproxy")?,
        nsproxy_namespace: at64(btf, "nsproxy.mnt_ns")?,
        instance: at64(btf, "mount.mnt_instance")
            .or_else(|_| at64(btf, "mount.mnt_next_for_sb"))?,
        size: size(btf, "mount")?,
    })
}
