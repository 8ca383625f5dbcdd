//! The incident that lockwatch was made for, in the memory of a kernel of its time: 1,470
//! tasks have the mmap_sem of filebeat[4424] on their stack, 1,469 of them wait for it, and
//! the one that is left over has it for read in a page fault that waits for block I/O.
//!
//! No kernel of that time can be had here. The form of its locks, queue entries, `vm_fault`
//! and fault flags is that of 3.10 (lib/rwsem.c, include/linux/mm.h); where members lie in
//! large structures is made up, and read from type information as on any kernel.

use insta::assert_snapshot;
use lockwatch_ebpf::survey::TaskRecord;
use zerocopy::FromZeros;

use crate::{
    detect::{Detector as _, Detectors, Finding, HungTask, Scene, Subject, Thresholds},
    graph::chain::chains,
    kernel::{btf, layout::Layout, symbols::Symbols},
    lock::{Confidence, EvidenceKind, Lock, LockAddr, LockMode, LockState},
    report::{
        Host, Report,
        text::{Style, write_report},
    },
    sleeper::Awaited,
    survey::{
        Survey,
        image::{Image, THREAD_SIZE, as_words},
        look::Look,
        surveyor::Kernel,
    },
    task::{Nanos, StuckClass, Tid},
};

/// As RHEL 7 has them.
const TYPES: &str = "
    list_head 16: next@0=8 prev@8=8
    optimistic_spin_queue 4: tail@0=4
    rw_semaphore 40: count@0=8 wait_lock@8=4 osq@12=optimistic_spin_queue wait_list@16=list_head owner@32=8
    rwsem_waiter 32: list@0=list_head task@16=8 type@24=4
    mutex 40: count@0=4 wait_lock@4=4 wait_list@8=list_head owner@24=8 osq@32=8
    mutex_waiter 24: list@0=list_head task@16=8
    semaphore 24: lock@0=4 count@4=4 wait_list@8=list_head
    semaphore_waiter 32: list@0=list_head task@16=8 up@24=1
    sched_info 32: pcount@0=8 run_delay@8=8 last_arrival@16=8 last_queued@24=8
    timespec 16: tv_sec@0=8 tv_nsec@8=8
    thread_struct 192: sp0@24=8 sp@32=8
    thread_union 16384: stack@0=16384
    sched_entity 256: load@0=16 exec_start@48=8 sum_exec_runtime@56=8 cfs_rq@200=8
    cfs_rq 512: load@0=16 rq@256=8
    rq 2432: lock@0=4 clock@2200=8 clock_task@2208=8 cpu@2300=4
    task_struct 4096: state@0=8 stack@8=8 flags@20=4 on_cpu@40=4 on_rq@88=4 se@104=sched_entity sched_info@1056=sched_info mm@1104=8 exit_state@1136=4 pid@1188=4 tgid@1192=4 nvcsw@1400=8 nivcsw@1408=8 start_time@1416=timespec real_start_time@1432=timespec comm@1544=16 thread@1600=thread_struct nsproxy@1816=8 files@1808=8
    mm_struct 1600: mmap@0=8 mmap_sem@120=rw_semaphore owner@904=8
    nonlinear 40: nonlinear@0=list_head
    vm_area_struct 216: vm_start@0=8 vm_end@8=8 vm_mm@64=8 shared@88=nonlinear vm_pgoff@152=8
    vm_fault 40: flags@0=4 pgoff@8=8 virtual_address@16=8 page@24=8
    hlist_head 8: first@0=8
    address_space 168: host@0=8
    inode 592: i_mode@0=2 i_sb@40=8 i_mapping@48=8 i_ino@64=8 i_mutex@168=mutex i_dentry@296=hlist_head i_data@344=address_space
    qstr 16: hash_len@0=8 name@8=8
    dentry 192: d_parent@24=8 d_name@32=qstr d_inode@48=8 d_sb@104=8 d_alias@176=16
    file_system_type 88: name@0=8
    super_block 1216: s_dev@16=4 s_type@40=8 s_umount@104=rw_semaphore s_mounts@224=list_head s_bdev@248=8 s_id@720=32 s_fs_info@768=8 s_subtype@832=8
    vfsmount 24: mnt_root@0=8 mnt_sb@8=8
    mount 320: mnt_parent@16=8 mnt_mountpoint@24=8 mnt@32=vfsmount mnt_instance@96=list_head mnt_ns@208=8
    nsproxy 56: mnt_ns@24=8
    file 256: f_inode@32=8 f_op@40=8 f_pos_lock@64=mutex private_data@168=8
    file_operations 216: aio_read@32=8
    pipe_inode_info 136: mutex@0=mutex buffers@72=4
    kobject 64: name@0=8 entry@8=list_head parent@24=8
    device 720: parent@0=8 p@8=8 kobj@16=kobject
    hd_struct 960: start_sect@0=8 nr_sects@8=8 __dev@32=device
    gendisk 1280: major@0=4 disk_name@16=32 part0@72=hd_struct queue@1048=8
    request_queue 2048: queue_head@0=list_head kobj@824=kobject
    block_device 232: bd_dev@0=4 bd_disk@152=8
    bio 136: bi_sector@0=8 bi_next@8=8 bi_bdev@16=8
    request 376: queuelist@0=list_head q@56=8
    buffer_head 104: b_state@0=8 b_bdev@48=8
    page 64: flags@0=8 mapping@8=8
    blk_mq_hw_ctx 576: queue@192=8
    blk_mq_alloc_data 40: q@0=8 flags@8=4 ctx@16=8 hctx@24=8
