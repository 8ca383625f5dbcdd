use proptest::prelude::*;

use super::*;
use crate::{
    daemon::{Client, ServesEvidence},
    lock::{Confidence, LockMode, Stacks},
    report::example::{self, holder, inode_lock, task, waiter},
    task::Tid,
};

/// A lock with these holders and waiters, named by tid.
fn lock(address: u64, holders: &[u32], waiters: &[u32]) -> Lock {
    let mut lock = inode_lock(address, "/x");
    let stack = Stacks::default().intern(Vec::new());
    lock.holders = holders
        .iter()
        .map(|&tid| holder(task(tid, tid, "t"), LockMode::Read, stack))
        .collect();
    lock.waiters = (1..)
        .zip(waiters)
        .map(|(position, &tid)| {
            waiter(
                position,
                task(tid, tid, "t"),
                LockMode::Write,
                1,
                "f",
                stack,
            )
        })
        .collect();
    lock
}

fn of(locks: &[Lock]) -> Vec<Chain> {
    chains(locks, &[])
}

/// A path in short: tids, and addresses with an `L`.
fn path(steps: &[Step]) -> Vec<String> {
    steps
        .iter()
        .map(|step| match step {
            Step::Task(task) => task.key.tid.to_string(),
            Step::Lock(address) => format!("L{:x}", address.0),
            Step::Daemon(task) => format!("D{}", task.key.tid),
        })
        .collect()
}

#[test]
fn the_incident_has_one_root() {
    let chains = of(&example::incident().locks);
    assert_eq!(chains.len(), 1);
    assert_eq!(chains[0].root.key.tid, Tid(4_442));
    assert_eq!(chains[0].blocked_tasks, 1_469);
    assert!(!chains[0].cycle);
}

#[test]
fn a_holder_that_waits_is_followed_to_the_root() {
    // 1 holds a; 2 waits for a and holds b; 3 and 4 wait for b, 5 for a.
    let chains = of(&[lock(0xb00, &[2], &[3, 4]), lock(0xa00, &[1], &[2, 5])]);
    assert_eq!(chains.len(), 1);
    assert_eq!(path(&chains[0].path), ["Lb00", "2", "La00", "1"]);
    assert_eq!(chains[0].blocked_tasks, 4);
    assert_eq!(path(&chains[0].route(LockAddr(0xa00)).unwrap()), ["1"]);
    assert_eq!(chains[0].locks().count(), 2);
}

#[test]
fn several_branches_make_one_chain_for_their_root() {
    let chains = of(&[
        lock(0xa00, &[1], &[2, 3]),
        lock(0xb00, &[2], &[4]),
        lock(0xc00, &[3], &[5, 6]),
    ]);
    assert_eq!(chains.len(), 1);
    assert_eq!(path(&chains[0].path), ["Lc00", "3", "La00", "1"]);
    assert_eq!(chains[0].blocked_tasks, 5);
    assert_eq!(
        path(&chains[0].route(LockAddr(0xb00)).unwrap()),
        ["2", "La00", "1"]
    );
}

#[test]
fn every_reader_that_waits_for_nothing_is_a_root() {
    let chains = of(&[lock(0xa00, &[1, 2], &[3])]);
    assert_eq!(
        chains.iter().map(|c| c.root.key.tid.0).collect::<Vec<_>>(),
        [1, 2]
    );
}

#[test]
fn roots_that_keep_the_same_locks_have_chains_of_their_own() {
    // 1 and 2 hold a and b, 3 holds b alone; 4 waits for a and holds c, 5 waits for b, 6 for c.
    let locks = [
        lock(0xa00, &[1, 2], &[4]),
        lock(0xb00, &[1, 2, 3], &[5]),
        lock(0xc00, &[4], &[6]),
    ];
    let mut chains = of(&locks);
    chains.sort_by_key(|chain| chain.root.key);
    let paths: Vec<_> = chains.iter().map(|chain| path(&chain.path)).collect();
    assert_eq!(paths[0], ["Lc00", "4", "La00", "1"]);
    assert_eq!(paths[1], ["Lc00", "4", "La00", "2"]);
    assert_eq!(paths[2], ["Lb00", "3"]);
    let second = &chains[1];
    assert_eq!((second.root.key.tid.0, second.blocked_tasks), (2, 3));
    assert_eq!(path(&second.route(LockAddr(0xb00)).unwrap()), ["2"]);
    let far = second.route(LockAddr(0xc00)).unwrap();
    assert_eq!(path(&far), ["4", "La00", "2"]);
    assert_eq!(chains[2].route(LockAddr(0xa00)), None);
}

