use super::*;
use crate::{
    detect::Thresholds,
    kernel_log::{KernelDetectors, KernelLog, Message, Said},
    lock::{Confidence, LockAddr, LockMode, LockState},
    lockup::{Context, Lockup, LockupKind},
    report::example::{self, SEC},
    sleeper::{Awaited, Sleeper},
    survey::Survey,
    task::{Stuck, StuckClass, Tid},
};

/// `mkdir[811]` holds a directory for write; `stat[820]` has waited for 800 s, `ls[821]`, which
/// is killable, for 700, and `mkdir[822]` for 600.
fn directory() -> Survey {
    let mut survey = example::write_held_directory();
    for waiter in &mut survey.locks[0].waiters {
        waiter.wait = Nanos(waiter.wait.0 * 100);
    }
    survey.kernel_log = KernelLog {
        messages: Vec::new(),
        detectors: Some(KernelDetectors {
            hung_task: Some(Nanos(120 * SEC)),
            hung_task_warnings: Some(8),
            soft_lockup: Some(Nanos(20 * SEC)),
            hard_lockup: Some(Nanos(10 * SEC)),
        }),
        unread: None,
    };
    survey
}

fn settings(survey: &mut Survey) -> &mut KernelDetectors {
    survey.kernel_log.detectors.as_mut().unwrap()
}

fn logged(comm: &str, tid: u32) -> LoggedTask {
    LoggedTask {
        tid: Tid(tid),
        comm: comm.to_owned(),
    }
}

/// Puts a message into the log, printed so many seconds before the survey.
fn print(survey: &mut Survey, seconds_ago: u64, said: Said) {
    let at_ns = survey.taken_at_ns - seconds_ago * SEC;
    let messages = &mut survey.kernel_log.messages;
    messages.push(Message { at_ns, said });
    messages.sort_by_key(|message| message.at_ns);
}

fn hung(comm: &str, tid: u32) -> Said {
    Said::HungTask {
        task: logged(comm, tid),
        io_wait: false,
        longer_than: Nanos(120 * SEC),
    }
}

fn owned(tid: u32, lock: &str, owner: Option<(&str, u32)>, as_reader: bool) -> Said {
    Said::Blocker {
        task: logged("stat", tid),
        lock: lock.to_owned(),
        owner: owner.map(|(comm, tid)| logged(comm, tid)),
        as_reader,
    }
}

fn of(survey: &Survey, tids: &[u32], lock: Option<LockAddr>) -> Option<String> {
    let scene = Scene::new(survey, &[], Thresholds::of_waits(Nanos(SEC)));
    let lock = lock.and_then(|address| survey.locks.iter().find(|lock| lock.address == address));
    let queued = survey.locks.iter().flat_map(|lock| &lock.waiters);
    let asleep = queued.map(|waiter| Sleeper {
        task: waiter.task.clone(),
        killable: waiter.killable,
        io_wait: false,
        asleep: waiter.wait,
        awaits: Awaited::Unknown,
        stuck: Stuck {
            class: StuckClass::Unknown,
            frame: None,
            since: None,
            device: None,
        },
        stack: waiter.stack,
    });
    let mut sleepers: Vec<_> = asleep.chain(survey.sleepers.iter().cloned()).collect();
    sleepers.retain(|sleeper| tids.contains(&sleeper.task.key.tid.0));
    // What is known of the sleep itself counts more than the place in a queue.
    sleepers.reverse();
    sleepers.dedup_by_key(|sleeper| sleeper.task.key.tid);
    let sleepers: Vec<&Sleeper> = sleepers.iter().collect();
    of_hung_tasks(&scene, &sleepers, lock)
}

/// What is said of those that wait for the directory.
fn said(survey: &Survey, tids: &[u32]) -> String {
    of(survey, tids, Some(survey.locks[0].address)).unwrap()
}