";

/// 3.10 as it was published: an rwsem without an owner.
fn plain_types() -> String {
    let rhel = "osq@12=optimistic_spin_queue wait_list@16=list_head owner@32=8";
    let plain = TYPES.replace(rhel, "wait_list@16=list_head");
    assert_ne!(plain, TYPES);
    plain.replace("rw_semaphore 40", "rw_semaphore 32")
}

const LOCK_IN_MM: u64 = 120;
const MM: u64 = 0xffff_8803_5000_8000;
const LOCK: u64 = MM + LOCK_IN_MM;
const LIST: u64 = LOCK + 16;
/// A mapped file of that process, from page 0x40 on.
const VMA: u64 = 0xffff_8803_6000_1000;
const VMA_START: u64 = 0x7f00_0000_0000;
const FIRST_PAGE: u64 = 0x40;
const FAULT_AT: u64 = VMA_START + 0x3000;

/// What the thread wants a request of, and the device that is mapped to it.
const DISKS: [(&[u8; 8], u64); 2] = [
    (b"nvme0n1\0", 0xffff_8805_1000_0000),
    (b"dm-0\0\0\0\0", 0xffff_8805_2000_0000),
];
const HCTX: u64 = 0xffff_8805_3000_0000;

/// The queue of a disk.
const fn queue_of(disk: u64) -> u64 {
    disk + 0x10_0000
}

/// What the scheduler keeps: the queue of all tasks, and the run queue that it is a part of.
const GROUP: u64 = 0xffff_8806_1000_0000;
const RUN_QUEUE: u64 = 0xffff_8806_2000_0000;
/// What the clock of tasks has left out, and what a task ran before it slept.
const LEFT_OUT: u64 = 77 * SECOND;
const RAN: u64 = SECOND / 1_000;

/// Any other address of the kernel's.
const ELSEWHERE: u64 = 0xffff_8807_1234_5000;
const SECOND: u64 = 1_000_000_000;
/// 41 days after boot.
const NOW: u64 = 41 * 86_400 * SECOND;

/// `FAULT_FLAG_ALLOW_RETRY | KILLABLE | USER`, as 3.10 numbers them.
const FIRST_ATTEMPT: u64 = 0x8 | 0x20 | 0x80;

/// Where in a stack its innermost word lies.
const SP: u64 = 0x3800;
/// Which word of a waiter's stack its queue entry begins at.
const ENTRY_AT: usize = 6;

