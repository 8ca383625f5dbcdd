//! Where a kernel, or a policy on it, refuses typed tracepoints, the raw ones do the same.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::{Duration, Instant},
};

use lockwatch::{
    kernel::{btf::Btf, layout::Layout},
    plan::{Hook, Mechanism, Plan, Purpose, Wanted, plan},
    probes::{counts::CountGlobals, offer, stream::StreamProbes},
};
use lockwatch_ebpf::stream::{OpenWait, StreamConfig, WaitKey, Watched, flags, kind, phase, sleep};
use lockwatch_tests::{
    clock,
    trial::{self, Lab},
    truth::{Mode, Ready, Scenario},
};

/// How long what has happened may take to be seen.
const PATIENCE: Duration = Duration::from_secs(10);

/// The stream, attached by a plan without typed tracepoints, and that plan.
fn attach() -> (StreamProbes, Plan) {
    let types = Btf::from_sys().unwrap();
    let layout = Layout::from_btf(&types).unwrap();
    let btf = aya::Btf::from_sys_fs().unwrap();
    let mut offer = offer::ask(Some(&types));
    let why = "by the test".to_owned();
    offer.refused.insert(Mechanism::TpBtf, why);
    let plan = plan(&offer, Wanted::WITHOUT_HOLDS);
    let raw = |hook: &Hook| hook.mechanism == Mechanism::RawTp;
    assert!(plan.hooks.iter().any(raw), "{plan:#?}");
    let config = StreamConfig {
        ends_from_ns: 0,
        begins: 0,
        own_tgid: std::process::id(),
    };
    let mut probes =
        StreamProbes::load(&plan, &layout.task, &config, &CountGlobals::OFF, &[], &btf).unwrap();
    probes.attach().unwrap();
    (probes, plan)
}

/// The waits that stand, of the tasks in the truth.
fn waits_of(probes: &StreamProbes, truth: &Ready) -> BTreeMap<i32, (WaitKey, OpenWait)> {
    let tids: BTreeSet<i32> = truth.waiters.iter().map(|waiter| waiter.tid.0).collect();
    let mut found = BTreeMap::new();
    let complete = probes.read_waits(|key, wait| {
        if tids.contains(&(key.tid as i32)) {
            found.insert(key.tid as i32, (key, wait));
        }
    });
    assert!(complete);
    found
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn waits_and_times_of_tasks_are_seen_by_raw_tp() {
    let (mut probes, plan) = attach();
    let lab = Lab::raise(Scenario::MmapReadHeld, 3).unwrap();
    let truth = lab.truth.clone();
    let now_ns = clock::monotonic_ns();

    let waits = waits_of(&probes, &truth);
    assert_eq!(waits.len(), truth.waiters.len(), "{waits:#?}");
    let locks: BTreeSet<u64> = waits.values().map(|(key, _)| key.lock).collect();
    assert_eq!(locks.len(), 1, "one lock: {waits:#?}");
    for waiter in &truth.waiters {
        let (_, wait) = &waits[&waiter.tid.0];
        let mode = if wait.flags & flags::READ != 0 {
            Mode::Read
        } else {
            Mode::Write
        };
        assert_eq!(mode, waiter.mode, "{wait:#?}");
        assert_eq!(wait.tgid as i32, waiter.tgid.0, "{wait:#?}");
        assert!(
            wait.start_time_ns > 0 && wait.since_ns < now_ns,
            "{wait:#?}"
        );
    }
    // Its times are kept only if tid and start time are read as they are.
    let (key, wait) = waits.values().next().unwrap();
    let initial = Watched {
        start_time_ns: wait.start_time_ns,
        changed_at_ns: now_ns,
        phase: phase::ASLEEP,
        sleep: sleep::FOUND,
        ..Watched::default()
    };
    assert!(probes.watch(key.tid, initial));
    thread::sleep(Duration::from_millis(100));
    lab.finish().unwrap();

    // Before the contention tracepoints, functions tell the ends.
    let is_end = |hook: &&Hook| matches!(hook.purpose, Purpose::WaitEnd { .. });
    let end = plan.hooks.iter().find(is_end).unwrap();
    if end.mechanism == Mechanism::RawTp {
        assert_ended(&mut probes, &truth, &waits);
    }
    let deadline = Instant::now() + trial::bound(PATIENCE);
    while probes.watched(key.tid).unwrap().switches == 0 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    let watched = probes.watched(key.tid).unwrap();
    assert!(watched.found_ns >= 100_000_000, "asleep: {watched:?}");
    assert!(watched.switches > 0, "it has left its CPU: {watched:?}");
    assert!(
        watched.ns[phase::RUNNING as usize] > 0,
        "it has run: {watched:?}"
    );
    assert!(
        watched.sleeps[0].frames[0] != 0,
        "where it slept then: {watched:?}"
    );
    let raw = plan
        .hooks
        .iter()
        .filter(|hook| hook.mechanism == Mechanism::RawTp);
    let targets: Vec<&str> = raw.map(|hook| hook.target.as_str()).collect();
    eprintln!("by raw_tp: {}", targets.join(", "));
}

/// Each of the waits has an end.
fn assert_ended(
    probes: &mut StreamProbes,
    truth: &Ready,
    waits: &BTreeMap<i32, (WaitKey, OpenWait)>,
) {
    let mut ended = BTreeSet::new();
    let deadline = Instant::now() + trial::bound(PATIENCE);
    while ended.len() < waits.len() {
        assert!(
            Instant::now() < deadline,
            "ended: {ended:?}; counted: {:?}; left: {:?}",
            probes.counters(),
            waits_of(probes, truth)
        );
        probes.drain(|event| {
            if event.kind == kind::WAIT_END && waits.contains_key(&(event.key.tid as i32)) {
                ended.insert(event.key.tid);
            }
        });
        thread::sleep(Duration::from_millis(10));
    }
}
