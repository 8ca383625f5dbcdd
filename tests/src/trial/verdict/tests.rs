//! A judge that never finds anything wrong is worthless: each kind of lie is
//! told here once.

use serde_json::{Value, json};

use super::*;
use crate::truth::Held;

const MS: u64 = 1_000_000;

/// Lockwatch ran from 1,000 to 1,100 ms.
const SPAN: Span = Span {
    begun_ns: 1000 * MS,
    ended_ns: 1100 * MS,
};

fn truth() -> Ready {
    let waiter = |position: u32, mode: &str, started: u64| {
        json!({"position": position, "tid": 20 + position, "tgid": 10, "comm": format!("lab-w{position}"),
               "mode": mode, "killable": true, "frame": "iterate_dir",
               "started_ns": started * MS, "queued_ns": (started + 5) * MS})
    };
    let decoy = |tid: i32, comm: &str, what: &str| json!({"tid": tid, "tgid": 10, "comm": comm, "what": what, "exited": false});
    serde_json::from_value(json!({
        "scenario": "inode-read-held", "pid": 10, "mount": "/mnt",
        "lock": {"kind": "rwsem", "class": "i_rwsem", "name": "i_rwsem of /mnt/dir", "path": "/dir", "ino": 2},
        "state": "read-held", "reader_count": 1,
        "holders": [{"tid": 11, "tgid": 10, "comm": "lab-holder", "mode": "read", "stuck": "fuse",
                     "frame": "request_wait_answer", "granted": false}],
        "waiters": [waiter(1, "write", 900), waiter(2, "read", 910)],
        "decoys": [decoy(31, "lab-d-other", "other-directory"), decoy(32, "lab-d-read", "other-file")],
        "ends_at_ns": 20_000 * MS
    }))
    .unwrap()
}

fn report() -> Value {
    let waiter = |position: u32, mode: &str, wait: u64| {
        json!({"position": position, "tid": 20 + position, "tgid": 10, "comm": format!("lab-w{position}"),
               "mode": mode, "wait_ns": wait * MS, "wait_source": "last-arrival", "killable": true,
               "granted": false, "stack": 0})
    };
    json!({
        "schema": "lockwatch.report/1", "duration_ns": 50 * MS,
        "coverage": {"source": "survey", "looks": 2, "tasks": 90, "degraded": []},
        "stacks": [["iterate_dir+0x1"], ["request_wait_answer+0x1", "fuse_readdir.isra.0+0x2"]],
        "locks": [{
            "id": "a", "kind": "rwsem", "class": "i_rwsem", "name": "i_rwsem of /mnt/dir",
            "object": {"inode": {"fstype": "fuse", "sb": "fuse", "ino": 2, "path": "/mnt/dir"}},
            "state": "read-held", "reader_count": 1, "spinners": [],
            "holders": [{"tid": 11, "tgid": 10, "comm": "lab-holder", "mode": "read", "cgroup": "/",
                         "confidence": "certain", "evidence": [{"kind": "hold-frame"}], "state": "S",
                         "stuck": {"class": "fuse", "since_ns": 180 * MS},
                         "held_ns": 180 * MS, "held_is_lower_bound": true, "stack": 1}],
            "waiters": [waiter(1, "write", 150), waiter(2, "read", 140)]
        }],
        "chains": [{"root": {"tid": 11, "comm": "lab-holder"}, "blocked_tasks": 2,
                    "path": [{"lock": "a"}, {"task": 11}], "sentence": "lab-holder[11] blocks 2 tasks"}],
        "findings": [
            {"detector": "convoy", "sentence": "1 reader waits", "locks": ["a"], "tasks": [21, 22]},
            {"detector": "long-wait", "sentence": "2 tasks wait for i_rwsem of /mnt/dir", "locks": ["a"], "tasks": [21, 22]}
        ]
    })
}

fn judge(report: Value) -> Verdict {
    judge_by(report, &truth())
}

fn judge_by(report: Value, truth: &Ready) -> Verdict {
    Verdict::on(&serde_json::from_value(report).unwrap(), truth, SPAN)
}

#[test]
fn the_truth_is_right() {
    let verdict = judge(report());
    assert_eq!(verdict.wrong, Vec::<String>::new());
    assert!(verdict.names_exactly_the_holders());
    assert_eq!(verdict.decoys_possible, 0);
}