/// Functions of the stacks below; those in front of the first `.` are in `.sched.text`,
/// where the unwinder does not show them.
const FUNCTIONS: [&str; 39] = [
    "__schedule",
    "schedule",
    "io_schedule",
    "rwsem_down_read_failed",
    "rwsem_down_write_failed",
    "down_read",
    "down_write",
    ".",
    "call_rwsem_down_read_failed",
    "call_rwsem_down_write_failed",
    "proc_pid_cmdline_read",
    "vfs_read",
    "sys_read",
    "vm_mmap_pgoff",
    "sys_mmap_pgoff",
    "system_call_fastpath",
    "bt_get",
    "blk_mq_get_tag",
    "__blk_mq_alloc_request",
    "blk_mq_map_request",
    "blk_mq_make_request",
    "generic_make_request",
    "submit_bio",
    "mpage_readpages",
    "ext4_readpages",
    "__do_page_cache_readahead",
    "ra_submit",
    "filemap_fault",
    "ext4_filemap_fault",
    "__do_fault",
    "do_read_fault",
    "handle_pte_fault",
    "handle_mm_fault",
    "__do_page_fault",
    "do_page_fault",
    "page_fault",
    "__lock_page_or_retry",
    "futex_wait_queue_me",
    "sys_futex",
];

fn function(name: &str) -> u64 {
    let at = FUNCTIONS.iter().position(|&known| known == name);
    0xffff_ffff_8110_0000 + 0x400 * at.unwrap() as u64
}

fn symbols() -> Symbols {
    let line = |name: &&str| format!("{:016x} T {name}\n", function(name));
    let named = FUNCTIONS.iter().filter(|&&name| name != ".");
    Symbols::parse(named.map(line).collect()).unwrap()
}