#[test]
fn the_kernel_named_them_too() {
    let mut survey = directory();
    print(&mut survey, 40, hung("stat", 820));
    assert_eq!(
        said(&survey, &[820]),
        "the kernel's hung-task detector named it, 40s ago"
    );
    assert_eq!(
        said(&survey, &[820, 821]),
        "the kernel's hung-task detector named one of them, stat[820], 40s ago; it leaves \
         killable sleepers out"
    );
    assert_eq!(
        said(&survey, &[820, 822]),
        "the kernel's hung-task detector named one of them, stat[820], 40s ago"
    );
    settings(&mut survey).hung_task_warnings = Some(0);
    assert_eq!(
        said(&survey, &[820, 822]),
        "the kernel's hung-task detector named one of them, stat[820], 40s ago; its warnings \
         are used up (kernel.hung_task_warnings = 0)"
    );
    // It names them again and again: the first time counts.
    print(&mut survey, 160, hung("stat", 820));
    print(&mut survey, 30, hung("mkdir", 822));
    assert_eq!(
        said(&survey, &[820, 822]),
        "the kernel's hung-task detector named all of them, first stat[820], 2m40s ago"
    );
    assert_eq!(
        said(&survey, &[820, 821, 822]),
        "the kernel's hung-task detector named 2 of the 3, first stat[820], 2m40s ago; it \
         leaves killable sleepers out"
    );
}

#[test]
fn a_message_of_another_sleep_does_not_count() {
    let mut survey = directory();
    // Another task of that number, or an earlier sleep of the same.
    print(&mut survey, 810, hung("stat", 820));
    print(&mut survey, 40, hung("dd", 99));
    let expected =
        "the kernel's hung-task detector named none of them in what the kernel's log still has";
    assert_eq!(said(&survey, &[820]), expected);
    // As the sleep itself tells, where that is known.
    let mut survey = directory();
    print(&mut survey, 40, hung("stat", 820));
    let waiter = survey.locks[0].waiters[0].clone();
    survey.sleepers.push(Sleeper {
        task: waiter.task,
        killable: false,
        io_wait: false,
        asleep: Nanos(20 * SEC),
        awaits: Awaited::Lock(survey.locks[0].address),
        stuck: survey.locks[0].holders[0].stuck.clone(),
        stack: waiter.stack,
    });
    let expected = "the kernel's hung-task detector said nothing yet: its time is 2m00s";
    assert_eq!(said(&survey, &[820]), expected);
}

#[test]
fn it_is_silent_for_a_reason() {
    let with = |change: fn(&mut Survey)| {
        let mut survey = directory();
        change(&mut survey);
        said(&survey, &[820, 821, 822])
    };
    assert_eq!(
        with(|survey| settings(survey).hung_task = None),
        "the kernel's hung-task detector is off (kernel.hung_task_timeout_secs = 0), or not \
         built in"
    );
    assert_eq!(
        with(|survey| settings(survey).hung_task_warnings = Some(0)),
        "the kernel's hung-task detector said nothing: its warnings are used up \
         (kernel.hung_task_warnings = 0)"
    );
    assert_eq!(
        with(|survey| settings(survey).hung_task = Some(Nanos(801 * SEC))),
        "the kernel's hung-task detector said nothing yet: its time is 13m21s"
    );
    assert_eq!(
        with(|survey| settings(survey).hung_task = Some(Nanos(500 * SEC))),
        "the kernel's hung-task detector said nothing yet: its time is 8m20s, from when it \
         first saw them asleep"
    );
    assert_eq!(
        with(|survey| survey.kernel_log.unread = Some("no permission".to_owned())),
        "what the kernel's hung-task detector said could not be read: no permission"
    );
    assert_eq!(
        said(&directory(), &[821]),
        "the kernel's hung-task detector leaves killable sleepers out"
    );
}

#[test]
fn where_nothing_is_known_nothing_is_said() {
    // How the detectors are set was not read.
    assert_eq!(of(&example::write_held_directory(), &[820], None), None);
    // Of a task that does not sleep.
    assert_eq!(of(&directory(), &[5], None), None);
    assert_eq!(of(&directory(), &[], None), None);
}

/// What is said of an owner that the kernel names.
fn of_owner(survey: &mut Survey, owner: Said) -> String {
    print(survey, 41, hung("stat", 820));
    print(survey, 40, owner);
    let said = said(survey, &[820]);
    let (_, rest) = said.split_once("named it, 41s ago; ").unwrap();
    rest.to_owned()
}

