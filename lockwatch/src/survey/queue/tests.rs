use proptest::prelude::*;

use super::{
    entry::is_recent,
    settle::{groups, settle},
    *,
};
use crate::{
    kernel::locks::{EntryLayout, EntryMode, Granted, LockLayout, QueueLink, WordLayout},
    lock::{LockKind, LockMode, LockState},
    survey::image::{Image, JIFFIES, PERCPU_RWSEM, RWSEM, entry_address, row, task_address},
};

const LOCK: u64 = 0xffff_8882_0000_0040;

fn find_in(image: &Image, tasks: u64) -> Queues {
    find(&image.look(tasks), &[row(RWSEM)], &mut image.clone()).unwrap()
}

fn entries_on(look: &Look) -> Vec<Entry> {
    entry::on_stacks(look, &[row(RWSEM)])
        .iter()
        .map(|stacked| stacked.entry)
        .collect()
}

#[test]
fn a_queue_is_found_in_order() {
    let mut image = Image::default();
    image.queue(LOCK, 0x102, 3, &[0, 1, 1]);
    let found = find_in(&image, 4);
    let [queue] = &found.queues[..] else {
        panic!("{found:?}")
    };
    assert_eq!(
        (queue.lock, queue.word.state),
        (LockAddr(LOCK), LockState::ReadHeld)
    );
    let order: Vec<_> = queue
        .entries
        .iter()
        .map(|entry| (entry.task, entry.mode))
        .collect();
    assert_eq!(
        order,
        [
            (0, LockMode::Write),
            (1, LockMode::Read),
            (2, LockMode::Read)
        ]
    );
}

#[test]
fn a_waiter_nobody_recognised_is_read_from_memory() {
    let mut image = Image::default();
    image.queue(LOCK, 0x102, 3, &[0, 1, 1]);
    let mut look = image.look(3);
    // Task 2 runs: the first waiter may spin, and its stack shows no slow path.
    look.tasks[1].record.on_cpu = 1;
    let blind = Row {
        layout: RWSEM,
        slow_paths: Vec::new(),
    };
    assert!(
        find(&look, &[blind], &mut image.clone())
            .unwrap()
            .queues
            .is_empty()
    );
    let mut entries = entries_on(&look);
    entries.remove(1);
    let groups = groups(&look, &RWSEM, entries, &mut image).unwrap();
    assert_eq!(groups.len(), 1);
    let queue = settle(&look, &RWSEM, &groups[0], &mut image)
        .unwrap()
        .unwrap();
    assert_eq!(queue.entries.len(), 3);
}

#[test]
fn a_forged_entry_makes_no_queue() {
    // An entry on a stack, with links into a page that user space filled, but no
    // lock that points back.
    let mut image = Image::default();
    image.entry(1, 1, LOCK + 24, LOCK + 24);
    assert!(
        find_in(&image, 1).queues.is_empty(),
        "the lock cannot be read"
    );
    image.lock(LOCK, 0x102, 3, entry_address(2), entry_address(2));
    assert!(
        find_in(&image, 1).queues.is_empty(),
        "the list starts elsewhere"
    );
    image.lock(LOCK, 0x100, 3, entry_address(1), entry_address(1));
    assert!(
        find_in(&image, 1).queues.is_empty(),
        "the count knows of no waiters"
    );
    image.lock(LOCK, 0x102, 3, entry_address(1), entry_address(1));
    assert_eq!(find_in(&image, 1).queues.len(), 1);
}

#[test]
fn the_private_list_of_a_waker_is_no_lock() {
    let mut image = Image::default();
    let private = entry_address(2) + 0x100;
    image.entry(1, 1, private, private);
    image.lock(private - 24, 0x102, 3, entry_address(1), entry_address(1));
    let found = find_in(&image, 2);
    assert!(found.queues.is_empty());
}