/// A place in the report, the lie that is put there, and a word of the
/// complaint about it.
#[test]
fn every_lie_is_found() {
    let decoy = json!({"tid": 32, "tgid": 10, "comm": "lab-d-read", "mode": "read",
                       "confidence": "likely", "evidence": [{"kind": "hold-frame"}], "state": "S",
                       "stuck": {"class": "fuse"}});
    let lies = [
        ("/coverage/looks", json!(1), "looks"),
        ("/locks/0/class", json!("mmap_lock"), "0 locks are"),
        ("/locks/0/object/inode/ino", json!(3), "0 locks are"),
        (
            "/locks/0/object/inode/path",
            json!("/mnt/sibling"),
            "0 locks are",
        ),
        ("/locks/0/name", json!("i_rwsem of dir"), "named"),
        ("/locks/0/kind", json!("mutex"), "kind"),
        ("/locks/0/state", json!("write-held"), "state"),
        ("/locks/0/state", json!("inconsistent"), "state"),
        ("/locks/0/reader_count", json!(2), "readers"),
        ("/locks/0/reader_count", json!(null), "readers"),
        ("/locks/0/spinners", json!([99]), "spins"),
        ("/locks/0/holders", json!([]), "accused"),
        (
            "/locks/0/holders/0/confidence",
            json!("possible"),
            "accused",
        ),
        ("/locks/0/holders/0/tid", json!(12), "accused"),
        ("/locks/0/holders/0/tgid", json!(12), "accused"),
        ("/locks/0/holders/0/mode", json!("write"), "holds for"),
        ("/locks/0/holders/0/evidence", json!([]), "evidence"),
        (
            "/locks/0/holders/0/evidence/0/kind",
            json!("granted"),
            "granted",
        ),
        ("/locks/0/holders/0/state", json!("R"), "state R"),
        ("/locks/0/holders/0/stuck/class", json!("block-io"), "stuck"),
        (
            "/locks/0/holders/0/stuck/since_ns",
            json!(MS),
            "off the CPU",
        ),
        ("/locks/0/holders/0/stack", json!(7), "stack"),
        ("/locks/0/holders/0/stack", json!(0), "stack"),
        ("/locks/0/holders/0/held_ns", json!(null), "held_ns"),
        ("/locks/0/waiters/0/tid", json!(22), "queued"),
        ("/locks/0/waiters/0/granted", json!(true), "queued"),
        ("/locks/0/waiters/1/position", json!(3), "waiter"),
        ("/locks/0/waiters/1/mode", json!("write"), "waiter"),
        ("/locks/0/waiters/1/killable", json!(false), "waiter"),
        ("/locks/0/waiters/1/wait_ns", json!(40 * MS), "has waited"),
        ("/locks/0/waiters/1/wait_ns", json!(240 * MS), "has waited"),
        ("/locks/0/waiters/1/stack", json!(1), "stack"),
        ("/chains/0/root/tid", json!(21), "end with"),
        ("/chains/0/root/tid", json!(22), "ends with the waiter"),
        ("/chains/0/blocked_tasks", json!(1), "blocks"),
        ("/chains/0/sentence", json!("somebody blocks"), "root"),
        ("/chains", json!([]), "chains"),
        ("/findings/0/detector", json!("long-hold"), "convoy"),
        (
            "/findings/1/sentence",
            json!("2 tasks wait"),
            "name the lock",
        ),
        ("/findings/1/tasks", json!([21]), "leaves out"),
        (
            "/findings/1/detector",
            json!("inconsistent-lock"),
            "inconsistent",
        ),
        ("/findings", json!([]), "long-wait"),
        ("/locks/0/holders/-", decoy.clone(), "accused"),
        (
            "/locks/0/waiters/-",
            {
                let mut waiter = report()["locks"][0]["waiters"][0].clone();
                waiter["tid"] = json!(32);
                waiter["comm"] = json!("lab-d-read");
                waiter
            },
            "listed as a waiter",
        ),
    ];
    for (place, lie, word) in lies {
        let mut report = report();
        tell(&mut report, place, lie.clone());
        let wrong = judge(report).wrong;
        assert!(
            wrong.iter().any(|one| one.contains(word)),
            "{place} = {lie}: {wrong:?}"
        );
    }
}

#[test]
fn a_decoy_is_accused_only_for_the_lock_it_holds() {
    let with = |name: &str, tid: i32, comm: &str| {
        let mut report = report();
        let mut lock = report["locks"][0].clone();
        lock["id"] = json!("b");
        lock["name"] = json!(name);
        lock["object"]["inode"]["path"] = json!(name.trim_start_matches("i_rwsem of "));
        lock["holders"][0]["tid"] = json!(tid);
        lock["holders"][0]["comm"] = json!(comm);
        lock["waiters"] = json!([]);
        report["locks"].as_array_mut().unwrap().push(lock);
        judge(report).wrong
    };
    assert!(with("i_rwsem of /mnt/sibling", 31, "lab-d-other").is_empty());
    assert!(!with("i_rwsem of /mnt/sibling", 32, "lab-d-read").is_empty());
    assert!(!with("i_rwsem of /mnt", 31, "lab-d-other").is_empty());
    assert!(!with("i_rwsem of /mnt", 11, "lab-holder").is_empty());
    assert!(!with("i_rwsem of /mnt", 21, "lab-w1").is_empty());
    assert!(with("i_rwsem of /other", 77, "bystander").is_empty());
    assert!(with("i_rwsem of /other", 31, "reused-tid").is_empty());
}

