//! `lockwatch watch`: stalls that begin and end while it looks.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod attached;

use std::{
    collections::BTreeSet,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use lockwatch::kernel::btf::Btf;
use lockwatch_tests::{
    clock,
    trial::{
        self, Ended, Lab, Program,
        event::{self, Event, Stall},
        report::Chain,
    },
    truth::{Ready, Scenario, Tid},
};
use nix::sys::signal::Signal;

use self::attached::Attached;

/// How long `watch` may take to be ready, and to end when told to.
const PATIENCE: Duration = Duration::from_secs(10);

/// A stall must be reported this long after it has crossed the threshold.
const PROMPT: Duration = Duration::from_secs(2);

/// How exact the length of a stall must be.
const EXACT: Duration = Duration::from_millis(300);

/// How much later a survey notices an end that nothing else tells.
const NOTICED: Duration = Duration::from_secs(1);

/// A stall stands until it has been reported, however slow the machine is, and so much
/// longer.
const LONGER: Duration = Duration::from_millis(500);

/// How the end of a stall is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// As it happened.
    Exactly,
    /// By the first survey that does not find it any more.
    BySurvey,
}

impl Known {
    /// Of waits that began before `watch`. A program at the return of a function is not run
    /// by who was inside already when it was attached (kernel/bpf/trampoline.c).
    fn of_older_waits() -> Self {
        let types = Btf::from_sys().unwrap();
        let mut tracepoints = types.tracepoints();
        if tracepoints.any(|(_, name)| name == "contention_end") {
            Self::Exactly
        } else {
            Self::BySurvey
        }
    }
}

/// A `watch` that has attached what it needs. Dropped, it is killed.
struct Watch(Program);

impl Watch {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(trial::lockwatch().unwrap());
        command.arg("watch").args(arguments);
        let mut program = Program::start(&mut command).unwrap();
        let begun = Instant::now();
        loop {
            let line = program.err_line(trial::bound(PATIENCE)).unwrap();
            let line = line.unwrap_or_else(|| panic!("watch ended: {}", program.stderr_so_far()));
            if line.starts_with("watching") {
                return Self(program);
            }
            assert!(
                begun.elapsed() < trial::bound(PATIENCE),
                "watch is not ready: {line}"
            );
        }
    }

    /// Waits for an event that `wanted` makes something of; the events before
    /// it are put into `seen`.
    fn find<T>(
        &mut self,
        what: &str,
        seen: &mut Vec<Event>,
        limit: Duration,
        wanted: impl Fn(&Event) -> Option<T>,
    ) -> T {
        self.find_line(what, limit, |line| {
            let event = Event::read(line).unwrap();
            let found = wanted(&event);
            seen.push(event);
            found
        })
    }

    /// Waits for a line that `wanted` makes something of.
    fn find_line<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut wanted: impl FnMut(&str) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = match self.0.out_line(left) {
                Ok(Some(line)) => line,
                Ok(None) => panic!("watch ended before {what}: {}", self.0.stderr_so_far()),
                Err(error) => panic!("{what} was not seen within {limit:?}: {error:#}"),
            };
            if let Some(found) = wanted(&line) {
                return found;
            }
        }
    }

    fn interrupt(self) -> Ended {
        self.0.signal(Signal::SIGINT);
        self.0.end(trial::bound(PATIENCE)).unwrap()
    }
}

fn stall_of<'e>(event: &'e Event, truth: &Ready) -> Option<&'e Stall> {
    match event {
        Event::Stall(stall) => {
            let lock = stall.lock.as_ref()?;
            (lock.name == truth.lock.name).then_some(stall)
        }
        _ => None,
    }
}

fn end_of(event: &Event, stall: u64) -> Option<event::Ended> {
    match event {
        Event::StallEnded(ended) if ended.stall == stall => Some(ended.clone()),
        _ => None,
    }
}

