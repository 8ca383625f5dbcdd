use super::*;
use crate::{
    kernel::symbols::Symbols,
    lock::{Confidence, Stacks},
    survey::{
        clock::Clocks,
        fuse::{Connection, Device},
        image::{ASLEEP, Image, STUCK, Sleeper},
    },
};

const CONNECTION: u64 = 0xffff_8883_0002_0000;
const REQUEST: u64 = 0xffff_8883_0000_0000;
const TABLE: u64 = 0xffff_8884_0000_0000;
const OTHER_TABLE: u64 = 0xffff_8884_0001_0000;

const SECOND: u64 = 1_000_000_000;
const NOW: u64 = 1_000 * SECOND;

/// Where a task sleeps, in which state.
const CLIENT: (u64, u32) = (0xffff_ffff_8101_0050, ASLEEP);
const IDLE: (u64, u32) = (0xffff_ffff_8102_0050, ASLEEP);
const FUTEX: (u64, u32) = (0xffff_ffff_8103_0050, ASLEEP);
const DISK: (u64, u32) = (0xffff_ffff_8104_0050, STUCK);

/// A task: where it is, its table of files, and how often it ran.
#[derive(Clone, Copy)]
struct Is((u64, u32), u64, u64);

/// The look at task 1, which waits for an answer, and at these from 2 on.
fn look(tasks: &[Is]) -> Look {
    let mut image = Image::default();
    let client = Is(CLIENT, OTHER_TABLE, 0);
    let all = std::iter::once(&client).chain(tasks);
    for (n, &Is((function, state), files, switches)) in (1..).zip(all) {
        let sleeper = Sleeper {
            state,
            files,
            switches,
            frames: vec![(function, vec![0]), (0xffff_ffff_8105_0050, vec![0])],
        };
        image.sleep(n, &[0], sleeper);
    }
    let mut look = image.look(tasks.len() as u64 + 1);
    for (index, task) in look.tasks.iter_mut().enumerate() {
        task.record.taken_at_ns = NOW;
        let seconds = match all_of(tasks, index) {
            CLIENT => 10,
            DISK => 9,
            // Since it was mounted.
            _ => 60,
        };
        task.record.last_arrival_ns = NOW - seconds * SECOND;
    }
    look
}

fn all_of(tasks: &[Is], index: usize) -> (u64, u32) {
    index.checked_sub(1).map_or(CLIENT, |index| tasks[index].0)
}

fn seen(clients: &[usize], is_sent: bool) -> SeenFuse {
    let requests = clients.iter().map(|&task| Request {
        task,
        address: REQUEST + 0x100 * task as u64,
        connection: CONNECTION,
        is_sent,
    });
    let name = Connection {
        number: Some(45),
        name: "FUSE connection 45".to_owned(),
    };
    SeenFuse {
        requests: requests.collect(),
        devices: vec![Device {
            files: TABLE,
            connection: CONNECTION,
        }],
        connections: [(CONNECTION, name)].into_iter().collect(),
        ..SeenFuse::default()
    }
}

fn conclude(first: Option<(&Look, &SeenFuse)>, last: (&Look, &SeenFuse)) -> Vec<Daemon> {
    let text = "ffffffff81010000 t request_wait_answer\n\
        ffffffff81020000 t fuse_dev_do_read\n\
        ffffffff81030000 t futex_do_wait\n\
        ffffffff81040000 t folio_wait_bit_common\n\
        ffffffff81050000 t outside\n";
    let symbols = Symbols::parse(text.to_owned()).unwrap();
    let mut functions = Functions::new(&symbols);
    let mut stacks = Stacks::default();
    let mut merger = Merger {
        functions: &mut functions,
        clocks: Clocks {
            scheduler_offset_ns: Some(0),
            hz: None,
        },
        stacks: &mut stacks,
        by_addresses: FxHashMap::default(),
    };
    let sight = |(look, fuse)| Sight { look, fuse };
    daemons(first.map(sight), sight(last), 0, &mut merger)
}

/// Who is said to serve, and why, where these tasks were so in both looks.
fn served(
    then: &[Is],
    now: &[Is],
    is_sent: bool,
) -> Vec<(u32, ServesEvidence, Option<Confidence>)> {
    let (first, last) = (look(then), look(now));
    let fuse = seen(&[0], is_sent);
    let daemons = conclude(Some((&first, &fuse)), (&last, &fuse));
    let [daemon] = daemons.as_slice() else {
        panic!("{daemons:?}");
    };
    assert!(daemon.clients[0].stood && daemon.clients[0].is_sent == is_sent);
    let threads = daemon.threads.iter();
    threads
        .map(|thread| (thread.task.key.tid.0, thread.evidence, thread.serves))
        .collect()
}

fn stand(tasks: &[Is]) -> Vec<(u32, ServesEvidence, Option<Confidence>)> {
    served(tasks, tasks, true)
}

use Confidence::{Certain, Likely, Possible};
use ServesEvidence::{Idle, OneOfSeveral, OnlyThread, OthersIdle, OthersParked};

#[test]
fn only_who_has_the_device_serves() {
    let in_same_process = Is(DISK, OTHER_TABLE, 0);
    let found = stand(&[Is(DISK, TABLE, 0), in_same_process]);
    assert_eq!(found, [(2, OnlyThread, Some(Certain))]);
}