#[test]
fn a_bystander_may_queue_behind_but_not_between() {
    let with = |at: usize| {
        let mut report = report();
        let mut waiter = report["locks"][0]["waiters"][0].clone();
        waiter["tid"] = json!(77);
        waiter["position"] = json!(at + 1);
        let waiters = report["locks"][0]["waiters"].as_array_mut().unwrap();
        waiters.insert(at, waiter);
        report["chains"][0]["blocked_tasks"] = json!(3);
        judge(report).wrong
    };
    assert!(with(2).is_empty());
    assert!(!with(1).is_empty());
}

#[test]
fn a_possible_decoy_is_counted_but_no_accusation() {
    let mut report = report();
    let decoy = json!({"tid": 32, "tgid": 10, "comm": "lab-d-read", "mode": "read",
                       "confidence": "possible", "evidence": [{"kind": "object-word"}], "state": "S",
                       "stuck": {"class": "fuse"}});
    tell(&mut report, "/locks/0/holders/-", decoy);
    let verdict = judge(report);
    assert_eq!(verdict.decoys_possible, 1);
    assert_eq!(verdict.wrong, Vec::<String>::new());
}

#[test]
fn a_deadlock_is_found_where_there_is_one() {
    let mut with = report();
    let deadlock = json!({"detector": "deadlock", "locks": ["a"], "tasks": [11, 12],
                          "path": [{"task": 11}, {"daemon": 12}, {"lock": "a"}],
                          "sentence": "lab-holder[11] waits for itself"});
    tell(&mut with, "/findings/-", deadlock.clone());
    let wrong = judge(with.clone()).wrong;
    assert!(
        wrong.iter().any(|one| one.contains("there is none")),
        "{wrong:?}"
    );

    let mut truth = truth();
    let member =
        |tid: i32, role: &str| json!({"tid": tid, "tgid": 10, "comm": "lab-holder", "role": role});
    truth.cycle = serde_json::from_value(json!({
        "tasks": [member(11, "holder"), member(12, "daemon")], "locks": ["i_rwsem of /mnt/dir"]
    }))
    .unwrap();
    let judge_cycle = |report| judge_by(report, &truth).wrong;
    assert_eq!(judge_cycle(with.clone()), Vec::<String>::new());
    assert!(judge_cycle(report())[0].contains("0 deadlocks"));
    tell(&mut with, "/findings/-", deadlock);
    assert!(judge_cycle(with)[0].contains("2 deadlocks"));
}

#[test]
fn a_crowd_is_counted_by_process() {
    let mut truth = truth();
    let crowd = json!([{"tgid": 40, "comm": "top", "tasks": 2}]);
    truth.crowd = serde_json::from_value(crowd).unwrap();
    assert_eq!(truth.blocked_tasks(), 4);
    let with = |tgids: &[i32]| {
        let mut report = report();
        for (tgid, tid) in tgids.iter().zip(41..) {
            let mut reader = report["locks"][0]["waiters"][1].clone();
            reader["tid"] = json!(tid);
            reader["tgid"] = json!(tgid);
            reader["comm"] = json!("top");
            tell(&mut report, "/locks/0/waiters/-", reader);
        }
        report["chains"][0]["blocked_tasks"] = json!(2 + tgids.len());
        judge_by(report, &truth).wrong
    };
    assert_eq!(with(&[40, 40]), Vec::<String>::new());
    for other in [&[40][..], &[40, 40, 40], &[40, 50]] {
        let wrong = with(other);
        assert!(wrong[0].contains("readers of top[40]"), "{wrong:?}");
    }
}

#[test]
fn a_hidden_holder_may_be_unknown_but_not_replaced() {
    let mut truth = truth();
    truth.owner_hidden = true;
    assert_eq!(judge_by(report(), &truth).wrong, Vec::<String>::new());
    let mut unknown = report();
    unknown["locks"][0]["holders"] = json!([]);
    unknown["chains"] = json!([]);
    assert_eq!(judge_by(unknown, &truth).wrong, Vec::<String>::new());
    let mut replaced = report();
    tell(&mut replaced, "/locks/0/holders/0/tid", json!(32));
    tell(
        &mut replaced,
        "/locks/0/holders/0/comm",
        json!("lab-d-read"),
    );
    replaced["chains"] = json!([]);
    let wrong = judge_by(replaced, &truth).wrong;
    assert!(wrong.iter().any(|one| one.contains("accused")), "{wrong:?}");
}

