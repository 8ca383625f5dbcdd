use std::sync::Arc;

use lockwatch_ebpf::Member;

use super::{sharers::NEAR, *};
use crate::{
    kernel::symbols::Symbols,
    lock::Stacks,
    survey::{
        clock::Clocks,
        image::{self, Image, Sleeper, TAKEN_AT_NS, task_address},
        surveyor::Kernel,
    },
    task::{TaskName, Tid},
};

const CPU: u32 = 3;
const TEXT: u64 = 0xffff_ffff_8100_0000;
/// A BPF program, the last of all symbols.
const BPF: u64 = 0xffff_ffff_c000_0000;
const DATA: u64 = 0xffff_ffff_8300_0000;
const HEAP: u64 = 0xffff_8881_2233_4440;

const NAMES: &[&str] = &[
    "rwsem_down_read_slowpath",
    "do_syscall_64",
    "vfs_read",
    "ext4_find_entry",
    "filemap_read",
    "handle_softirqs",
    "net_rx_action",
    "__napi_poll",
    "process_backlog",
    "run_timer_softirq",
    "__run_timers",
    "call_timer_fn",
    "tcp_write_timer",
    "neigh_timer_handler",
    "asm_sysvec_apic_timer_interrupt",
    "nvme_irq",
    "__handle_irq_event_percpu",
    "common_interrupt",
    "bpf_trace_run1",
    "__traceiter_netif_rx",
    "_raw_spin_lock",
    "queue_work_on",
    "srso_return_thunk",
    "end_of_text",
];

fn symbols() -> Symbols {
    let mut text = String::new();
    for (at, name) in (TEXT..).step_by(0x100).zip(NAMES) {
        text.push_str(&format!("{at:x} t {name}\n"));
    }
    text.push_str(&format!("{DATA:x} D some_lock\n"));
    text.push_str(&format!(
        "{BPF:x} t bpf_prog_6deef7357e7b4530_count\t[bpf]\n"
    ));
    Symbols::parse(text).unwrap()
}

/// A return address into this function; with the same number it is the same place.
fn at(name: &str, number: u64) -> u64 {
    let index = NAMES.iter().position(|known| *known == name).unwrap();
    TEXT + 0x100 * index as u64 + 0x10 + number
}

fn frames(names: &[&str]) -> Vec<u64> {
    names.iter().map(|name| at(name, 0)).collect()
}

fn sample(names: &[&str], count: u32) -> Sample {
    Sample {
        frames: frames(names),
        count,
    }
}

/// Ten tasks in two looks. Task 1 is on the CPU, task 2 on another.
struct Made {
    image: Image,
    looks: Vec<Look>,
}

const TASKS: u64 = 10;

fn made() -> Made {
    made_of(Image::default())
}

fn made_of(mut image: Image) -> Made {
    (1..=TASKS).for_each(|n| image.task(n));
    let looks = [0, 1].map(|_| image.look(TASKS));
    let mut made = Made {
        image,
        looks: looks.into(),
    };
    made.change(2, |task| {
        task.record.on_cpu = 1;
        task.record.cpu = CPU + 1;
    });
    made.change(1, |task| {
        task.record.on_cpu = 1;
        task.record.on_rq = 1;
        task.record.state = 0;
        task.record.cpu = CPU;
        task.record.last_arrival_ns = TAKEN_AT_NS - 450;
    });
    made
}

impl Made {
    /// In both looks.
    fn change(&mut self, n: usize, change: impl Fn(&mut TaskLook)) {
        for look in &mut self.looks {
            change(&mut look.tasks[n - 1]);
        }
    }

    fn ready(&mut self, n: usize) {
        self.change(n, |task| {
            task.record.on_rq = 1;
            task.record.state = 0;
            task.record.cpu = CPU;
        });
    }

    fn name(&self, n: usize) -> TaskName {
        self.looks[0].tasks[n - 1].name.clone()
    }

    /// The suspect that task 1 makes its CPU.
    fn suspect(&self, kind: LockupKind) -> Suspect {
        Suspect {
            cpu: CPU,
            kind,
            since_ns: TAKEN_AT_NS - 500,
            until_ns: TAKEN_AT_NS,
            task: Some(self.name(1)),
            samples: vec![sample(&["ext4_find_entry", "vfs_read"], 10)],
            is_reschedule_known: true,
            unknown: vec!["something".to_owned()],
        }
    }