#[test]
fn a_granted_reader_is_no_waiter() {
    let mut image = Image::default();
    image.queue(LOCK, 0x102, 3, &[0]);
    image.entry(2, 1, entry_address(3), entry_address(3));
    image.set(entry_address(2) + 16, 0);
    // The slow path keeps the lock's address.
    image.set(entry_address(2) - 0x40, LOCK);
    let found = find_in(&image, 2);
    let [queue] = &found.queues[..] else {
        panic!("{found:?}")
    };
    assert_eq!(queue.entries.len(), 1);
    assert_eq!(
        queue
            .granted
            .iter()
            .map(|entry| entry.task)
            .collect::<Vec<_>>(),
        [1]
    );
    assert!(
        queue
            .granted
            .iter()
            .all(|entry| is_recent(entry.timeout.unwrap(), JIFFIES))
    );
}

#[test]
fn a_waiter_that_joined_during_the_look_is_in_the_queue() {
    let mut image = Image::default();
    image.queue(LOCK, 0x102, 3, &[0, 1]);
    // The first stack was copied before the second task queued.
    let mut earlier = image.clone();
    earlier.entry(1, 0, LOCK + 24, LOCK + 24);
    let mut entries = entries_on(&image.look(2));
    let stale = entries_on(&earlier.look(1));
    entries[0] = stale[0];
    let look = image.look(2);
    let groups = groups(&look, &RWSEM, entries, &mut image).unwrap();
    assert_eq!(groups.len(), 1);
    let queue = settle(&look, &RWSEM, &groups[0], &mut image)
        .unwrap()
        .unwrap();
    assert_eq!(queue.entries.len(), 2);
}

#[test]
fn a_task_that_came_after_the_look_takes_its_place_in_the_queue() {
    let mut image = Image::default();
    image.queue(LOCK, 0x102, 3, &[0, 1, 1]);
    // Task 2 is unknown: the look ends before it, and task 3 is known again.
    let mut look = image.look(3);
    look.forget(task_address(2));
    let found = find(&look, &[row(RWSEM)], &mut image).unwrap();
    let [queue] = &found.queues[..] else {
        panic!("{found:?}")
    };
    let places: Vec<_> = queue
        .entries
        .iter()
        .map(|entry| (entry.task, entry.position))
        .collect();
    assert_eq!(places, [(0, 1), (2, 3)]);
}

#[test]
fn a_ring_starts_where_the_lock_says() {
    let mut image = Image::default();
    for (n, kind) in [(1, 1), (2, 0), (3, 1)] {
        image.entry(
            n,
            kind,
            entry_address(n % 3 + 1),
            entry_address((n + 1) % 3 + 1),
        );
        // The slow path keeps the lock's address.
        image.set(entry_address(n) - 0x40, LOCK);
    }
    // first_waiter stands where the list's head used to.
    image.lock(LOCK, 0x102, 3, entry_address(2), 0);
    let ring = LockLayout {
        queue: QueueLink::First(24),
        size: 32,
        ..RWSEM
    };
    let found = find(&image.look(3), &[row(ring)], &mut image).unwrap();
    let [queue] = &found.queues[..] else {
        panic!("{found:?}")
    };
    let order: Vec<_> = queue
        .entries
        .iter()
        .map(|entry| (entry.task, entry.mode))
        .collect();
    assert_eq!(
        order,
        [
            (1, LockMode::Write),
            (2, LockMode::Read),
            (0, LockMode::Read)
        ]
    );
}

#[test]
fn a_lone_waiter_is_a_ring_of_one() {
    let mut image = Image::default();
    image.entry(1, 0, entry_address(1), entry_address(1));
    image.set(entry_address(1) - 0x40, LOCK);
    image.lock(LOCK, 0x3, task_address(9), entry_address(1), 0);
    let ring = LockLayout {
        queue: QueueLink::First(24),
        size: 32,
        ..RWSEM
    };
    let found = find(&image.look(1), &[row(ring)], &mut image).unwrap();
    assert_eq!(found.queues.len(), 1);
}