/// What is wrong with one report of a standing stall.
fn complaints(stall: &Stall, truth: &Ready) -> Vec<String> {
    let mut wrong = Vec::new();
    let Some(lock) = &stall.lock else {
        return vec!["no survey has found the lock".into()];
    };
    let holders: BTreeSet<Tid> = truth.holders.iter().map(|holder| holder.tid).collect();
    let accused: BTreeSet<Tid> = lock
        .holders
        .iter()
        .filter(|holder| holder.is_accused())
        .map(|holder| holder.tid)
        .collect();
    if accused != holders {
        wrong.push(format!("accused are {accused:?}, holders are {holders:?}"));
    }
    if lock.state != Some(truth.state) {
        wrong.push(format!("state is {:?}, not {:?}", lock.state, truth.state));
    }
    let queue = lock.waiters.iter().filter(|waiter| !waiter.granted);
    let queued: Vec<Tid> = queue.map(|waiter| waiter.tid).collect();
    let wanted: Vec<Tid> = truth.waiters.iter().map(|waiter| waiter.tid).collect();
    // The survey may have been taken while the lab still queued them.
    if !wanted.starts_with(&queued) || queued.is_empty() {
        wrong.push(format!("queued are {queued:?}, of {wanted:?}"));
    }
    let mut ends: BTreeSet<Tid> = BTreeSet::new();
    for chain in &stall.chains {
        ends.extend(chain.ends(&stall.daemons));
    }
    let last = truth
        .next
        .as_ref()
        .map_or(&truth.holders, |next| &next.holders);
    let last: BTreeSet<Tid> = last.iter().map(|holder| holder.tid).collect();
    // A daemon may have other clients, too.
    let is_daemon = |chain: &Chain| chain.daemon(&stall.daemons).is_some();
    let may_be_more = stall.chains.iter().any(is_daemon);
    if ends != last && !(may_be_more && ends.is_superset(&last)) {
        wrong.push(format!("the ends are {ends:?}, not {last:?}"));
    }
    wrong
}

#[track_caller]
fn assert_reported(seen: &[Event], truth: &Ready) {
    let reports: Vec<&Stall> = seen
        .iter()
        .filter_map(|event| stall_of(event, truth))
        .collect();
    let context = || format!("truth: {truth:#?}\nevents: {seen:#?}");
    let crossed = reports
        .iter()
        .filter(|stall| stall.reason == "crossed")
        .count();
    assert_eq!(crossed, 1, "reports of its begin; {}", context());
    assert!(
        reports.iter().all(|stall| stall.stall == reports[0].stall),
        "one stall has several numbers; {}",
        context()
    );
    for (number, stall) in (1..).zip(&reports) {
        let wrong = complaints(stall, truth);
        assert!(
            wrong.is_empty(),
            "report {number} ({}) is wrong:\n  {}\n{}",
            stall.reason,
            wrong.join("\n  "),
            context()
        );
    }
    assert!(
        reports.iter().all(|stall| stall.reason != "new-holder"),
        "the holder never changed; {}",
        context()
    );
}

#[track_caller]
fn assert_length(ended: &event::Ended, seen: &[Event], truth: &Ready, end_ns: u64, known: Known) {
    let first = truth.waiters.first().unwrap();
    let length = Duration::from_nanos(end_ns - first.queued_ns);
    let said = Duration::from_nanos(ended.length_ns);
    let later = match known {
        Known::Exactly => Duration::ZERO,
        Known::BySurvey => trial::bound(NOTICED),
    };
    let exact = trial::bound(EXACT);
    assert!(
        said + exact >= length && said <= length + later + exact,
        "it stood for {length:?}: {ended:#?}"
    );
    assert_eq!(
        ended.length_is_upper_bound,
        known == Known::BySurvey,
        "{ended:#?}"
    );
    // Who goes on as the stall ends can meet the last of its waiters in the lock, for an
    // instant: seen on 6.12. Who waited while it stood is judged by the reports.
    let next = truth.next.as_ref().map_or(0, |next| next.holders.len());
    let decoys = truth.decoys.iter().filter(|decoy| !decoy.exited).count();
    let waited = truth.waiters.len()..=truth.waiters.len() + truth.holders.len() + next + decoys;
    assert!(
        waited.contains(&ended.blocked_tasks),
        "{waited:?} tasks were blocked: {ended:#?}\nevents: {seen:#?}\ntruth: {truth:#?}"
    );
    let named: BTreeSet<Tid> = ended.holders.iter().map(|holder| holder.tid).collect();
    let holders: BTreeSet<Tid> = truth.holders.iter().map(|holder| holder.tid).collect();
    assert_eq!(named, holders, "{ended:#?}");
    // Where ends are seen as they happen, the first of the queue to get the lock was, too.
    match ended.forecasts {
        Some(checked) => assert!(checked.right > 0 && checked.wrong == 0, "{ended:#?}"),
        None => assert_eq!(
            known,
            Known::BySurvey,
            "no forecast was checked: {ended:#?}"
        ),
    }
}

