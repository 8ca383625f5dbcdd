use lockwatch_ebpf::survey::TaskRecord;

use super::{queues::Queues, *};
use crate::{
    daemon::ConnectionAddr,
    kernel::symbols::Symbols,
    sleeper::QueueKind,
    survey::{
        clock::Clocks,
        image::{ASLEEP, Image, STUCK, Sleeper as Asleep0, WAITS, layout, task_address},
    },
    task::{Nanos, Tgid, Tid},
};

const SECOND: u64 = 1_000_000_000;
const NOW: u64 = 1_000 * SECOND;
const RUN_QUEUE: u64 = 0xffff_8884_0000_0000;
const GROUP: u64 = 0xffff_8884_0001_0000;
const THING: u64 = 0xffff_8884_0002_0000;

/// Functions, each at a place of its own.
const NAMES: [&str; 8] = [
    "wait_somewhere",
    "elsewhere",
    "__refrigerator",
    "kernel_clone",
    "autoremove_wake_function",
    "wake_bit_function",
    "wake_page_function",
    "ep_poll_callback",
];

fn function(name: &str) -> u64 {
    let at = NAMES.iter().position(|&known| known == name).unwrap();
    0xffff_ffff_8101_0000 + 0x1000 * at as u64
}

fn symbols() -> Symbols {
    let line = |name: &&str| format!("{:x} t {name}\n", function(name));
    let end = std::iter::once("ffffffff81020000 t end\n".to_owned());
    Symbols::parse(NAMES.iter().map(line).chain(end).collect()).unwrap()
}

/// Puts a task to sleep in a function whose frame begins with these words. Gives the address
/// of the first of them.
fn sleep(image: &mut Image, n: u64, state: u32, name: &str, words: &[u64]) -> u64 {
    let frames = vec![
        (function(name) + 0x50, words.to_vec()),
        (function("elsewhere") + 0x50, vec![0]),
    ];
    let sleeper = Asleep0 {
        state,
        files: 0,
        switches: 7,
        frames,
    };
    let scheduler = [0, 1, 2];
    let sp = image.sleep(n, &scheduler, sleeper);
    sp + 8 * (scheduler.len() as u64 + 1)
}

/// What the scheduler keeps of a task; its run queue is that of CPU 0, whose clock is `NOW`
/// and has left out this much for tasks.
fn account(image: &mut Image, n: u64, exec_start: u64, left_out: u64) {
    image.set_all(task_address(n) + 0x118, &[0, exec_start, GROUP]);
    image.set(GROUP + 8, RUN_QUEUE);
    image.set_all(RUN_QUEUE, &[0, NOW, NOW - left_out]);
}

fn look(image: &Image, count: u64, change: impl Fn(&mut TaskRecord)) -> Look {
    let mut look = image.look(count);
    for task in &mut look.tasks {
        task.record.taken_at_ns = NOW;
        change(&mut task.record);
    }
    look
}

fn seen_by(image: &mut Image, look: &Look, history: &mut History) -> Vec<Asleep> {
    let symbols = symbols();
    let clocks = Clocks {
        scheduler_offset_ns: Some(0),
        hz: None,
    };
    let mut functions = Functions::new(&symbols);
    let layout = layout();
    seen(
        look,
        &clocks,
        Some(Tid(99)),
        &layout,
        &mut functions,
        history,
        image,
    )
    .unwrap()
}

/// For how long the only task has slept, at least.
fn slept(image: &mut Image, change: impl Fn(&mut TaskRecord)) -> Option<Nanos> {
    let look = look(image, 1, change);
    let seen = seen_by(image, &look, &mut History::default());
    seen.first().map(|asleep| asleep.at_least)
}

#[test]
fn a_task_that_ran_on_has_slept_only_since_it_stopped() {
    let mut image = Image::default();
    sleep(&mut image, 1, STUCK, "wait_somewhere", &[]);
    // It got the CPU 900 s ago, and was alone there.
    let arrived = |record: &mut TaskRecord| record.last_arrival_ns = NOW - 900 * SECOND;
    account(&mut image, 1, NOW - SECOND / 1_000, 0);
    assert_eq!(slept(&mut image, arrived), None);
    account(&mut image, 1, NOW - 5 * SECOND, 0);
    assert_eq!(slept(&mut image, arrived), Some(Nanos(5 * SECOND)));
}