#[test]
fn a_circle_is_told_once_and_nothing_else_of_it() {
    // 1 → a → 2 → b → 1, and 3 waits for a.
    let chains = of(&[lock(0xa00, &[2], &[1, 3]), lock(0xb00, &[1], &[2])]);
    assert_eq!(chains.len(), 1);
    assert!(chains[0].cycle);
    assert_eq!(path(&chains[0].path), ["1", "La00", "2", "Lb00", "1"]);
    assert_eq!(chains[0].blocked_tasks, 3);
}

#[test]
fn a_recursive_reader_is_a_circle_of_one() {
    let chains = of(&[lock(0xa00, &[1], &[2, 1])]);
    assert_eq!(chains.len(), 1);
    assert!(chains[0].cycle);
    assert_eq!(path(&chains[0].path), ["1", "La00", "1"]);
    assert_eq!(chains[0].blocked_tasks, 2);
}

#[test]
fn a_chain_goes_on_through_a_daemon() {
    // 1 holds a; the daemon 7 waits for a and owes 2 an answer; 2 holds b, 3 waits for b.
    let daemon = daemon_like(&lock(0xd00, &[7], &[2]));
    let locks = [lock(0xa00, &[1], &[7]), lock(0xb00, &[2], &[3])];
    let chains = chains(&locks, std::slice::from_ref(&daemon));
    assert_eq!(chains.len(), 1);
    assert_eq!(path(&chains[0].path), ["Lb00", "2", "D7", "La00", "1"]);
    assert_eq!(chains[0].blocked_tasks, 3);
}

#[test]
fn a_daemon_that_waits_for_its_client_makes_a_circle() {
    let daemon = daemon_like(&lock(0xd00, &[7], &[2]));
    let locks = [lock(0xa00, &[2], &[7, 3])];
    let chains = chains(&locks, std::slice::from_ref(&daemon));
    assert_eq!(chains.len(), 1);
    assert!(chains[0].cycle);
    assert_eq!(path(&chains[0].path), ["2", "D7", "La00", "2"]);
    assert_eq!(chains[0].blocked_tasks, 3);
}

#[test]
fn clients_of_a_daemon_alone_are_no_chain() {
    let daemon = daemon_like(&lock(0xd00, &[7], &[2]));
    assert_eq!(chains(&[], std::slice::from_ref(&daemon)), []);
}

#[test]
fn a_chain_ends_at_a_client_of_a_daemon_that_nobody_is_known_to_serve() {
    let mut daemon = daemon_like(&lock(0xd00, &[7], &[2]));
    daemon.threads[0].serves = Some(Confidence::Possible);
    let chains = chains(&[lock(0xa00, &[2], &[3])], std::slice::from_ref(&daemon));
    assert_eq!(chains.len(), 1);
    assert_eq!(chains[0].root.key.tid, Tid(2));
}

#[test]
fn possible_holders_and_granted_waiters_are_not_followed() {
    let mut possible = lock(0xa00, &[1], &[2]);
    possible.holders[0].confidence = Confidence::Possible;
    assert_eq!(of(&[possible]), []);

    // 1 holds a by a grant: it is still in the queue, but waits no more.
    let mut granted = lock(0xa00, &[1], &[2, 1]);
    granted.waiters[1].granted = true;
    let chains = of(&[granted]);
    assert_eq!(chains.len(), 1);
    assert!(!chains[0].cycle);
    assert_eq!(chains[0].blocked_tasks, 1);
}

#[test]
fn a_lock_without_a_known_holder_is_in_no_chain() {
    assert_eq!(of(&example::unknown_holder().locks), []);
}