    fn lockups_by(&self, suspects: &[Suspect]) -> (Vec<Lockup>, Stacks) {
        let symbols = symbols();
        let mut stacks = Stacks::default();
        let layout = TaskLayout {
            cpu: Member { offset: 0, size: 4 },
            ..TaskLayout::default()
        };
        let cpus = Cpus {
            first: self.looks.len().checked_sub(2).map(|at| &self.looks[at]),
            last: self.looks.last().unwrap(),
            layout: &layout,
            own_tgid: 0,
        };
        let mut merger = Merger {
            functions: &mut Functions::new(&symbols),
            clocks: Clocks {
                scheduler_offset_ns: Some(0),
                hz: None,
            },
            stacks: &mut stacks,
            by_addresses: rustc_hash::FxHashMap::default(),
        };
        (lockups(suspects, &cpus, &mut merger), stacks)
    }

    fn soft(&self, samples: &[Sample]) -> Lockup {
        let suspect = Suspect {
            samples: samples.to_vec(),
            ..self.suspect(LockupKind::Soft)
        };
        let (mut lockups, _) = self.lockups_by(&[suspect]);
        lockups.pop().unwrap()
    }

    fn is_locked_up(&self, suspect: &Suspect) -> bool {
        !self.lockups_by(std::slice::from_ref(suspect)).0.is_empty()
    }
}

#[test]
fn a_cpu_that_stays_with_its_task_is_locked_up() {
    let made = made();
    let (lockups, stacks) = made.lockups_by(&[made.suspect(LockupKind::Soft)]);
    let lockup = &lockups[0];
    assert_eq!((lockup.cpu, lockup.kind), (CPU, LockupKind::Soft));
    assert_eq!(lockup.lasted, Nanos(500));
    assert_eq!(lockup.task, Some(made.name(1)));
    assert_eq!(lockup.context, Context::Task);
    assert!(!lockup.is_task_interrupted);
    assert_eq!(lockup.samples, 10);
    assert_eq!(lockup.unknown, ["something"]);
    assert_eq!(lockup.returns, None);
    let frames = stacks.frames(lockup.profile[0].stack);
    assert_eq!(frames, ["ext4_find_entry+0x10", "vfs_read+0x10"]);
}

#[test]
fn a_cpu_that_has_done_anything_else_is_not() {
    type Change = fn(&mut Made, &mut Suspect);
    let changes: [(&str, Change); 7] = [
        ("another task is on it", |_, suspect| {
            suspect.task.as_mut().unwrap().key.tid = Tid(99);
        }),
        ("the same thread id, another task", |_, suspect| {
            suspect.task.as_mut().unwrap().key.start_ns += 1;
        }),
        (
            "its idle task was on it, and now a task is",
            |_, suspect| {
                suspect.task = None;
            },
        ),
        ("none is on it any more", |made, _| {
            made.looks[1].tasks[0].record.on_cpu = 0;
        }),
        ("the task has moved", |made, _| {
            made.looks[1].tasks[0].record.cpu = CPU + 2;
        }),
        ("it was off it in between", |made, _| {
            made.looks[1].tasks[0].record.nivcsw += 1;
        }),
        ("it was off it in the first look", |made, _| {
            made.looks[0].tasks[0].record.on_cpu = 0;
        }),
    ];
    for (what, change) in changes {
        let mut made = made();
        let mut suspect = made.suspect(LockupKind::Soft);
        assert!(made.is_locked_up(&suspect));
        change(&mut made, &mut suspect);
        assert!(!made.is_locked_up(&suspect), "{what}");
    }
}

#[test]
fn an_idle_task_below_softirqs_can_be_locked_up_softly_and_not_hard() {
    let mut made = made();
    made.change(1, |task| task.record.on_cpu = 0);
    let suspect = |kind| Suspect {
        task: None,
        samples: vec![sample(
            &[
                "process_backlog",
                "__napi_poll",
                "net_rx_action",
                "handle_softirqs",
            ],
            5,
        )],
        ..made.suspect(kind)
    };
    let (lockups, _) = made.lockups_by(&[suspect(LockupKind::Soft)]);
    let lockup = &lockups[0];
    assert_eq!(lockup.task, None);
    assert!(!lockup.is_task_interrupted, "there is no task to interrupt");
    assert!(!made.is_locked_up(&suspect(LockupKind::Hard)));
}