#[test]
fn what_interrupts_took_is_no_sleep() {
    let mut image = Image::default();
    sleep(&mut image, 1, STUCK, "wait_somewhere", &[]);
    account(&mut image, 1, NOW - 305 * SECOND, 300 * SECOND);
    assert_eq!(slept(&mut image, |_| ()), Some(Nanos(5 * SECOND)));
}

#[test]
fn a_sleep_is_no_longer_than_since_the_task_got_the_cpu() {
    let mut image = Image::default();
    sleep(&mut image, 1, STUCK, "wait_somewhere", &[]);
    account(&mut image, 1, NOW - 500 * SECOND, 0);
    let arrived = |record: &mut TaskRecord| record.last_arrival_ns = NOW - 3 * SECOND;
    assert_eq!(slept(&mut image, arrived), Some(Nanos(3 * SECOND)));
}

#[test]
fn what_does_not_fit_says_nothing() {
    let mut image = Image::default();
    sleep(&mut image, 1, STUCK, "wait_somewhere", &[]);
    account(&mut image, 1, NOW - 500 * SECOND, 0);
    assert!(slept(&mut image, |_| ()).is_some());
    assert_eq!(slept(&mut image, |record| record.cpu = 1), None);
    account(&mut image, 1, 0, 0);
    assert_eq!(slept(&mut image, |_| ()), None, "it has migrated");
    account(&mut image, 1, NOW + SECOND, 0);
    assert_eq!(slept(&mut image, |_| ()), None, "a clock of another queue");
    account(&mut image, 1, NOW - 500 * SECOND, 0);
    image.set(GROUP + 8, 0);
    assert_eq!(slept(&mut image, |_| ()), None, "no run queue");
}

#[test]
fn only_uninterruptible_sleeps_that_nobody_wants_count() {
    let sleeps = |state: u32, name: &str| {
        let mut image = Image::default();
        sleep(&mut image, 1, state, name, &[]);
        account(&mut image, 1, NOW - 500 * SECOND, 0);
        slept(&mut image, |_| ()).is_some()
    };
    assert!(sleeps(STUCK, "wait_somewhere"));
    assert!(sleeps(STUCK | 0x100, "wait_somewhere"), "killable");
    assert!(!sleeps(ASLEEP, "wait_somewhere"));
    assert!(
        !sleeps(STUCK | 0x400, "wait_somewhere"),
        "an idle kernel thread"
    );
    assert!(!sleeps(STUCK, "__refrigerator"), "frozen, up to 6.0");
    assert!(!sleeps(0x8000, "wait_somewhere"), "frozen, 6.1 and later");
    assert!(
        !sleeps(STUCK | 0x100, "kernel_clone"),
        "the parent of a vfork"
    );
}

#[test]
fn waits_for_io_are_told_apart() {
    let mut image = Image::default();
    for n in [1, 2] {
        sleep(&mut image, n, STUCK, "wait_somewhere", &[]);
        account(&mut image, n, NOW - 500 * SECOND, 0);
    }
    // Other bits of the same byte are others' flags.
    image.set(task_address(1) + 0x118, 0x4);
    image.set(task_address(2) + 0x118, 0xfb);
    let look = look(&image, 2, |_| ());
    let seen = seen_by(&mut image, &look, &mut History::default());
    let io: Vec<bool> = seen.iter().map(|asleep| asleep.io_wait).collect();
    assert_eq!(io, [true, false]);
}

#[test]
fn where_the_scheduler_does_not_tell_surveys_remember() {
    let mut image = Image::default();
    sleep(&mut image, 1, STUCK, "wait_somewhere", &[]);
    account(&mut image, 1, 0, 0);
    let mut history = History::default();
    let mut at = |seconds: u64, switches: u64| {
        let look = look(&image, 1, |record| {
            record.taken_at_ns = NOW + seconds * SECOND;
            record.nvcsw = switches;
        });
        let seen = seen_by(&mut image.clone(), &look, &mut history);
        seen.first().map(|asleep| asleep.at_least.0 / SECOND)
    };
    assert_eq!(at(0, 7), None);
    assert_eq!(at(2, 7), Some(2));
    assert_eq!(at(130, 7), Some(130));
    assert_eq!(at(131, 8), None, "it has run");
    assert_eq!(at(141, 8), Some(10));
    assert_eq!(at(142, 7), None, "forgotten");
}