#[test]
fn the_one_that_is_not_idle_has_the_request() {
    let [busy, idle] = [Is(DISK, TABLE, 0), Is(IDLE, TABLE, 0)];
    let found = stand(&[busy, idle]);
    let expected = [(2, OthersIdle, Some(Certain)), (3, Idle, None)];
    assert_eq!(found, expected);
    // Nobody has read it: the idle one will.
    let found = served(&[busy, idle], &[busy, idle], false);
    let expected = [(2, OthersIdle, Some(Possible)), (3, Idle, None)];
    assert_eq!(found, expected);
    // It was not idle before: it may have given the request to the other since.
    let found = served(&[busy, busy], &[busy, idle], true);
    let expected = [(2, OneOfSeveral, Some(Possible)), (3, Idle, None)];
    assert_eq!(found, expected);
    // It became busy: who read the request before is gone, or idle.
    let found = served(&[idle, idle], &[busy, idle], true);
    let expected = [(2, OneOfSeveral, Some(Possible)), (3, Idle, None)];
    assert_eq!(found, expected);
}

#[test]
fn parked_threads_leave_a_doubt() {
    let [busy, parked] = [Is(DISK, TABLE, 0), Is(FUTEX, TABLE, 0)];
    let found = stand(&[busy, parked]);
    let expected = [
        (2, OthersParked, Some(Certain)),
        (3, OneOfSeveral, Some(Possible)),
    ];
    assert_eq!(found, expected);
    let found = stand(&[parked, parked]);
    let expected = [
        (2, OneOfSeveral, Some(Possible)),
        (3, OneOfSeveral, Some(Possible)),
    ];
    assert_eq!(found, expected);
    let ran = Is(DISK, TABLE, 1);
    let found = served(&[busy, parked], &[ran, parked], true);
    assert_eq!(found[0], (2, OthersParked, Some(Possible)));
}

/// As `stand`, where task `n` got its CPU so many seconds ago; the client 10 s ago.
fn stand_since(tasks: &[Is], n: usize, seconds: u64) -> Option<Confidence> {
    let mut sight = look(tasks);
    sight.tasks[n - 1].record.last_arrival_ns = NOW - seconds * SECOND;
    let fuse = seen(&[0], true);
    let daemons = conclude(Some((&sight, &fuse)), (&sight, &fuse));
    daemons[0].threads[0].serves
}

#[test]
fn who_ran_since_the_request_may_have_it() {
    let [busy, parked, idle] = [Is(DISK, TABLE, 0), Is(FUTEX, TABLE, 0), Is(IDLE, TABLE, 0)];
    // It sleeps as it serves, and will answer.
    assert_eq!(stand_since(&[busy, parked], 3, 9), Some(Possible));
    assert_eq!(stand_since(&[busy, parked], 3, 60), Some(Certain));
    // It answered a request before, and read this one before it slept.
    let closely = stand_since(&[busy, parked], 3, 10);
    assert_eq!(closely, Some(Possible));
    // It may have read this one, and put the answer off.
    assert_eq!(stand_since(&[busy, idle], 3, 9), Some(Likely));
    assert_eq!(stand_since(&[busy, idle], 3, 10), Some(Certain));
    // The busy one slept before there was a request.
    assert_eq!(stand_since(&[busy, idle], 2, 20), Some(Possible));
    assert_eq!(stand_since(&[busy], 2, 20), Some(Certain), "only thread");
}

#[test]
fn how_old_the_request_of_an_interrupted_client_is_is_unknown() {
    let mut sight = look(&[Is(DISK, TABLE, 0), Is(FUTEX, TABLE, 0)]);
    let fuse = seen(&[0], true);
    sight.tasks[0].state = TaskState::Killable;
    let daemons = conclude(Some((&sight, &fuse)), (&sight, &fuse));
    assert_eq!(daemons[0].threads[0].serves, Some(Possible));
}

#[test]
fn who_started_idle_threads_is_not_blamed_for_what_they_lost() {
    let found = stand(&[Is(FUTEX, TABLE, 0), Is(IDLE, TABLE, 0)]);
    let expected = [(2, OthersIdle, Some(Possible)), (3, Idle, None)];
    assert_eq!(found, expected);
}

#[test]
fn an_idle_daemon_owes_an_answer_and_nobody_is_blamed() {
    let tasks = [Is(IDLE, TABLE, 0), Is(IDLE, TABLE, 0)];
    let sight = look(&tasks);
    let owes = |is_sent| {
        let fuse = seen(&[0], is_sent);
        let daemons = conclude(Some((&sight, &fuse)), (&sight, &fuse));
        assert!(daemons[0].threads.iter().all(|t| t.serves.is_none()));
        daemons[0].owes_while_idle()
    };
    assert!(owes(true));
    assert!(!owes(false), "it has read nothing");
}

#[test]
fn clients_are_no_servers_unless_nobody_else_is() {
    let itself = Is(CLIENT, TABLE, 0);
    let fuse = seen(&[0, 1], true);
    let both = look(&[itself, Is(DISK, TABLE, 0)]);
    let daemons = conclude(Some((&both, &fuse)), (&both, &fuse));
    let [thread] = daemons[0].threads.as_slice() else {
        panic!("{daemons:?}");
    };
    assert_eq!((thread.task.key.tid.0, thread.evidence), (3, OnlyThread));
    let alone = look(&[itself]);
    let daemons = conclude(Some((&alone, &fuse)), (&alone, &fuse));
    let [thread] = daemons[0].threads.as_slice() else {
        panic!("{daemons:?}");
    };
    assert_eq!((thread.task.key.tid.0, thread.serves), (2, Some(Certain)));
}

#[test]
fn one_look_is_sure_of_nothing_and_what_is_new_does_not_stand() {
    let sight = look(&[Is(DISK, TABLE, 0)]);
    let fuse = seen(&[0], true);
    let daemons = conclude(None, (&sight, &fuse));
    assert!(!daemons[0].clients[0].stood);
    assert_eq!(daemons[0].threads[0].serves, Some(Possible));
    let nobody = seen(&[], true);
    assert_eq!(conclude(Some((&sight, &nobody)), (&sight, &fuse)), []);
}