#[test]
fn starved_tasks_were_ready_in_both_looks_and_did_not_run() {
    let mut made = made();
    for n in 3..=9 {
        made.ready(n);
    }
    // Task 3 last ran within the lockup, task 4 before.
    made.change(3, |task| task.record.last_arrival_ns = TAKEN_AT_NS - 200);
    made.change(4, |task| task.record.last_arrival_ns = TAKEN_AT_NS - 900);
    made.looks[0].tasks[4].record.state = 2;
    made.looks[1].tasks[5].record.nvcsw += 1;
    made.change(7, |task| task.record.cpu = CPU + 1);
    // Asleep, and still on the queue; on its way elsewhere.
    made.change(8, |task| task.record.state = 1);
    made.change(9, |task| task.record.on_rq = 2);
    let starved = made.soft(&[sample(&["vfs_read"], 1)]).starved;
    let told: Vec<_> = starved
        .iter()
        .map(|it| (it.task.key.tid.0, it.since))
        .collect();
    assert_eq!(told, [(4, Nanos(500)), (3, Nanos(200))]);
}

#[test]
fn without_a_known_reschedule_somebody_must_be_starved() {
    let mut made = made();
    let suspect = Suspect {
        is_reschedule_known: false,
        ..made.suspect(LockupKind::Soft)
    };
    assert!(!made.is_locked_up(&suspect));
    made.ready(4);
    assert!(made.is_locked_up(&suspect));
}

#[test]
fn most_samples_tell_what_runs() {
    let task = ["vfs_read", "do_syscall_64"];
    let below = [
        "handle_softirqs",
        "asm_sysvec_apic_timer_interrupt",
        "filemap_read",
    ];
    let timer = |callback| {
        [
            &[
                callback,
                "call_timer_fn",
                "__run_timers",
                "run_timer_softirq",
            ],
            &below[..],
        ]
        .concat()
    };
    let interrupt = [
        "nvme_irq",
        "__handle_irq_event_percpu",
        "common_interrupt",
        "vfs_read",
    ];
    let of = |samples: &[Sample]| {
        let lockup = made().soft(samples);
        (lockup.context, lockup.is_task_interrupted)
    };
    let timers = |callbacks| Context::Softirq {
        vector: Some("TIMER".to_owned()),
        callback: Some("tcp_write_timer".to_owned()),
        callbacks,
    };
    let write = sample(&timer("tcp_write_timer"), 6);
    let neighbour = sample(&timer("neigh_timer_handler"), 3);
    assert_eq!(of(std::slice::from_ref(&write)), (timers(1), true));
    assert_eq!(of(&[write.clone(), neighbour]), (timers(2), true));
    assert_eq!(of(&[write.clone(), sample(&task, 5)]), (timers(1), true));
    assert_eq!(
        of(&[write.clone(), sample(&task, 7)]),
        (Context::Task, false)
    );
    // No more than half.
    assert_eq!(of(&[write, sample(&task, 6)]), (Context::Unknown, false));
    assert_eq!(of(&[]), (Context::Unknown, false));
    let handler = Some("nvme_irq".to_owned());
    assert_eq!(
        of(&[sample(&interrupt, 1)]),
        (Context::Interrupt { handler }, true)
    );
}

#[test]
fn ksoftirqd_is_what_it_runs() {
    let mut made = made();
    made.change(1, |task| task.name.comm = "ksoftirqd/3".into());
    let lockup = made.soft(&[sample(
        &["process_backlog", "net_rx_action", "handle_softirqs"],
        1,
    )]);
    assert!(matches!(lockup.context, Context::Softirq { .. }));
    assert!(!lockup.is_task_interrupted);
}