/// What these tasks are queued on.
fn queued(image: &mut Image, count: u64) -> Vec<Option<(QueueKind, u64)>> {
    let look = image.look(count);
    let symbols = symbols();
    let tasks: Vec<usize> = (0..look.tasks.len()).collect();
    let mut queues = Queues {
        look: &look,
        layout: &WAITS,
        symbols: &symbols,
        memory: image,
    };
    let found = queues.of_tasks(&tasks).unwrap();
    let of = |task: &usize| found.get(task).map(|queued| (queued.kind, queued.address));
    tasks.iter().map(of).collect()
}

/// Tasks 1 and 2 wait for one completion, which lies there; `done` is its count.
fn completion(image: &mut Image, at: u64, done: u64) -> [u64; 2] {
    let head = at + 16;
    let entries = [1, 2].map(|n| {
        let words = [task_address(n), 0, 0];
        sleep(image, n, STUCK, "wait_somewhere", &words)
    });
    let links = entries.map(|entry| entry + 8);
    image.set_all(links[0], &[links[1], head]);
    image.set_all(links[1], &[head, links[0]]);
    image.set_all(at, &[done, 0, links[0], links[1]]);
    links
}

#[test]
fn a_completion_is_told_by_its_list() {
    let mut image = Image::default();
    let links = completion(&mut image, THING, 0);
    let it = Some((QueueKind::Completion, THING));
    assert_eq!(queued(&mut image, 2), [it, it]);
    // What is left of an earlier wait: the list does not come back to it.
    image.set(THING + 24, links[0]);
    image.set(links[0], THING + 16);
    assert_eq!(queued(&mut image, 2), [it, None]);
    let mut image = Image::default();
    completion(&mut image, THING, 3);
    let other = Some((QueueKind::WaitQueue, THING + 8));
    assert_eq!(
        queued(&mut image, 2),
        [other, other],
        "what is done is no completion"
    );
}

#[test]
fn what_lies_on_a_stack_is_nobody_elses() {
    let mut image = Image::default();
    let links = completion(&mut image, THING, 0);
    let at = links[0] + 0x200;
    completion(&mut image, at, 0);
    assert_eq!(queued(&mut image, 2), [None, None]);
}

/// The words of a `wait_queue_entry` of task `n`.
fn entry(n: u64, wake: &str, (next, prev): (u64, u64)) -> [u64; 5] {
    [1, task_address(n), function(wake), next, prev]
}

#[test]
fn a_wait_queue_is_found_past_those_who_poll_it() {
    let mut image = Image::default();
    let head = THING + 8;
    let polls = THING + 0x1000;
    let words = entry(1, "autoremove_wake_function", (polls + 24, head));
    let links = sleep(&mut image, 1, STUCK, "wait_somewhere", &words) + 24;
    let base = THING + 0x5000;
    image.set_all(polls, &[0, base, function("ep_poll_callback"), head, links]);
    image.set_all(THING, &[0, links, polls + 24]);
    assert_eq!(queued(&mut image, 1), [Some((QueueKind::WaitQueue, THING))]);
    // No function begins there: user space can leave such words.
    let wake = links - 8;
    image.set(wake, function("elsewhere") + 4);
    assert_eq!(queued(&mut image, 1), [None]);
}

#[test]
fn bits_are_told_by_what_is_woken() {
    let head = THING + 8;
    let wait = |wake: &str, in_front: &[u64]| {
        let mut image = Image::default();
        let entry = entry(1, wake, (head, head));
        let words = [in_front, &entry].concat();
        let frame = sleep(&mut image, 1, STUCK, "wait_somewhere", &words);
        let links = frame + 8 * in_front.len() as u64 + 24;
        image.set_all(THING, &[0, links, links]);
        queued(&mut image, 1)[0]
    };
    let word = THING + 0x2000;
    let garbage = 0xdead_beef_0000_0000;
    assert_eq!(
        wait("wake_bit_function", &[word, garbage | 2, 0]),
        Some((QueueKind::Bit, word))
    );
    assert_eq!(
        wait("wake_page_function", &[word, 15]),
        Some((QueueKind::Bit, word + 1))
    );
    assert_eq!(wait("wake_page_function", &[7, 15]), None);
    assert_eq!(wait("wake_page_function", &[word, 64]), None);
}

