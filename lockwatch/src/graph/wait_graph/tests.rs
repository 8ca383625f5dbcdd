//! The graph under orderly and under hostile streams.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::{
    lock::LockMode,
    report::example,
    task::{TaskName, Tgid, Tid},
};

const THRESHOLD: Nanos = Nanos(100);

fn wait(tid: u32, lock: u64, since_ns: u64) -> Wait {
    Wait {
        task: TaskName {
            key: TaskKey {
                tid: Tid(tid),
                start_ns: 1,
            },
            tgid: Tgid(tid),
            comm: "task".into(),
        },
        lock: LockAddr(lock),
        kind: LockKind::Rwsem,
        mode: LockMode::Read,
        since_ns,
    }
}

fn end(wait: &Wait, at_ns: u64) -> Event {
    Event::WaitEnd {
        wait: wait.clone(),
        at_ns,
        acquired: true,
    }
}

fn scan(at_ns: u64, waits: &[Wait]) -> Scan {
    Scan {
        at_ns,
        waits: waits.to_vec(),
        complete: true,
    }
}

fn ended(changes: Vec<Change>) -> Vec<Stall> {
    changes
        .into_iter()
        .filter_map(|change| match change {
            Change::Ended(stall) => Some(*stall),
            Change::Began(_) => None,
        })
        .collect()
}

#[test]
fn a_stall_lasts_from_the_first_long_wait_to_the_end_of_the_last() {
    let mut graph = WaitGraph::new(THRESHOLD);
    let (first, second, short) = (wait(1, 7, 10), wait(2, 7, 50), wait(3, 7, 190));
    for begin in [&first, &second, &short] {
        graph.apply(&Event::WaitBegin(begin.clone()));
    }
    assert!(graph.advance(109).is_empty());
    assert!(matches!(graph.advance(110)[..], [Change::Began(_)]));
    assert!(graph.advance(111).is_empty(), "a stall begins once");
    graph.apply(&end(&first, 200));
    assert!(graph.advance(200).is_empty(), "the second is past it, too");
    graph.apply(&end(&second, 210));
    let stalls = ended(graph.advance(211));
    assert_eq!(stalls.len(), 1);
    assert_eq!(
        (stalls[0].length(), stalls[0].is_length_exact()),
        (Nanos(200), true)
    );
    assert_eq!(stalls[0].blocked.len(), 3);
    assert_eq!(graph.waits_for(LockAddr(7)), [&short]);
}

#[test]
fn a_stall_between_two_looks_at_the_clock_is_not_missed() {
    let mut graph = WaitGraph::new(THRESHOLD);
    graph.apply(&end(&wait(1, 7, 10), 150));
    let stalls = ended(graph.advance(160));
    assert_eq!(stalls.len(), 1);
    assert_eq!(stalls[0].length(), Nanos(140));
    assert_eq!(graph.waits().count(), 0);
}

#[test]
fn a_lost_end_leaves_a_length_that_says_so() {
    let mut graph = WaitGraph::new(THRESHOLD);
    graph.reconcile_waits(&scan(20, &[wait(1, 7, 10)]));
    graph.reconcile_waits(&scan(150, &[wait(1, 7, 10)]));
    graph.advance(150);
    graph.reconcile_waits(&scan(170, &[]));
    let stalls = ended(graph.advance(171));
    assert_eq!(
        (stalls[0].length(), stalls[0].is_length_exact()),
        (Nanos(160), false)
    );
}

#[test]
fn a_wait_that_may_have_been_short_is_no_stall() {
    let mut graph = WaitGraph::new(THRESHOLD);
    graph.reconcile_waits(&scan(90, &[wait(1, 7, 10)]));
    assert!(graph.advance(90).is_empty());
    graph.reconcile_waits(&scan(130, &[]));
    assert!(graph.advance(130).is_empty());
}