#[test]
fn code_without_a_symbol_has_no_name_of_another() {
    let made = made();
    let outer = frames(&["bpf_trace_run1", "__traceiter_netif_rx", "vfs_read"]);
    let of = |place: u64| {
        let suspect = Suspect {
            samples: vec![Sample {
                frames: [&[place], &outer[..]].concat(),
                count: 3,
            }],
            ..made.suspect(LockupKind::Soft)
        };
        let (lockups, stacks) = made.lockups_by(&[suspect]);
        let frames = stacks.frames(lockups[0].profile[0].stack);
        (frames[0].clone(), lockups[0].program.clone().unwrap())
    };
    let program = "a BPF program on the tracepoint netif_rx".to_owned();
    let known = "bpf_prog_6deef7357e7b4530_count+0x20".to_owned();
    assert_eq!(of(BPF + 0x20), (known, program.clone()));
    // In what was loaded behind it.
    assert_eq!(of(BPF + 0x9000), (LOADED_LATER.to_owned(), program.clone()));
    assert_eq!(of(HEAP), (NOT_CODE.to_owned(), program));
}

#[test]
fn a_profile_has_equal_stacks_once_and_the_most_frequent_first() {
    let made = made();
    let mut samples = vec![sample(&["vfs_read"], 2), sample(&["ext4_find_entry"], 3)];
    samples.push(sample(&["vfs_read"], 2));
    samples.extend((0..40).map(|number| Sample {
        frames: vec![at("filemap_read", number)],
        count: 1,
    }));
    let lockup = made.soft(&samples);
    let counts: Vec<u32> = lockup.profile.iter().map(|spin| spin.count).collect();
    assert_eq!(counts[..3], [4, 3, 1]);
    assert_eq!(counts.len(), PROFILE_MAX);
    assert_eq!(lockup.samples, 47);
}

/// Two tasks on CPUs: task 1 has words on its stack, task 2 waits for a spinlock near words.
fn spinning(locked: &[u64], waiting: &[u64]) -> Made {
    let mut image = Image::default();
    let running = |frames| Sleeper {
        state: 0,
        files: 0,
        switches: 0,
        frames,
    };
    image.sleep(1, &[], running(vec![(at("vfs_read", 0), locked.to_vec())]));
    let frames = vec![
        (at("_raw_spin_lock", 0), waiting.to_vec()),
        (at("queue_work_on", 0), vec![]),
    ];
    image.sleep(2, &[], running(frames));
    made_of(image)
}

fn sharers(made: &Made) -> Vec<(u32, u64, bool)> {
    let (lockups, _) = made.lockups_by(&[made.suspect(LockupKind::Hard)]);
    let sharers = lockups[0].sharers.iter();
    sharers
        .map(|it| (it.task.key.tid.0, it.address, it.sharer_waits))
        .collect()
}

#[test]
fn a_cpu_that_has_got_another_task_since_its_last_beat_slept_through_its_timers() {
    let mut made = made();
    let found = |made: &Made| made.lockups_by(&[made.suspect(LockupKind::Hard)]).0.len();
    assert_eq!(found(&made), 1);
    made.change(1, |task| task.record.last_arrival_ns = TAKEN_AT_NS - 300);
    assert_eq!(found(&made), 0);
    // When it came is not known.
    made.change(1, |task| task.record.last_arrival_ns = 0);
    assert_eq!(found(&made), 0);
}

#[test]
fn a_hard_lockup_tells_what_its_task_may_be_in() {
    let made = spinning(
        &[
            at("srso_return_thunk", 0),
            at("ext4_find_entry", 0),
            at("do_syscall_64", 0) - 0x10,
            HEAP,
        ],
        &[],
    );
    let suspect = Suspect {
        // It has come after the last sample.
        task: Some(made.name(5)),
        ..made.suspect(LockupKind::Hard)
    };
    let (lockups, stacks) = made.lockups_by(&[suspect]);
    let lockup = &lockups[0];
    assert_eq!(lockup.task, Some(made.name(1)));
    assert_eq!(lockup.context, Context::Unknown);
    // The word that points at the beginning of a function is none that returns.
    let returns = stacks.frames(lockup.returns.unwrap());
    let expected = [
        "vfs_read+0x10",
        "ext4_find_entry+0x10",
        "rwsem_down_read_slowpath+0x50",
    ];
    assert_eq!(returns[..2], expected[..2]);
    assert!(
        !returns
            .iter()
            .any(|frame| frame.starts_with("do_syscall_64"))
    );
    let mut unknown = lockup.unknown.iter();
    assert!(unknown.any(|line| line.contains("registers cannot be read")));
}