/// What a stack is made of, from the innermost word outwards.
enum Cell {
    /// A return into a function. The words behind it, up to the next, are its frame.
    Into(&'static str),
    Word(u64),
}
use Cell::{Into, Word};

fn returns(names: &[&'static str]) -> Vec<Cell> {
    names
        .iter()
        .flat_map(|&name| [Into(name), Word(ELSEWHERE)])
        .collect()
}

/// A kernel while it is built.
struct Made {
    image: Image,
    tasks: Vec<(TaskRecord, Vec<u64>)>,
}

impl Made {
    fn new() -> Self {
        let mut image = Image::default();
        image.set_all(MM, &[0; 200]);
        image.set_all(VMA, &[0; 27]);
        image.set_all(VMA, &[VMA_START, VMA_START + 0x10_0000]);
        image.set(VMA + 64, MM);
        image.set(VMA + 152, FIRST_PAGE);
        for (name, disk) in DISKS {
            // What it is called, and what its queue and it know of each other.
            image.set_all(disk + 16, &[u64::from_le_bytes(*name), 0, 0, 0]);
            image.set(disk + 1048, queue_of(disk));
            image.set(queue_of(disk) + 824 + 24, disk + 72 + 32 + 16);
        }
        image.set(HCTX + 192, queue_of(DISKS[0].1));
        image.set(GROUP + 256, RUN_QUEUE);
        image.set_all(RUN_QUEUE + 2_200, &[NOW, NOW - LEFT_OUT]);
        // Not aligned to a word of the image: its CPU is 0.
        image.set(RUN_QUEUE + 2_300, 0);
        Self {
            image,
            tasks: Vec::new(),
        }
    }

    /// A task that has slept for so long.
    fn task(
        &mut self,
        (tid, tgid, comm): (u32, u32, &str),
        state: u32,
        slept: u64,
        stack: &[Cell],
    ) {
        let base = stack_of(tid);
        self.image.set(task_of(tid) + 8, base);
        let exec_start = NOW - slept - LEFT_OUT + RAN;
        self.image.set(task_of(tid) + 104 + 48, exec_start);
        self.image.set(task_of(tid) + 104 + 200, GROUP);
        let mut record = TaskRecord::new_zeroed();
        record.task = task_of(tid);
        record.start_time_ns = SECOND + u64::from(tid);
        record.nvcsw = 17;
        record.last_arrival_ns = NOW - slept;
        record.mm = if tgid == 4424 {
            MM
        } else {
            ELSEWHERE + u64::from(tgid) * 0x1000
        };
        record.stack_base = base;
        record.sp = base + SP;
        record.taken_at_ns = NOW;
        // 1,000 ticks a second.
        record.jiffies = (1 << 32) - 300_000 + NOW / 1_000_000;
        (record.tid, record.tgid, record.state) = (tid, tgid, state);
        record.stack_offset = SP as u32;
        record.stack_len = THREAD_SIZE - SP as u32;
        record.comm[..comm.len()].copy_from_slice(comm.as_bytes());
        let mut words = Vec::new();
        let mut frames = Vec::new();
        for cell in stack {
            let word = match *cell {
                Into(name) => function(name) + 0x54,
                Word(word) => word,
            };
            let is_shown = |name| function(name) > function(".");
            if matches!(*cell, Into(name) if is_shown(name)) {
                frames.push(word);
            }
            words.push(word);
        }
        words.resize(record.stack_len as usize / 8, 0);
        self.image.set_all(record.sp, &words);
        record.frame_count = frames.len() as u32;
        self.tasks.push((record, frames));
    }

    fn look(&self) -> Look {
        let mut bytes = Vec::new();
        for (record, frames) in &self.tasks {
            bytes.extend(as_words(record));
            bytes.extend(frames);
            bytes.extend(self.image.words(record.sp, record.stack_len as usize / 8));
        }
        Look::decode(&bytes, THREAD_SIZE)
    }
}

const fn task_of(tid: u32) -> u64 {
    0xffff_8804_0000_0000 + tid as u64 * 0x2000
}

const fn stack_of(tid: u32) -> u64 {
    0xffff_8810_0000_0000 + tid as u64 * 0x4000
}

const fn entry_of(tid: u32) -> u64 {
    stack_of(tid) + SP + 8 * ENTRY_AT as u64
}

/// A task in the slow path, with the links of its entry.
fn waiter(tid: u32, mode: LockMode, (next, prev): (u64, u64)) -> Vec<Cell> {
    let (slow_path, call, down, callers, kind): (_, _, _, &[_], _) = match mode {
        LockMode::Read => (
            "rwsem_down_read_failed",
            "call_rwsem_down_read_failed",
            "down_read",
            &["proc_pid_cmdline_read", "vfs_read", "sys_read"],
            1,
        ),
        LockMode::Write => (
            "rwsem_down_write_failed",
            "call_rwsem_down_write_failed",
            "down_write",
            &["vm_mmap_pgoff", "sys_mmap_pgoff"],
            0,
        ),
    };
    let mut stack = returns(&["__schedule", "schedule"]);
    stack.extend([Into(slow_path), Word(0)]);
    assert_eq!(stack.len(), ENTRY_AT);
    stack.extend([next, prev, task_of(tid), kind, LOCK].map(Word));
    stack.extend([Into(call), Word(LOCK), Word(ELSEWHERE)]);
    stack.extend([Into(down), Word(LOCK), Word(MM)]);
    stack.extend(returns(callers));
    stack.extend(returns(&["system_call_fastpath"]));
    stack
}

/// A thread in a page fault of the mapped file, asleep in `inner`; `keeps` is what
/// `__do_page_fault` has of the lock.
fn fault(inner: Vec<Cell>, flags: u64, keeps: u64) -> Vec<Cell> {
    let mut stack = returns(&["__schedule", "schedule", "io_schedule"]);
    stack.extend(inner);
    // What these save are the registers of those who called them.
    stack.extend([Into("filemap_fault"), Word(ELSEWHERE), Word(VMA)]);
    stack.extend(returns(&["ext4_filemap_fault"]));
    let page = FIRST_PAGE + (FAULT_AT - VMA_START) / 4096;
    stack.extend([Into("__do_fault"), Word(7), Word(flags), Word(page)]);
    stack.extend([Word(FAULT_AT), Word(0), Word(ELSEWHERE)]);
    stack.extend(returns(&["do_read_fault", "handle_pte_fault"]));
    stack.extend([Into("handle_mm_fault"), Word(MM), Word(VMA)]);
    stack.extend([Into("__do_page_fault"), Word(keeps), Word(MM)]);
    stack.extend(returns(&["do_page_fault", "page_fault"]));
    stack
}

/// Readahead that waits for a request, of the queue that belongs to `hctx`; the bio came
/// through another device.
fn readahead(hctx: u64) -> Vec<Cell> {
    let [(_, disk), (_, mapped)] = DISKS;
    let mut stack = returns(&["bt_get", "blk_mq_get_tag", "__blk_mq_alloc_request"]);
    stack.push(Into("blk_mq_map_request"));
    stack.extend([queue_of(disk), 0, ELSEWHERE, hctx].map(Word));
    stack.extend(returns(&["blk_mq_make_request"]));
    stack.extend([Into("generic_make_request"), Word(queue_of(mapped))]);
    stack.extend(returns(&[
        "submit_bio",
        "mpage_readpages",
        "ext4_readpages",
        "__do_page_cache_readahead",
        "ra_submit",
    ]));
    stack
}

/// The incident, and beside it threads of the same process that hold nothing.
fn incident() -> Made {
    let mut made = Made::new();
    let rare = [("top", 31), ("ps", 12), ("pgrep", 9), ("node_exporter", 2)];
    let readers = rare
        .iter()
        .flat_map(|&(comm, count)| std::iter::repeat_n(comm, count))
        .chain(std::iter::repeat("collectd"))
        .take(1_468);
    let mut waiters = vec![(4_431, 4_424, "filebeat", LockMode::Write)];
    waiters.extend(
        (10_000..)
            .zip(readers)
            .map(|(tid, comm)| (tid, tid, comm, LockMode::Read)),
    );
    let at = |index: usize| waiters.get(index).map_or(LIST, |&(tid, ..)| entry_of(tid));
    for (index, &(tid, tgid, comm, mode)) in waiters.iter().enumerate() {
        let links = (at(index + 1), index.checked_sub(1).map_or(LIST, at));
        let slept = 372 * SECOND - index as u64 * SECOND / 5;
        made.task((tid, tgid, comm), 2, slept, &waiter(tid, mode, links));
    }
    made.image.set(LOCK, -4_294_967_295_i64 as u64);
    made.image.set_all(LIST, &[at(0), at(waiters.len() - 1)]);

    let holder = fault(readahead(HCTX), FIRST_ATTEMPT, LOCK);
    made.task((4_442, 4_424, "filebeat"), 2, 373 * SECOND, &holder);
    // Waits for a page that somebody else reads: it has dropped the lock.
    let dropped = fault(returns(&["__lock_page_or_retry"]), FIRST_ATTEMPT, ELSEWHERE);
    made.task((4_443, 4_424, "filebeat"), 2, 371 * SECOND, &dropped);
    let mut idle = returns(&["__schedule", "schedule", "futex_wait_queue_me"]);
    idle.extend([Word(MM), Into("sys_futex"), Word(MM)]);
    for tid in [4_424, 4_425, 4_426] {
        made.task((tid, 4_424, "filebeat"), 1, 900 * SECOND, &idle);
    }
    made.image.set(MM + 904, task_of(4_424));
    made
}

fn survey(types: &str, made: &Made) -> Survey {
    let layout = Layout::from_btf(&btf::made::btf(types)).unwrap();
    let kernel = Kernel::new(layout, symbols()).unwrap();
    let looks = vec![made.look(), made.look()];
    let mut survey = kernel
        .survey_of(looks, &[], &mut made.image.clone())
        .unwrap();
    survey.taken_at = "2019-06-14T03:12:09.25Z".parse().unwrap();
    survey.duration = Nanos(50_000_000);
    survey
}

fn only_lock(survey: &Survey) -> &Lock {
    let [lock] = survey.locks.as_slice() else {
        panic!("{:?}", survey.locks)
    };
    lock
}

#[test]
fn the_numbers_of_the_incident_come_out() {
    let made = incident();
    let look = made.look();
    let stacks = look
        .tasks
        .iter()
        .filter(|task| look.words(task).contains(&LOCK));
    assert_eq!(stacks.count(), 1_470);
    for types in [TYPES.to_owned(), plain_types()] {
        let survey = survey(&types, &made);
        let lock = only_lock(&survey);
        assert_eq!(lock.name, "mmap_lock of filebeat[4424]");
        assert_eq!(lock.address.0, LOCK);
        assert_eq!(lock.count_text(), "-4294967295");
        assert_eq!(
            (lock.state, lock.reader_count),
            (LockState::ReadHeld, Some(1))
        );
        assert_eq!(lock.waiters.len(), 1_469);
        let writers = lock
            .waiters
            .iter()
            .filter(|waiter| waiter.mode == LockMode::Write);
        assert_eq!(
            writers
                .map(|waiter| waiter.task.key.tid)
                .collect::<Vec<_>>(),
            [Tid(4_431)]
        );
        assert_eq!(
            (lock.waiters[0].task.key.tid, lock.waiters[0].position),
            (Tid(4_431), 1)
        );
        let [holder] = lock.holders.as_slice() else {
            panic!("{:?}", lock.holders)
        };
        assert_eq!(holder.task.to_string(), "filebeat[4442]");
        assert_eq!(
            (holder.mode, holder.confidence),
            (LockMode::Read, Confidence::Certain)
        );
        assert_eq!(holder.evidence[0].kind, EvidenceKind::FaultFlags);
        assert_eq!(holder.stuck.class, StuckClass::BlockIo);
        assert_eq!(holder.stuck.frame.as_deref(), Some("bt_get"));
        let device = holder.stuck.device.as_ref();
        assert_eq!(device.map(|device| &*device.name), Some("nvme0n1"));
    }
}

#[test]
fn all_who_hang_in_the_incident_make_one_finding_for_each_thing() {
    let survey = survey(TYPES, &incident());
    // And the holder, and the thread that waits for a page.
    assert_eq!(survey.sleepers.len(), 1_471);
    let chains = chains(&survey.locks, &survey.daemons);
    let scene = Scene::new(&survey, &chains, Thresholds::of_waits(Nanos(SECOND)));
    let findings = HungTask.check(&scene);
    let on_the_lock: Vec<_> = findings
        .iter()
        .filter(|finding| finding.locks == [LockAddr(LOCK)])
        .collect();
    let [finding] = on_the_lock.as_slice() else {
        panic!("{findings:?}")
    };
    assert_eq!(finding.tasks[0], Tid(4_431));
    // The last ones have not waited for two minutes.
    assert_eq!(finding.tasks.len(), 1_260);
    let awaited = |finding: &Finding| finding.subject.clone();
    let device = Subject::Awaited(Awaited::Device("nvme0n1".to_owned()));
    assert!(
        findings
            .iter()
            .any(|it| awaited(it) == Some(device.clone()))
    );
    assert_eq!(findings.len(), 3);
}

#[test]
fn the_incident_in_one_paragraph() {
    let survey = survey(TYPES, &incident());
    let host = Host {
        hostname: "log3".to_owned(),
        kernel: "3.10.0-957.el7.x86_64".to_owned(),
        arch: "x86_64".to_owned(),
        boot_id: None,
    };
    let report = Report::from_survey(
        &survey,
        &host,
        Thresholds::of_waits(Nanos(SECOND)),
        &Detectors::default(),
    );
    assert_eq!(report.locks[0].count, "-4294967295");
    let mut text = Vec::new();
    let style = Style {
        width: 120,
        color: false,
    };
    write_report(&mut text, &report, style).unwrap();
    assert_snapshot!(String::from_utf8(text).unwrap());
}

/// Who holds the lock is not to be told then, whatever its stack points at.
#[test]
fn a_fault_that_dropped_the_lock_is_not_accused() {
    let mut made = incident();
    let dropped = fault(returns(&["__lock_page_or_retry"]), FIRST_ATTEMPT, LOCK);
    made.tasks.retain(|(record, _)| record.tid != 4_442);
    made.task((4_442, 4_424, "filebeat"), 2, 373 * SECOND, &dropped);
    let survey = survey(TYPES, &made);
    assert_eq!(only_lock(&survey).holders, []);
}

#[test]
fn of_two_devices_none_is_named_unless_a_request_is_wanted_of_one() {
    let mut made = incident();
    let unclear = fault(readahead(ELSEWHERE), FIRST_ATTEMPT, LOCK);
    made.tasks.retain(|(record, _)| record.tid != 4_442);
    made.task((4_442, 4_424, "filebeat"), 2, 373 * SECOND, &unclear);
    let survey = survey(TYPES, &made);
    let holder = &only_lock(&survey).holders[0];
    assert_eq!(holder.task.key.tid, Tid(4_442));
    assert_eq!(holder.stuck.device, None);
}
