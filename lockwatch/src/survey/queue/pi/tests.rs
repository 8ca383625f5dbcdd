use proptest::prelude::*;

use super::*;
use crate::{
    kernel::symbols::Symbols,
    lock::LockState,
    survey::image::{Image, entry_address, task_address},
};

const LOCK: u64 = 0xffff_8882_0000_0040;

/// As of 6.12, x86-64.
const LAYOUT: PiLayout = PiLayout {
    waiter_node: 0,
    waiter_task: 24,
    waiter_lock: 32,
    waiter_size: 40,
    node_left: 16,
    node_right: 8,
    root: 8,
    owner: 24,
    size: 32,
    task_stack: 32,
};

fn layouts(rt_rwsem: Option<RtRwsemLayout>) -> LockLayouts {
    LockLayouts {
        queued: Vec::new(),
        pi: Some(LAYOUT),
        rt_rwsem,
        vma: None,
        degraded: Vec::new(),
    }
}

/// The waiter of task `n`, with its children in the tree of `lock`; 0 for none.
fn waiter(image: &mut Image, n: u64, lock: u64, left: u64, right: u64) {
    let node = |n: u64| if n == 0 { 0 } else { entry_address(n) };
    image.task(n);
    let words = [0, node(right), node(left), task_address(n), lock];
    image.set_all(entry_address(n), &words);
    image.pi_blocked_on.insert(n, entry_address(n));
}

fn find_in(image: &Image, tasks: u64, locks: &LockLayouts) -> Queues {
    let symbols = Symbols::parse("ffffffff81000000 T text".to_owned()).unwrap();
    let mut functions = Functions::new(&symbols);
    find(
        &image.look(tasks),
        locks,
        &mut functions,
        &mut image.clone(),
    )
    .unwrap()
}

#[test]
fn waiters_come_in_the_order_of_the_tree() {
    let mut image = Image::default();
    // Task 2 is the root, 3 comes before it and 1 behind it.
    waiter(&mut image, 1, LOCK, 0, 0);
    waiter(&mut image, 2, LOCK, 3, 1);
    waiter(&mut image, 3, LOCK, 0, 0);
    image.set_all(LOCK, &[0, entry_address(2), 0, task_address(4) | 1]);
    let found = find_in(&image, 4, &layouts(None));
    let [queue] = &found.queues[..] else {
        panic!("{found:?}")
    };
    let order: Vec<_> = queue
        .entries
        .iter()
        .map(|entry| (entry.task, entry.position))
        .collect();
    assert_eq!(order, [(2, 1), (1, 2), (0, 3)]);
    assert_eq!(
        (queue.lock, queue.kind, queue.word.owner_task),
        (LockAddr(LOCK), LockKind::RtMutex, task_address(4))
    );
    assert_eq!(found.unsettled, 0);
}

#[test]
fn the_writer_that_drains_readers_is_first() {
    let rwsem = RtRwsemLayout {
        rtmutex: 8,
        word: WordLayout::RwsemRt {
            readers: 0,
            owner: 32,
        },
        size: 40,
    };
    let mut image = Image::default();
    let rt_mutex = LOCK + 8;
    waiter(&mut image, 1, rt_mutex, 0, 0);
    // One reader; task 2 has the rt_mutex and waits for it.
    image.set_all(LOCK, &[1, 0, entry_address(1), 0, task_address(2) | 1]);
    let read = Read {
        look: &image.look(2),
        layout: &LAYOUT,
        rwsem: Some(&rwsem),
        rt_mutex,
    };
    let symbols = Symbols::parse("ffffffff81000000 T text".to_owned()).unwrap();
    let mut functions = Functions::new(&symbols);
    let outcome = read.once(&[0], &mut functions, &mut image).unwrap();
    let Outcome::Queue(queue) = outcome else {
        panic!("no queue")
    };
    assert_eq!(
        (queue.lock, queue.word.state),
        (LockAddr(LOCK), LockState::ReadHeld)
    );
    let order: Vec<_> = queue
        .entries
        .iter()
        .map(|entry| (entry.task, entry.position))
        .collect();
    assert_eq!(order, [(1, 1), (0, 2)]);
}

#[test]
fn a_waiter_that_is_not_in_the_tree_is_none() {
    let mut image = Image::default();
    waiter(&mut image, 1, LOCK, 0, 0);
    image.set_all(LOCK, &[0, 0, 0, task_address(4) | 1]);
    let found = find_in(&image, 2, &layouts(None));
    assert_eq!((found.queues.len(), found.unsettled), (0, 1));
    // Of another task, by its own words.
    image.set(entry_address(1) + 24, task_address(2));
    let found = find_in(&image, 2, &layouts(None));
    assert_eq!((found.queues.len(), found.unsettled), (0, 0));
}

proptest! {
    /// Whatever the links are: no panic, no endless walk, nobody twice.
    #[test]
    fn hostile_trees_are_survived(links in prop::collection::vec((0u64..7, 0u64..7), 1..6), root in 0u64..7) {
        let mut image = Image::default();
        let count = links.len() as u64;
        for (n, &(left, right)) in (1..).zip(&links) {
            waiter(&mut image, n, LOCK, left, right);
        }
        let root = if root == 0 { 0 } else { entry_address(root) };
        image.set_all(LOCK, &[0, root, 0, task_address(9) | 1]);
        for queue in find_in(&image, count, &layouts(None)).queues {
            let mut tasks: Vec<_> = queue.entries.iter().map(|entry| entry.task).collect();
            tasks.sort_unstable();
            tasks.dedup();
            prop_assert_eq!(tasks.len(), queue.entries.len());
        }
    }
}