#[test]
fn a_task_that_spins_near_an_address_of_the_locked_cpu_may_share_a_lock_with_it() {
    assert_eq!(sharers(&spinning(&[HEAP], &[HEAP])), [(2, HEAP, true)]);
    // A lock with a symbol.
    assert_eq!(sharers(&spinning(&[DATA], &[DATA])), [(2, DATA, true)]);
}

#[test]
fn a_locked_cpu_that_spins_may_wait_for_a_task_on_another() {
    let mut image = Image::default();
    let running = |frames| Sleeper {
        state: 0,
        files: 0,
        switches: 0,
        frames,
    };
    image.sleep(1, &[], running(vec![(at("_raw_spin_lock", 0), vec![HEAP])]));
    image.sleep(2, &[], running(vec![(at("vfs_read", 0), vec![HEAP])]));
    assert_eq!(sharers(&made_of(image)), [(2, HEAP, false)]);
}

#[test]
fn what_tasks_share_otherwise_is_no_lock() {
    let stack_of_task_3 = made().looks[0].tasks[2].record.stack_base + 0x40;
    for word in [
        0x1234,
        0xffff_ffff_ffff_fff8,
        HEAP + 2,
        stack_of_task_3,
        task_address(4),
        at("vfs_read", 0),
        DATA + 8,
    ] {
        assert_eq!(sharers(&spinning(&[word], &[word])), [], "{word:#x}");
    }
    let mut made = spinning(&[HEAP], &[HEAP]);
    made.change(6, |task| task.record.mm = HEAP);
    assert_eq!(sharers(&made), [], "an address space");
    // Far from the frame that waits.
    let far = [&[0; NEAR + 1], &[HEAP][..]].concat();
    assert_eq!(sharers(&spinning(&[HEAP], &far)), []);
    // Nobody waits.
    let mut image = spinning(&[HEAP], &[]).image;
    image.sleep(
        2,
        &[],
        Sleeper {
            state: 0,
            files: 0,
            switches: 0,
            frames: vec![(at("vfs_read", 0), vec![HEAP])],
        },
    );
    assert_eq!(sharers(&made_of(image)), []);
}

#[test]
fn who_came_and_went_shares_nothing_and_what_all_have_is_no_lock() {
    let mut made = spinning(&[HEAP], &[HEAP]);
    made.looks[1].tasks[1].record.nvcsw += 1;
    assert_eq!(sharers(&made), [], "it ran elsewhere in between");
    let mut one_look = spinning(&[HEAP], &[HEAP]);
    one_look.looks.pop();
    assert_eq!(sharers(&one_look), [], "one look cannot tell");
    let mut image = spinning(&[HEAP], &[HEAP]).image;
    image.sleep(
        3,
        &[],
        Sleeper {
            state: 0,
            files: 0,
            switches: 0,
            frames: vec![(at("vfs_read", 0), vec![HEAP])],
        },
    );
    let mut made = made_of(image);
    assert_eq!(sharers(&made), [(2, HEAP, true)]);
    made.change(3, |task| {
        task.record.on_cpu = 1;
        task.record.cpu = CPU + 2;
    });
    assert_eq!(sharers(&made), [], "all three have it");
}

#[test]
fn a_kernel_that_does_not_say_where_tasks_are_leaves_that_unknown() {
    let mut made = made();
    made.change(1, |task| task.record.on_cpu = 0);
    let kernel = Kernel {
        layout: image::layout(),
        symbols: Arc::new(symbols()),
        rows: Vec::new(),
    };
    let suspects = [made.suspect(LockupKind::Soft)];
    let looks = std::mem::take(&mut made.looks);
    let survey = kernel.survey_of(looks, &suspects, &mut made.image).unwrap();
    let [lockup] = &survey.lockups[..] else {
        panic!("{:?}", survey.lockups);
    };
    assert_eq!(lockup.task, suspects[0].task);
    let mut unknown = lockup.unknown.iter();
    assert!(unknown.any(|line| line.contains("does not say where a task is")));
}