#[test]
fn the_owner_that_the_kernel_names_is_ours() {
    let owner = owned(820, "rw-semaphore", Some(("mkdir", 811)), false);
    assert_eq!(
        of_owner(&mut directory(), owner),
        "it names mkdir[811] as the likely owner of the rw-semaphore, and so does lockwatch"
    );
    let unknown = owned(820, "rw-semaphore", None, false);
    assert_eq!(
        of_owner(&mut directory(), unknown),
        "it found no owner of the rw-semaphore"
    );
}

#[test]
fn the_owner_that_the_kernel_names_holds_nothing() {
    let reader = owned(820, "rw-semaphore", Some(("cat", 99)), true);
    assert_eq!(
        of_owner(&mut directory(), reader),
        "it names reader cat[99] as the likely owner of the rw-semaphore, who does not hold it \
         now by lockwatch's evidence: the lock's owner word keeps one reader's name, and may \
         keep it when that one is gone"
    );
    let last = owned(820, "semaphore", Some(("cat", 99)), false);
    assert_eq!(
        of_owner(&mut directory(), last),
        "it names cat[99] as the one that took the semaphore last, who does not hold it now by \
         lockwatch's evidence: a semaphore does not know who released it"
    );
}

#[test]
fn who_may_hold_it_is_not_said_to_hold_nothing() {
    let owner = || owned(820, "rw-semaphore", Some(("cat", 99)), true);
    const OPEN: &str =
        "it names reader cat[99] as the likely owner of the rw-semaphore: not confirmed";
    // Two readers, of whom one is known.
    let mut survey = directory();
    let lock = &mut survey.locks[0];
    lock.state = LockState::ReadHeld;
    lock.reader_count = Some(2);
    lock.holders[0].mode = LockMode::Read;
    assert_eq!(of_owner(&mut survey, owner()), OPEN);
    // The only reader: then it is not cat.
    let mut survey = directory();
    let lock = &mut survey.locks[0];
    lock.state = LockState::ReadHeld;
    lock.reader_count = Some(1);
    lock.holders[0].mode = LockMode::Read;
    assert!(of_owner(&mut survey, owner()).contains("does not hold it now"));
    // Our own name is not certain either; or it has changed hands meanwhile.
    let mut survey = directory();
    survey.locks[0].holders[0].confidence = Confidence::Likely;
    assert_eq!(of_owner(&mut survey, owner()), OPEN);
    let mut survey = directory();
    survey.locks[0].holders[0].stood = false;
    assert_eq!(of_owner(&mut survey, owner()), OPEN);
    let mut survey = directory();
    survey.locks[0].holders.clear();
    assert_eq!(of_owner(&mut survey, owner()), OPEN);
    // It is ours, but only possible.
    let mut survey = directory();
    survey.locks[0].holders[0].confidence = Confidence::Possible;
    let ours = owned(820, "rw-semaphore", Some(("mkdir", 811)), false);
    assert!(of_owner(&mut survey, ours).ends_with(": not confirmed"));
    // The task waits for another lock.
    let mut survey = directory();
    print(&mut survey, 40, owner());
    print(&mut survey, 41, hung("stat", 820));
    let stat = survey.locks[0].waiters.remove(0);
    survey.sleepers.push(Sleeper {
        task: stat.task,
        killable: false,
        io_wait: false,
        asleep: Nanos(800 * SEC),
        awaits: Awaited::Unknown,
        stuck: survey.locks[0].holders[0].stuck.clone(),
        stack: stat.stack,
    });
    let said = said(&survey, &[820, 822]);
    assert!(
        said.ends_with("stat[820] waits for: not confirmed"),
        "{said}"
    );
}

fn lockup(kind: LockupKind, seconds: u64) -> Lockup {
    Lockup {
        cpu: 1,
        kind,
        lasted: Nanos(seconds * SEC),
        task: Some(example::task(412, 412, "spin")),
        context: Context::Task,
        is_task_interrupted: false,
        program: None,
        profile: Vec::new(),
        samples: 0,
        returns: None,
        starved: Vec::new(),
        sharers: Vec::new(),
        unknown: Vec::new(),
    }
}

