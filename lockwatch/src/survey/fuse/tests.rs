//! Requests that are told from what only looks like them.

use lockwatch_ebpf::survey::OpenFile;

use super::{reader::Reader, *};
use crate::{
    kernel::symbols::Symbols,
    survey::image::{ASLEEP, FUSE, Image, Sleeper, layout},
};

const ANSWER_WAIT: u64 = 0xffff_ffff_8101_0050;
const ELSEWHERE: u64 = 0xffff_ffff_8102_0050;
const REQUEST: u64 = 0xffff_8883_0000_0000;
const MOUNT: u64 = 0xffff_8883_0001_0000;
const CONNECTION: u64 = 0xffff_8883_0002_0000;
const SUPER_BLOCK: u64 = 0xffff_8883_0003_0000;
const DEVICE: u64 = 0xffff_8883_0004_0000;

const SENT: u64 = 1 << 8;
const PENDING: u64 = 1 << 7;
const FINISHED: u64 = 1 << 9;

/// Task 1 waits for an answer; its request has these flags.
fn waiting(flags: u64) -> Image {
    let mut image = Image::default();
    let head = REQUEST + 120;
    let frames = vec![
        (ANSWER_WAIT, vec![0, head, head, REQUEST]),
        (ELSEWHERE, vec![0]),
    ];
    let sleeper = Sleeper {
        state: ASLEEP,
        files: 0,
        switches: 0,
        frames,
    };
    let scheduler = [0, REQUEST, 7];
    let sp = image.sleep(1, &scheduler, sleeper);
    // Behind the scheduler's words, the return address and a word of the frame.
    let entry = sp + 8 * (scheduler.len() as u64 + 2);
    image.set_all(REQUEST, &[0; 19]);
    image.set(REQUEST + 48, flags);
    image.set_all(head, &[entry, entry]);
    image.set(REQUEST + 144, MOUNT);
    image.set_all(MOUNT, &[CONNECTION, SUPER_BLOCK]);
    image.set_all(SUPER_BLOCK, &[0; 14]);
    image.set(SUPER_BLOCK + 16, MOUNT);
    image.set_all(CONNECTION, &[0, 0, 45, CONNECTION + 24]);
    image
}

fn requests(image: &mut Image) -> (Vec<Request>, Vec<usize>) {
    let text = "ffffffff81010000 t request_wait_answer\nffffffff81020000 t elsewhere\n";
    let symbols = Symbols::parse(text.to_owned()).unwrap();
    let look = image.look(2);
    let waits = waits(&mut Functions::new(&symbols), &look);
    let layout = layout();
    let mut reader = Reader {
        look: &look,
        layout: &layout,
        fuse: &FUSE,
        memory: image,
    };
    reader.requests(&waits).unwrap()
}

#[test]
fn a_request_is_told_by_the_queue_that_its_task_is_on() {
    let request = |is_sent| Request {
        task: 0,
        address: REQUEST,
        connection: CONNECTION,
        is_sent,
    };
    let sent = requests(&mut waiting(SENT));
    assert_eq!(sent, (vec![request(true)], vec![]));
    let queued = requests(&mut waiting(PENDING));
    assert_eq!(queued, (vec![request(false)], vec![]));
}

#[test]
fn what_only_looks_like_a_request_is_none() {
    let nothing = (vec![], vec![0]);
    assert_eq!(requests(&mut waiting(FINISHED)), nothing);
    assert_eq!(requests(&mut waiting(SENT | 1 << 40)), nothing);
    // An old pointer: the request is another task's by now.
    let mut stale = waiting(SENT);
    stale.set(REQUEST + 120, SUPER_BLOCK);
    assert_eq!(requests(&mut stale), nothing);
    // The task is on the queue of something else.
    let mut other = waiting(SENT);
    let look = other.look(1);
    let at = look.tasks[0].word_address(5);
    other.set(at, MOUNT);
    assert_eq!(requests(&mut other), nothing);
}

#[test]
fn a_mount_counts_only_if_its_super_block_names_it() {
    let mut freed = waiting(SENT);
    freed.set(SUPER_BLOCK + 16, MOUNT + 64);
    assert_eq!(requests(&mut freed), (vec![], vec![0]));
    // By its connection neither: it has a super block, which is another's.
    freed.set(CONNECTION + 24, MOUNT + 80);
    assert_eq!(requests(&mut freed), (vec![], vec![0]));
    // A character device has none: its connection names it.
    let mut device = waiting(SENT);
    device.set(MOUNT + 8, 0);
    assert_eq!(requests(&mut device), (vec![], vec![0]));
    device.set(CONNECTION + 24, MOUNT + 16);
    assert_eq!(requests(&mut device).0.len(), 1);
}

#[test]
fn devices_are_told_with_their_tables_and_names_with_their_numbers() {
    let mut image = waiting(SENT);
    image.set(DEVICE, CONNECTION);
    let look = image.look(2);
    let layout = layout();
    let mut reader = Reader {
        look: &look,
        layout: &layout,
        fuse: &FUSE,
        memory: &mut image,
    };
    let file = |files, private| OpenFile { files, private };
    // Before the mount; with its flag; twice in one table; in two tables.
    let open = [
        file(8, 0),
        file(8, 1),
        file(16, DEVICE),
        file(16, DEVICE | 1),
        file(24, DEVICE),
    ];
    let device = |files| Device {
        files,
        connection: CONNECTION,
    };
    assert_eq!(reader.devices(&open).unwrap(), [device(16), device(24)]);
    let named = reader.name(CONNECTION, REQUEST).unwrap();
    assert_eq!(named.number, Some(45));
    assert_eq!(named.name, "FUSE connection 45");
}