#[test]
fn a_reading_that_is_cut_short_ends_nothing() {
    let mut graph = WaitGraph::new(THRESHOLD);
    graph.apply(&Event::WaitBegin(wait(1, 7, 10)));
    graph.reconcile_waits(&Scan {
        complete: false,
        ..scan(50, &[wait(2, 7, 20)])
    });
    assert_eq!(graph.waits().count(), 2);
}

#[test]
fn a_reading_from_before_an_end_does_not_bring_the_wait_back() {
    let mut graph = WaitGraph::new(THRESHOLD);
    let over = wait(1, 7, 10);
    let stale = scan(100, std::slice::from_ref(&over));
    graph.apply(&end(&over, 150));
    graph.reconcile_waits(&stale);
    assert_eq!(graph.waits().count(), 0);
    assert_eq!(ended(graph.advance(300)).len(), 1, "and it stalled once");
    graph.reconcile_waits(&scan(310, &[]));
    graph.apply(&end(&over, 150));
    assert!(graph.advance(320).is_empty());
}

#[test]
fn a_new_lock_at_an_old_address_knows_nothing_of_the_old_one() {
    let mut graph = WaitGraph::new(THRESHOLD);
    let old = wait(1, 7, 10);
    graph.apply(&Event::WaitBegin(old.clone()));
    let Some(Change::Began(id)) = graph.advance(200).pop() else {
        panic!("no stall");
    };
    graph.apply(&end(&old, 210));
    graph.apply(&Event::WaitBegin(wait(2, 7, 220)));
    let stalls = ended(graph.advance(230));
    assert_eq!(
        stalls[0].blocked.len(),
        1,
        "who came later was not blocked by it"
    );
    assert!(graph.stall(id).is_none());
    assert!(graph.facts(LockAddr(7)).is_none());
    assert!(matches!(graph.advance(320)[..], [Change::Began(next)] if next != id));
}

#[test]
fn a_reused_tid_is_another_task() {
    let mut graph = WaitGraph::new(THRESHOLD);
    let mut reused = wait(1, 7, 20);
    reused.task.key.start_ns = 15;
    graph.apply(&Event::WaitBegin(wait(1, 7, 10)));
    graph.apply(&Event::WaitBegin(reused.clone()));
    graph.apply(&end(&wait(1, 7, 10), 30));
    assert_eq!(graph.waits_for(LockAddr(7)), [&reused]);
}

/// What happens in the kernel, and what becomes of the event that tells it.
#[derive(Clone, Debug)]
enum Step {
    Toggle { tid: u32, lock: u64, fate: Fate },
    DeliverLate,
    Advance,
    Reconcile,
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Arrives,
    ArrivesTwice,
    ArrivesLate,
    Lost,
}

fn step() -> impl Strategy<Value = Step> {
    let fate = prop_oneof![
        4 => Just(Fate::Arrives),
        1 => Just(Fate::ArrivesTwice),
        1 => Just(Fate::ArrivesLate),
        1 => Just(Fate::Lost),
    ];
    prop_oneof![
        12 => (0..6u32, 1..4u64, fate).prop_map(|(tid, lock, fate)| Step::Toggle { tid, lock, fate }),
        2 => Just(Step::DeliverLate),
        2 => Just(Step::Advance),
        1 => Just(Step::Reconcile),
    ]
}