#[test]
fn a_list_without_a_head_ends() {
    let mut image = Image::default();
    let words = entry(1, "autoremove_wake_function", (0, 0));
    let one = sleep(&mut image, 1, STUCK, "wait_somewhere", &words) + 24;
    let words = entry(2, "autoremove_wake_function", (one, one));
    let two = sleep(&mut image, 2, STUCK, "wait_somewhere", &words) + 24;
    image.set_all(one, &[two, two]);
    assert_eq!(queued(&mut image, 2), [None, None]);
}

/// Where our mount namespace is kept, and two of them.
const NAMESPACE: u64 = THING + 0x7000;
const OURS: u64 = THING + 0x7100;
const OTHER: u64 = THING + 0x7200;

/// An NFS directory on the stack of a task, mounted from this server.
fn on_a_server(image: &mut Image, fstype: u64) {
    let [inode, super_block, fs, mount, source] =
        [0, 1, 2, 3, 4].map(|n| THING + 0x8000 + n * 0x1000);
    sleep(image, 1, STUCK, "wait_somewhere", &[7, inode]);
    image.set_all(inode, &[super_block, 0, inode + 0x80, 12, 0]);
    image.set_all(inode + 0x80, &[inode, 0]);
    image.set_all(
        super_block,
        &[
            fs,
            0,
            0,
            0,
            0x3235_3a30,
            0,
            0,
            0,
            mount + 32,
            mount + 32,
            0,
            0,
            0,
            0,
        ],
    );
    image.set_all(fs, &[fs + 8, fstype, 0, 0, 0]);
    image.set(task_address(1) + 0x100, NAMESPACE);
    image.set(NAMESPACE, OURS);
    image.set_all(mount, &[0, 0, 0, OURS, super_block + 64, source]);
    let name = [*b"fs1.lan:", *b"/export\0"].map(u64::from_le_bytes);
    image.set_all(source, &name);
    image.set_all(source + 16, &[0; 64]);
}

#[test]
fn a_server_is_named_as_its_mount_has_it() {
    let named = |fstype: &[u8; 8], change: fn(&mut Image)| {
        let mut image = Image::default();
        on_a_server(&mut image, u64::from_le_bytes(*fstype));
        change(&mut image);
        let mut look = image.look(1);
        look.tasks[0].name.tgid = Tgid(std::process::id());
        server::of_task(&look, &look.tasks[0], &layout(), &mut image).unwrap()
    };
    let nfs = |name: &str| {
        Some(Awaited::Server {
            fstype: "nfs4".to_owned(),
            name: name.to_owned(),
        })
    };
    assert_eq!(named(b"nfs4\0\0\0\0", |_| ()), nfs("fs1.lan"));
    // Without a mount in our namespace its name is not known.
    assert_eq!(
        named(b"nfs4\0\0\0\0", |image| image.set(NAMESPACE, OTHER)),
        nfs("")
    );
    assert_eq!(named(b"ext4\0\0\0\0", |_| ()), None);
    // Only what points back at it is an inode.
    assert_eq!(
        named(b"nfs4\0\0\0\0", |image| image.set(THING + 0x8000 + 16, 0)),
        None
    );
}

#[test]
fn the_connection_of_a_page_is_that_of_its_file_system() {
    let [inode, super_block, mount, connection] = [0, 1, 2, 3].map(|n| THING + n * 0x1000);
    let found = |back: u64| {
        let mut image = Image::default();
        sleep(&mut image, 1, STUCK, "wait_somewhere", &[7, inode]);
        image.set_all(inode, &[super_block, 0, inode + 0x80, 12, 0]);
        image.set_all(super_block, &[0, 0, mount]);
        image.set_all(mount, &[connection, back]);
        let look = image.look(1);
        server::connection_of_task(&look, &look.tasks[0], &layout(), &mut image).unwrap()
    };
    assert_eq!(found(super_block), Some(ConnectionAddr(connection)));
    // What is no mount of this super block leads nowhere.
    assert_eq!(found(super_block + 0x10), None);
}
