//! Reports of hosts where very many tasks wait: no step may take the square of their number.

use std::time::Duration;

use super::{
    dot,
    example::{self, MS, SEC, holder, incident, mmap_lock, survey, task, waiter},
    folded,
    over_time::Findings,
    text::{self, Style},
};
use crate::{
    lock::{Lock, LockMode, Stacks},
    sleeper::{Awaited, Sleeper},
    survey::Survey,
};

/// Tasks that wait.
const MANY: u32 = 20_000;

/// CPU time: far more than a report takes that is made in one pass, and far less than one
/// that is not, without optimization.
const BOUND: Duration = Duration::from_secs(20);

/// Makes every report of a survey, and says how many chains there are.
fn report(survey: &Survey) -> usize {
    let began = cpu_time();
    let report = example::report(survey, SEC);
    let mut out = Vec::new();
    text::write_report(
        &mut out,
        &report,
        Style {
            width: 120,
            color: false,
        },
    )
    .unwrap();
    dot::write_report(&mut out, &report).unwrap();
    folded::write_report(&mut out, &report).unwrap();
    let took = cpu_time() - began;
    assert!(took < BOUND, "{took:?}");
    report.chains.len()
}

/// What this thread has used: the machine may have other work.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn readers(lock: &mut Lock, count: u32) {
    let read = lock.waiters[1].clone();
    lock.waiters.truncate(1);
    lock.waiters.extend((0..count).map(|number| {
        let mut reader = read.clone();
        reader.position = number + 2;
        reader.task = task(100_000 + number, 100_000 + number, "ps");
        reader
    }));
}

#[test]
fn very_many_waiters() {
    let mut survey = incident();
    readers(&mut survey.locks[0], MANY);
    assert_eq!(report(&survey), 1);
}

#[test]
fn very_many_readers_that_hold_it() {
    let mut survey = incident();
    let lock = &mut survey.locks[0];
    readers(lock, MANY);
    let known = lock.holders[0].clone();
    let holders = (0..MANY).map(|number| {
        let mut holder = known.clone();
        holder.task = task(200_000 + number, 4_424, "filebeat");
        holder
    });
    lock.holders = holders.collect();
    lock.reader_count = Some(MANY);
    assert_eq!(report(&survey), MANY as usize);
}

#[test]
fn very_many_locks() {
    let mut stacks = Stacks::default();
    let stack = example::stack(&mut stacks, &["__schedule", "some_function"]);
    let locks = (0..MANY).map(|number| {
        let address = 0xffff_8881_0000_0070 + 0x1000 * u64::from(number);
        let mut lock = mmap_lock(address, number + 1, "java");
        let (owner, other) = (task(number + 1, 1, "a"), task(number + 100_000, 1, "b"));
        lock.holders.push(holder(owner, LockMode::Read, stack));
        let wait = 2 * SEC + u64::from(number) * MS;
        let caller = "vm_mmap_pgoff";
        lock.waiters
            .push(waiter(1, other, LockMode::Write, wait, caller, stack));
        lock
    });
    let mut survey = survey(locks.collect(), stacks);
    assert_eq!(report(&survey), MANY as usize);
    // And each has a task that hangs on it.
    let hung = example::hung_without_locks().sleepers.remove(0);
    let on_a_lock = |lock: &Lock| Sleeper {
        task: lock.waiters[0].task.clone(),
        awaits: Awaited::Lock(lock.address),
        stack,
        ..hung.clone()
    };
    survey.sleepers = survey.locks.iter().map(on_a_lock).collect();
    assert_eq!(report(&survey), MANY as usize);
}

#[test]
fn very_many_hanging_tasks_over_time() {
    let mut survey = example::hung_without_locks();
    let hung = survey.sleepers.remove(0);
    let alone = |number: u32| Sleeper {
        task: task(100_000 + number, 100_000 + number, "kworker"),
        awaits: Awaited::Function(format!("some_function_{number}")),
        ..hung.clone()
    };
    survey.sleepers = (0..MANY).map(alone).collect();
    let first = example::report(&survey, SEC);
    let mut rest = survey.clone();
    rest.sleepers.truncate(1);
    let second = example::report(&rest, SEC);
    let began = cpu_time();
    let mut findings = Findings::default();
    let at_ns = 1_000 * SEC;
    let (due, _) = findings.take(&survey, &first, |_| true, at_ns);
    assert_eq!(due.len(), MANY as usize);
    let (_, ended) = findings.take(&rest, &second, |_| true, at_ns + SEC);
    assert_eq!(ended.len(), MANY as usize - 1);
    let took = cpu_time() - began;
    assert!(took < BOUND / 10, "{took:?}");
}