proptest! {
    #[test]
    fn after_a_reconciliation_the_graph_is_the_kernel(steps in prop::collection::vec(step(), 0..200)) {
        let mut graph = WaitGraph::new(THRESHOLD);
        let mut kernel: BTreeMap<(u32, u64), Wait> = BTreeMap::new();
        let mut late = Vec::new();
        let mut began = HashSet::new();
        let mut now_ns = 0;
        for step in steps {
            now_ns += 17;
            match step {
                Step::Toggle { tid, lock, fate } => {
                    let event = if let Some(wait) = kernel.remove(&(tid, lock)) {
                        end(&wait, now_ns)
                    } else {
                        let wait = wait(tid, lock, now_ns);
                        kernel.insert((tid, lock), wait.clone());
                        Event::WaitBegin(wait)
                    };
                    match fate {
                        Fate::Arrives => graph.apply(&event),
                        Fate::ArrivesTwice => {
                            graph.apply(&event);
                            graph.apply(&event);
                        }
                        Fate::ArrivesLate => late.push(event),
                        Fate::Lost => {}
                    }
                }
                Step::DeliverLate => late.drain(..).rev().for_each(|event| graph.apply(&event)),
                Step::Advance => {
                    for change in graph.advance(now_ns) {
                        match change {
                            Change::Began(id) => prop_assert!(began.insert(id), "began twice"),
                            Change::Ended(stall) => {
                                prop_assert!(stall.length() >= THRESHOLD);
                                prop_assert!(!stall.blocked.is_empty());
                                prop_assert!(graph.stall(stall.id).is_none());
                            }
                        }
                    }
                    for stall in graph.stalls() {
                        let oldest = graph.waits_for(stall.lock)[0];
                        prop_assert!(Nanos::between(oldest.since_ns, now_ns) >= THRESHOLD);
                        prop_assert!(stall.began_ns <= oldest.since_ns);
                    }
                }
                Step::Reconcile => {
                    let waits: Vec<Wait> = kernel.values().cloned().collect();
                    graph.reconcile_waits(&scan(now_ns, &waits));
                    let mut known: Vec<Wait> = graph.waits().cloned().collect();
                    known.sort_by_key(|wait| (wait.task.key, wait.lock));
                    prop_assert_eq!(known, waits);
                }
            }
        }
        // Nobody waits any more: nothing is left behind.
        graph.reconcile_waits(&scan(now_ns + 1, &[]));
        graph.advance(now_ns + 2);
        prop_assert_eq!(graph.waits().count(), 0);
        prop_assert!(graph.locks.is_empty());
    }

    /// Whatever was lost or came late before it: after a survey the graph has the survey's
    /// holders, and afterwards never one that an event has shown to be over.
    #[test]
    fn after_a_survey_the_holders_are_the_surveys(
        events in prop::collection::vec((any::<bool>(), 0..400u64, any::<bool>()), 0..20),
        readers in 0..3usize,
    ) {
        const SURVEYED_NS: u64 = 200;
        let mut survey = example::incident();
        survey.taken_at_ns = SURVEYED_NS;
        let lock = &mut survey.locks[0];
        let holder = lock.holders[0].clone();
        lock.holders = (0..readers as u32)
            .map(|number| {
                let mut holder = holder.clone();
                holder.task.key.tid.0 += number;
                holder
            })
            .collect();
        if readers == 1 {
            lock.holders[0].mode = LockMode::Write;
        }
        let (address, holders) = (lock.address, lock.holders.clone());
        let survey = Arc::new(survey);

        let mut graph = WaitGraph::new(THRESHOLD);
        let stays = wait(99, address.0, 1);
        graph.apply(&Event::WaitBegin(stays));
        let (before, after): (Vec<_>, Vec<_>) =
            (0..).zip(events).partition(|&(_, (_, at_ns, _))| at_ns <= SURVEYED_NS);
        let event = |&(tid, (is_write, at_ns, acquired)): &(u32, (bool, u64, bool))| {
            let mut wait = wait(tid, address.0, at_ns / 2);
            wait.mode = if is_write { LockMode::Write } else { LockMode::Read };
            Event::WaitEnd { wait, at_ns, acquired }
        };
        before.iter().for_each(|it| graph.apply(&event(it)));
        graph.reconcile_survey(&survey);
        let held: Vec<_> = graph.held_by(address).cloned().collect();
        prop_assert_eq!(&held, &holders);

        after.iter().for_each(|it| graph.apply(&event(it)));
        let taken = after.iter().any(|&(_, (.., acquired))| acquired);
        let written = after.iter().any(|&(_, (is_write, _, acquired))| acquired && is_write);
        let expected: Vec<_> = holders
            .into_iter()
            .filter(|it| !(written || taken && it.mode == LockMode::Write))
            .collect();
        let held: Vec<_> = graph.held_by(address).cloned().collect();
        prop_assert_eq!(held, expected);
    }
}