/// As up to 5.2: the owner is a plain pointer, entries have no time-out.
#[test]
fn the_lock_of_an_old_kernel_is_read_on_the_same_way() {
    let old = LockLayout {
        word: WordLayout::RwsemBiases {
            count: 0,
            owner: Some(8),
        },
        entry: EntryLayout {
            timeout: None,
            granted: Granted::Untold,
            size: 32,
            ..RWSEM.entry
        },
        ..RWSEM
    };
    let mut image = Image::default();
    // The incident: a reader, a queued writer, and readers behind it.
    image.queue(LOCK, -4_294_967_295_i64 as u64, 0, &[0, 1, 1]);
    let found = find(&image.look(4), &[row(old)], &mut image).unwrap();
    let [queue] = &found.queues[..] else {
        panic!("{found:?}")
    };
    assert_eq!(
        (queue.word.state, queue.word.readers, queue.entries.len()),
        (LockState::ReadHeld, Some(1), 3)
    );
    assert_eq!(queue.entries[0].mode, LockMode::Write);
    assert_eq!(queue.entries[0].timeout, None);
}

#[test]
fn a_mutex_is_a_row_of_the_table() {
    let mutex = LockLayout {
        kind: LockKind::Mutex,
        size: 32,
        word: WordLayout::Mutex { owner: 0 },
        queue: QueueLink::Head(16),
        entry: EntryLayout {
            mode: EntryMode::Exclusive,
            granted: Granted::Untold,
            timeout: None,
            size: 24,
            ..RWSEM.entry
        },
        osq: None,
        ..RWSEM
    };
    let mut image = Image::default();
    let head = LOCK + 16;
    image.entry(1, 7, entry_address(2), head);
    image.entry(2, 7, head, entry_address(1));
    image.set_all(
        LOCK,
        &[task_address(3) | 1, 0, entry_address(1), entry_address(2)],
    );
    let found = find(&image.look(3), &[row(RWSEM), row(mutex)], &mut image).unwrap();
    assert!(
        found.queues.is_empty(),
        "the first row claims these functions"
    );
    let found = find(&image.look(3), &[row(mutex)], &mut image).unwrap();
    let [queue] = &found.queues[..] else {
        panic!("{found:?}")
    };
    assert_eq!(
        (queue.kind, queue.word.owner_task, queue.entries.len()),
        (LockKind::Mutex, task_address(3), 2)
    );
}

#[test]
fn a_writer_without_an_entry_is_first_in_line() {
    let mut image = Image::default();
    image.drained(LOCK);
    let found = find(&image.look(2), &[row(PERCPU_RWSEM)], &mut image).unwrap();
    let [queue] = &found.queues[..] else {
        panic!("{found:?}")
    };
    let order: Vec<_> = queue
        .entries
        .iter()
        .map(|entry| (entry.task, entry.mode, entry.position))
        .collect();
    assert_eq!(order, [(1, LockMode::Write, 1), (0, LockMode::Read, 2)]);
    assert_eq!(
        (queue.word.state, queue.word.readers),
        (LockState::ReadHeld, None)
    );
    // Granted: its task is cleared, and its links point at itself.
    let links = entry_address(1) + 24;
    image.set_all(entry_address(1), &[0x5, 0, 0, links, links]);
    let stacked = entry::on_stacks(&image.look(1), &[row(PERCPU_RWSEM)]);
    assert!(stacked.iter().all(|stacked| stacked.granted) && stacked.len() == 1);
}

proptest! {
    /// Whatever the links are: no panic, no endless walk, no waiter twice, and
    /// every queue that comes out is one that memory confirms.
    #[test]
    fn hostile_links_are_survived(links in prop::collection::vec((0u64..9, 0u64..9), 1..8)) {
        let mut image = Image::default();
        let target = |n: u64| if n == 0 { LOCK + 24 } else { entry_address(n) };
        let count = links.len() as u64;
        for (index, &(next, prev)) in links.iter().enumerate() {
            image.entry(index as u64 + 1, 1, target(next), target(prev));
        }
        image.lock(LOCK, 0x102, 3, target(links[0].0), target(links[0].1));
        for queue in find_in(&image, count).queues {
            let mut tasks: Vec<_> = queue.entries.iter().map(|entry| entry.task).collect();
            tasks.sort_unstable();
            tasks.dedup();
            prop_assert_eq!(tasks.len(), queue.entries.len());
            prop_assert!(queue.word.has_waiters);
        }
    }
}