/// A stall that begins after `watch`.
fn watch_scenario(scenario: Scenario) {
    let options = ["--threshold", "200ms", "--for", "60s", "--format", "json"];
    let mut watch = Watch::start(&options);
    let Some(lab) = Lab::raise_or_skip(scenario, 4).unwrap() else {
        return;
    };
    let truth = lab.truth.clone();
    let mut seen = Vec::new();
    let stall = watch.find("the stall", &mut seen, trial::bound(PROMPT), |event| {
        stall_of(event, &truth).map(|stall| stall.stall)
    });
    thread::sleep(LONGER);
    let end_ns = clock::monotonic_ns();
    lab.finish().unwrap();
    let ended = watch.find("its end", &mut seen, trial::bound(PROMPT), |event| {
        end_of(event, stall)
    });
    // It might be told twice.
    thread::sleep(LONGER);
    let done = watch.interrupt();

    let rest = done.stdout.lines().map(|line| Event::read(line).unwrap());
    let seen: Vec<Event> = rest.collect();
    assert_reported(&seen, &truth);
    let ends = seen.iter().filter_map(|event| end_of(event, stall));
    assert_eq!(ends.count(), 1, "ends of one stall: {seen:#?}");
    assert_length(&ended, &seen, &truth, end_ns, Known::Exactly);
    assert!(
        matches!(seen.first(), Some(Event::Watching { threshold_ns }) if *threshold_ns == 200_000_000),
        "{seen:#?}"
    );
    assert!(
        matches!(seen.last(), Some(Event::Summary { stalls }) if *stalls >= 1),
        "{seen:#?}"
    );
    assert_eq!(done.code(), Some(1), "{}", done.describe());
    eprintln!(
        "{}: watched, length {} ms, peak {} MiB",
        scenario.name(),
        ended.length_ns / 1_000_000,
        done.peak_rss_kib >> 10
    );
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_directory_held_by_a_writer_is_reported_and_its_end() {
    watch_scenario(Scenario::InodeWriteHeld);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn an_address_space_held_by_a_reader_is_reported_and_its_end() {
    watch_scenario(Scenario::MmapReadHeld);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn an_address_space_held_by_a_writer_is_reported_and_its_end() {
    watch_scenario(Scenario::MmapWriteHeld);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_file_position_held_by_a_reader_is_reported_and_its_end() {
    watch_scenario(Scenario::FilePosHeld);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn an_address_space_behind_the_lock_of_an_area_is_reported_and_its_end() {
    watch_scenario(Scenario::VmaReadHeld);
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_stall_that_began_before_is_reported_and_its_end() {
    let lab = Lab::raise(Scenario::MmapReadHeld, 4).unwrap();
    let truth = lab.truth.clone();
    let options = ["--threshold", "200ms", "--for", "60s", "--format", "json"];
    let mut watch = Watch::start(&options);
    let mut seen = Vec::new();
    let stall = watch.find("the stall", &mut seen, trial::bound(PROMPT), |event| {
        stall_of(event, &truth).map(|stall| stall.stall)
    });
    thread::sleep(LONGER);
    let end_ns = clock::monotonic_ns();
    lab.finish().unwrap();
    let ended = watch.find("its end", &mut seen, trial::bound(PROMPT), |event| {
        end_of(event, stall)
    });
    let done = watch.interrupt();
    assert_reported(&seen, &truth);
    assert_length(&ended, &seen, &truth, end_ns, Known::of_older_waits());
    assert_eq!(done.code(), Some(1), "{}", done.describe());
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_person_reads_lock_holder_and_end() {
    let mut watch = Watch::start(&["--threshold", "200ms", "--for", "60s"]);
    let lab = Lab::raise(Scenario::InodeWriteHeld, 3).unwrap();
    let truth = lab.truth.clone();
    let holder = &truth.holders[0];
    let held_by = format!("{}[{}]", holder.comm, holder.tid.0);
    watch.find_line("who holds it", trial::bound(PROMPT), |line| {
        (line.contains("held by") && line.contains(&held_by)).then_some(())
    });
    lab.finish().unwrap();
    let is_end = |line: &str| line.contains("ended after") && line.contains(&truth.lock.name);
    watch.find_line("its end", trial::bound(PROMPT), |line| {
        is_end(line).then_some(())
    });
    // It might be told twice.
    thread::sleep(LONGER);
    let done = watch.interrupt();
    let context = done.describe();

    assert_eq!(done.code(), Some(1), "{context}");
    let lines: Vec<&str> = done.stdout.lines().collect();
    let stalls = lines.iter().filter(|line| line.contains("stalled for"));
    assert!(stalls.count() >= 1, "{context}");
    assert!(
        lines.iter().any(|line| line.starts_with(&truth.lock.name)),
        "{context}"
    );
    let ends = lines.iter().filter(|line| is_end(line));
    assert_eq!(ends.count(), 1, "{context}");
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn a_quiet_host_is_no_stall() {
    let begun = Instant::now();
    let watch = Watch::start(&["--threshold", "20s", "--for", "1s"]);
    let done = watch.0.end(trial::bound(PATIENCE)).unwrap();
    let took = begun.elapsed();
    let context = done.describe();
    assert_eq!(done.code(), Some(0), "{context}");
    assert_eq!(done.stdout, "", "{context}");
    assert!(
        (Duration::from_secs(1)..trial::bound(Duration::from_secs(4))).contains(&took),
        "--for 1s took {took:?}"
    );
}

#[test]
#[ignore = "live: needs root and BPF on the running kernel; run by cargo xtask test"]
fn nothing_stays_attached_after_sigkill() {
    let lab = Lab::raise(Scenario::MmapReadHeld, 4).unwrap();
    let truth = lab.truth.clone();
    let options = ["--threshold", "200ms", "--for", "60s", "--format", "json"];
    let mut watch = Watch::start(&options);
    let mut seen = Vec::new();
    watch.find("the stall", &mut seen, trial::bound(PROMPT), |event| {
        stall_of(event, &truth).map(|_| ())
    });
    let attached = Attached::by(watch.0.pid().as_raw());
    for (what, ids) in [
        ("programs", &attached.programs),
        ("links", &attached.links),
        ("maps", &attached.maps),
    ] {
        assert!(!ids.is_empty(), "watch has no {what}: {attached:?}");
    }
    assert_eq!(attached.left(), attached, "its objects are not listed");
    watch.0.signal(Signal::SIGKILL);
    assert!(
        watch.0.wait(trial::bound(PATIENCE)).unwrap().is_some(),
        "it was not killed"
    );
    let begun = Instant::now();
    let mut left = attached.left();
    while left != Attached::default() && begun.elapsed() < trial::bound(PATIENCE) {
        thread::sleep(Duration::from_millis(50));
        left = attached.left();
    }
    let took = begun.elapsed();
    // The stall stood all the time: what was freed did not wait for it.
    lab.finish().unwrap();
    assert_eq!(left, Attached::default(), "{took:?} after SIGKILL");
    eprintln!(
        "SIGKILL: {} programs, {} links, {} maps gone after {} ms",
        attached.programs.len(),
        attached.links.len(),
        attached.maps.len(),
        took.as_millis()
    );
}