/// The holder of the lock waits for one more, which task 12 has.
fn truth_of_two() -> Ready {
    let mut truth = truth();
    truth.holders[0].stuck = Stuck::Lock;
    let mut last = truth.holders[0].clone();
    last.tid = Tid(12);
    last.comm = "lab-last".into();
    last.stuck = Stuck::Fuse;
    let mut waiter = truth.waiters[0].clone();
    waiter.tid = Tid(11);
    waiter.comm = "lab-holder".into();
    waiter.frame = "request_wait_answer".into();
    truth.next = Some(Held {
        lock: crate::truth::Lock {
            kind: LockKind::VmaLock,
            class: Some(LockClass::VmaLock),
            name: "VMA lock of lab-target[10] at 0x".into(),
            path: None,
            ino: None,
            tgid: None,
            comm: None,
        },
        state: LockState::ReadHeld,
        reader_count: Some(1),
        holders: vec![last],
        waiter,
    });
    truth
}

fn report_of_two() -> Value {
    let mut report = report();
    let mut next = report["locks"][0].clone();
    next["id"] = json!("b");
    next["kind"] = json!("vma_lock");
    next["class"] = json!("vma_lock");
    next["object"] = json!(null);
    next["name"] = json!("VMA lock of lab-target[10] at 0x1000-0x2000");
    next["holders"][0]["tid"] = json!(12);
    next["holders"][0]["comm"] = json!("lab-last");
    let mut waiter = next["waiters"][0].clone();
    waiter["tid"] = json!(11);
    waiter["comm"] = json!("lab-holder");
    waiter["stack"] = json!(1);
    next["waiters"] = json!([waiter]);
    report["locks"].as_array_mut().unwrap().push(next);
    tell(&mut report, "/locks/0/holders/0/stuck/class", json!("lock"));
    tell(&mut report, "/locks/0/holders/0/state", json!("D"));
    report["chains"] = json!([{"root": {"tid": 12, "comm": "lab-last"}, "blocked_tasks": 3,
        "path": [{"lock": "a"}, {"task": 11}, {"lock": "b"}, {"task": 12}],
        "sentence": "lab-last[12] blocks 3 tasks"}]);
    let found = json!({"detector": "long-wait", "sentence": "1 task waits for VMA lock of lab-target[10] at 0x1000-0x2000",
                       "locks": ["b"], "tasks": [11]});
    tell(&mut report, "/findings/-", found);
    report
}

#[test]
fn a_chain_of_two_locks_is_judged_at_both() {
    let truth = truth_of_two();
    let verdict = judge_by(report_of_two(), &truth);
    assert_eq!(verdict.wrong, Vec::<String>::new());
    assert_eq!(verdict.confidences.len(), 2);
    let lies = [
        ("/locks/0/holders/0/stuck/class", json!("fuse"), "stuck"),
        ("/locks/1/kind", json!("rwsem"), "kind"),
        ("/locks/1/class", json!("unknown"), "class"),
        (
            "/locks/1/name",
            json!("VMA lock of bash[9] at 0x1000"),
            "named",
        ),
        ("/locks/1/holders", json!([]), "accused"),
        ("/locks/1/holders/0/tid", json!(11), "accused"),
        ("/locks/1/waiters/0/tid", json!(13), "0 locks are"),
        ("/chains/0/root/tid", json!(11), "end with"),
        ("/chains/0/blocked_tasks", json!(2), "blocks"),
        (
            "/chains/0/path",
            json!([{"lock": "a"}, {"task": 11}]),
            "end with",
        ),
    ];
    for (place, lie, word) in lies {
        let mut report = report_of_two();
        tell(&mut report, place, lie.clone());
        let wrong = judge_by(report, &truth).wrong;
        assert!(
            wrong.iter().any(|one| one.contains(word)),
            "{place} = {lie}: {wrong:?}"
        );
    }
}

#[test]
fn a_lock_that_no_task_holds_accuses_nobody() {
    let mut truth = truth();
    truth.holders.clear();
    let accused = judge_by(report(), &truth).wrong;
    assert!(
        accused.iter().any(|one| one.contains("accused")),
        "{accused:?}"
    );
    let mut report = report();
    report["locks"][0]["holders"] = json!([]);
    report["chains"] = json!([]);
    assert_eq!(judge_by(report, &truth).wrong, Vec::<String>::new());
}

/// Puts a value at a JSON pointer; `-` at its end appends.
fn tell(report: &mut Value, place: &str, lie: Value) {
    if let Some(array) = place.strip_suffix("/-") {
        let array = report.pointer_mut(array).unwrap();
        array.as_array_mut().unwrap().push(lie);
    } else {
        *report.pointer_mut(place).unwrap() = lie;
    }
}