fn of_cpu(survey: &Survey, lockup: &Lockup) -> String {
    let scene = Scene::new(survey, &[], Thresholds::of_waits(Nanos(SEC)));
    of_lockup(&scene, lockup).unwrap()
}

fn soft(cpu: u32, comm: &str, tid: u32) -> Said {
    Said::SoftLockup {
        cpu,
        stuck: Nanos(22 * SEC),
        task: logged(comm, tid),
    }
}

#[test]
fn the_kernel_says_the_same_of_a_cpu() {
    let mut survey = directory();
    print(&mut survey, 3, soft(1, "spin", 412));
    assert_eq!(
        of_cpu(&survey, &lockup(LockupKind::Soft, 25)),
        "the kernel says the same: soft lockup of CPU 1, stuck for 22s, in spin[412], 3s ago"
    );
    let mut other = lockup(LockupKind::Soft, 25);
    other.task = Some(example::task(7, 7, "cat"));
    assert_eq!(
        of_cpu(&survey, &other),
        "the kernel says the same: soft lockup of CPU 1, stuck for 22s, in spin[412], 3s ago; \
         it was in another task then than cat[7]"
    );
    assert_eq!(
        of_cpu(&survey, &lockup(LockupKind::Hard, 25)),
        "the kernel says otherwise: soft lockup of CPU 1, stuck for 22s, in spin[412], 3s ago"
    );
    // The one may have followed the other.
    let followed = of_cpu(&survey, &lockup(LockupKind::Hard, 3));
    assert!(followed.contains("said nothing yet"), "{followed}");
    let hard = Said::HardLockup {
        cpu: 1,
        seen_by: Some(0),
    };
    print(&mut survey, 2, hard);
    print(&mut survey, 1, soft(1, "spin", 412));
    assert_eq!(
        of_cpu(&survey, &lockup(LockupKind::Hard, 25)),
        "the kernel says the same: hard lockup of CPU 1, seen by CPU 0, 2s ago"
    );
}

#[test]
fn a_message_of_another_lockup_does_not_count() {
    let nothing = "the kernel's soft-lockup watchdog said nothing of CPU 1";
    let long = lockup(LockupKind::Soft, 60);
    let mut survey = directory();
    print(&mut survey, 3, soft(0, "spin", 412));
    print(&mut survey, 100, soft(1, "spin", 412));
    print(&mut survey, 63, soft(1, "cat", 7));
    assert_eq!(of_cpu(&survey, &long), nothing);
    // Of the same task, so shortly before we began that it is the same lockup.
    print(&mut survey, 80, soft(1, "spin", 412));
    assert!(of_cpu(&survey, &long).contains("says the same"));
}

#[test]
fn the_watchdogs_are_silent_for_a_reason() {
    let mut survey = directory();
    assert_eq!(
        of_cpu(&survey, &lockup(LockupKind::Soft, 15)),
        "the kernel's soft-lockup watchdog said nothing yet: its time is 20s"
    );
    assert_eq!(
        of_cpu(&survey, &lockup(LockupKind::Soft, 22)),
        "the kernel's soft-lockup watchdog said nothing yet: its time is 20s, and it may take \
         until 24s"
    );
    assert_eq!(
        of_cpu(&survey, &lockup(LockupKind::Hard, 22)),
        "the kernel's hard-lockup watchdog said nothing yet: its time is 10s, and it may take \
         until 24s"
    );
    settings(&mut survey).hard_lockup = None;
    assert_eq!(
        of_cpu(&survey, &lockup(LockupKind::Hard, 22)),
        "the kernel's hard-lockup watchdog is off (kernel.watchdog, kernel.nmi_watchdog or \
         kernel.watchdog_thresh = 0), or not built in"
    );
    survey.kernel_log.unread = Some("no permission".to_owned());
    assert_eq!(
        of_cpu(&survey, &lockup(LockupKind::Soft, 60)),
        "what the kernel's soft-lockup watchdog said could not be read: no permission"
    );
    survey.kernel_log.detectors = None;
    let scene = Scene::new(&survey, &[], Thresholds::of_waits(Nanos(SEC)));
    assert_eq!(of_lockup(&scene, &lockup(LockupKind::Soft, 60)), None);
}