/// The lock itself and all those that its holders wait for, directly or through others.
fn ahead<'a>(locks: &'a [Lock], lock: &'a Lock) -> Vec<&'a Lock> {
    let mut ahead = vec![lock];
    let mut next = 0;
    while next < ahead.len() {
        for holder in ahead[next].holders.iter().filter(|holder| is_known(holder)) {
            for lock in locks {
                if blocked(lock).any(|waiter| waiter.task.key == holder.task.key)
                    && ahead.iter().all(|known| known.address != lock.address)
                {
                    ahead.push(lock);
                }
            }
        }
        next += 1;
    }
    ahead
}

prop_compose! {
    fn any_locks()(
        parts in prop::collection::vec(
            (
                prop::collection::vec((0..12_u32, 0..3_u8), 0..4),
                prop::collection::vec((0..12_u32, any::<bool>()), 0..6),
            ),
            0..10,
        )
    ) -> Vec<Lock> {
        (1..)
            .zip(parts)
            .map(|(number, (holders, waiters))| {
                let holding: Vec<u32> = holders.iter().map(|&(tid, _)| tid).collect();
                let waiting: Vec<u32> = waiters.iter().map(|&(tid, _)| tid).collect();
                let mut lock = lock(number * 0x100, &holding, &waiting);
                for (holder, (_, confidence)) in lock.holders.iter_mut().zip(&holders) {
                    holder.confidence = match confidence {
                        0 => Confidence::Possible,
                        1 => Confidence::Likely,
                        _ => Confidence::Certain,
                    };
                }
                for (waiter, (_, granted)) in lock.waiters.iter_mut().zip(&waiters) {
                    waiter.granted = *granted;
                }
                lock
            })
            .collect()
    }
}

proptest! {
    #[test]
    fn chains_hold_what_they_promise(locks in any_locks()) {
        let waiting: BTreeSet<TaskKey> = locks
            .iter()
            .flat_map(blocked)
            .map(|waiter| waiter.task.key)
            .collect();
        let holds = |task: &TaskName, address: LockAddr| {
            locks
                .iter()
                .filter(|lock| lock.address == address)
                .flat_map(|lock| &lock.holders)
                .any(|holder| is_known(holder) && holder.task.key == task.key)
        };
        let waits = |task: &TaskName, address: LockAddr| {
            locks
                .iter()
                .filter(|lock| lock.address == address)
                .flat_map(blocked)
                .any(|waiter| waiter.task.key == task.key)
        };
        let chains = of(&locks);
        for chain in &chains {
            prop_assert!(chain.blocked_tasks > 0);
            prop_assert!(chain.blocked_tasks as usize <= waiting.len());
            prop_assert_eq!(chain.cycle, waiting.contains(&chain.root.key));
            // Every link of the path is in the survey; the path ends with the root.
            prop_assert_eq!(chain.path.last(), Some(&Step::Task(chain.root.clone())));
            for pair in chain.path.windows(2) {
                match pair {
                    [Step::Task(task), Step::Lock(lock)] => prop_assert!(waits(task, *lock)),
                    [Step::Lock(lock), Step::Task(task)] => prop_assert!(holds(task, *lock)),
                    _ => prop_assert!(false, "tasks and locks do not alternate"),
                }
            }
            for lock in chain.locks() {
                prop_assert!(chain.route(lock).is_some());
            }
        }
        prop_assert!(
            chains.windows(2).all(|pair| pair[0].blocked_tasks >= pair[1].blocked_tasks)
        );
        for lock in &locks {
            let in_chain = chains.iter().any(|chain| chain.route(lock.address).is_some());
            let known = lock.holders.iter().any(is_known);
            prop_assert!(known || !in_chain);
            // The way from a lock ends at a root, in a circle, or at an unknown holder.
            if blocked(lock).next().is_some() && ahead(&locks, lock).iter().all(|lock| {
                lock.holders.iter().any(is_known)
            }) {
                prop_assert!(in_chain);
            }
        }
    }

    #[test]
    fn the_order_of_the_survey_makes_no_difference(
        (locks, shuffled) in any_locks()
            .prop_flat_map(|locks| (Just(locks.clone()), Just(locks).prop_shuffle()))
    ) {
        prop_assert_eq!(of(&locks), of(&shuffled));
    }

    /// Against the closure of "waits for", computed the slow way.
    #[test]
    fn the_cycles_are_the_strongly_connected_components(locks in any_locks()) {
        const TASKS: usize = 12;
        let mut waits_for = [[false; TASKS]; TASKS];
        for lock in &locks {
            for waiter in blocked(lock) {
                for holder in lock.holders.iter().filter(|holder| is_known(holder)) {
                    let from = waiter.task.key.tid.0 as usize;
                    waits_for[from][holder.task.key.tid.0 as usize] = true;
                }
            }
        }
        for via in 0..TASKS {
            for from in 0..TASKS {
                for to in 0..TASKS {
                    waits_for[from][to] |= waits_for[from][via] && waits_for[via][to];
                }
            }
        }
        let lowest_of_its_component = |task: usize| {
            waits_for[task][task]
                && (0..task).all(|lower| !(waits_for[task][lower] && waits_for[lower][task]))
        };
        let expected: Vec<usize> = (0..TASKS).filter(|&task| lowest_of_its_component(task)).collect();
        let mut found: Vec<usize> = of(&locks)
            .into_iter()
            .filter(|chain| chain.cycle)
            .map(|chain| chain.root.key.tid.0 as usize)
            .collect();
        found.sort_unstable();
        prop_assert_eq!(found, expected);
    }

    /// A daemon is to the graph what a lock is whose holder is the thread that serves it.
    #[test]
    fn a_daemon_links_as_a_lock_does(locks in any_locks(), as_locks in any_locks()) {
        let mut all = locks.clone();
        let mut daemons = Vec::new();
        for mut lock in as_locks {
            // Behind all real ones, as daemons are.
            lock.address.0 += 0x10_0000;
            lock.waiters.retain(|waiter| !waiter.granted);
            let daemon = daemon_like(&lock);
            // A chain ends at a client whose server is not known, but not at a waiter
            // whose holder is not.
            if daemon.serving().next().is_some() {
                all.push(lock);
            }
            daemons.push(daemon);
        }
        let is_real = |address: LockAddr| address.0 < 0x10_0000;
        let expected: Vec<(u32, u32, bool)> = of(&all)
            .iter()
            .filter(|chain| chain.cycle || chain.locks().any(is_real))
            .map(summary)
            .collect();
        let found: Vec<(u32, u32, bool)> = chains(&locks, &daemons).iter().map(summary).collect();
        prop_assert_eq!(found, expected);
        for chain in chains(&locks, &daemons) {
            let last = chain.path.last();
            let ends_with_root = matches!(
                last,
                Some(Step::Task(task) | Step::Daemon(task)) if task.key == chain.root.key
            );
            prop_assert!(ends_with_root);
            for lock in chain.locks() {
                prop_assert!(chain.route(lock).is_some());
            }
        }
    }
}

fn summary(chain: &Chain) -> (u32, u32, bool) {
    (chain.root.key.tid.0, chain.blocked_tasks, chain.cycle)
}

/// A daemon whose clients are the lock's waiters and whose threads are its holders.
fn daemon_like(lock: &Lock) -> Daemon {
    Daemon {
        connection: ConnectionAddr(lock.address.0),
        number: None,
        name: "a daemon".to_owned(),
        clients: blocked(lock)
            .map(|waiter| Client {
                task: waiter.task.clone(),
                wait: waiter.wait,
                is_sent: true,
                killable: false,
                stood: true,
                stack: waiter.stack,
            })
            .collect(),
        threads: lock
            .holders
            .iter()
            .map(|holder| DaemonThread {
                task: holder.task.clone(),
                serves: Some(holder.confidence),
                evidence: ServesEvidence::OnlyThread,
                state: holder.state,
                stuck: holder.stuck.clone(),
                stood: true,
                stack: holder.stack,
            })
            .collect(),
    }
}
