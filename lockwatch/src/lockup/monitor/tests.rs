use std::collections::{BTreeMap, BTreeSet};

use lockwatch_ebpf::{
    Member,
    beats::{Beat, BeatConfig, Sampled, mode, resched},
};
use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;
/// No time to compare with is 0: CPUs have been up for a while.
const BOOT: u64 = 1_000 * SECOND;

fn thresholds() -> Thresholds {
    Thresholds::of_waits(Nanos(SECOND))
}

/// What a CPU does at a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Doing {
    tid: u32,
    mode: u32,
    resched: u32,
    switches: u64,
}

const IDLE: Doing = Doing {
    tid: 0,
    mode: mode::IDLE,
    resched: resched::NO,
    switches: 1,
};
const USER: Doing = Doing {
    tid: 7,
    mode: mode::USER,
    resched: resched::NO,
    switches: 1,
};
const SPINS: Doing = Doing {
    tid: 9,
    mode: mode::KERNEL,
    resched: resched::PENDING,
    switches: 1,
};

/// CPUs whose timers run the same code as the kernel's do.
struct Machine {
    config: BeatConfig,
    period_ns: u64,
    now_ns: u64,
    online: BTreeSet<u32>,
    slots: BTreeMap<u32, Beat>,
    hotplugged: BTreeMap<u32, u64>,
    times: BTreeMap<u32, CpuTimes>,
    timers: BTreeMap<u32, u64>,
    is_virtual: bool,
    monitor: Monitor,
}

impl Machine {
    fn new(thresholds: Thresholds, cpus: u32) -> Self {
        let pace = Pace::of(thresholds);
        Self {
            config: pace.config(Member::ABSENT, Member::ABSENT),
            period_ns: pace.period().0,
            now_ns: BOOT,
            online: (0..cpus).collect(),
            slots: BTreeMap::new(),
            hotplugged: BTreeMap::new(),
            times: (0..cpus).map(|cpu| (cpu, CpuTimes::default())).collect(),
            timers: (0..cpus).map(|cpu| (cpu, 1)).collect(),
            is_virtual: false,
            monitor: Monitor::new(thresholds),
        }
    }

    fn usual() -> Self {
        Self::new(thresholds(), 2)
    }

    fn sample(&mut self, cpu: u32, doing: Doing) {
        let sampled = Sampled {
            at_ns: self.now_ns,
            task: 0xffff_0000 + u64::from(doing.tid),
            start_time_ns: u64::from(doing.tid),
            switches: doing.switches,
            tid: doing.tid,
            tgid: doing.tid,
            mode: doing.mode,
            resched: doing.resched,
            ..Sampled::default()
        };
        *self.timers.get_mut(&cpu).unwrap() += 1;
        self.slots
            .entry(cpu)
            .or_default()
            .sampled(&sampled, &self.config);
    }

    /// One period later; `None`: the CPU does not beat.
    fn step(&mut self, doing: &[Option<Doing>]) -> Vec<Suspect> {
        self.now_ns += self.period_ns;
        for (cpu, doing) in (0..).zip(doing) {
            if let Some(doing) = *doing {
                self.sample(cpu, doing);
            }
            self.times.get_mut(&cpu).unwrap().all += 25;
        }
        self.read()
    }

    fn read(&mut self) -> Vec<Suspect> {
        let beats = self.slots.iter().map(|(&cpu, slot)| {
            let hotplugged = self.hotplugged.get(&cpu).copied().unwrap_or(0);
            (cpu, CpuBeat::decode(slot, hotplugged, Vec::new()))
        });
        let readings = Readings {
            now_ns: self.now_ns,
            online: self.online.clone(),
            beats: beats.collect(),
            times: Arc::new(self.times.clone()),
            times_ns: self.now_ns,
            timer_interrupts: self.timers.clone(),
            is_virtual: self.is_virtual,
        };
        self.monitor.suspects(&readings)
    }

    /// Does this for a time; what was suspected when.
    fn run(&mut self, seconds: u64, doing: &[Option<Doing>]) -> Vec<(u64, Suspect)> {
        let steps = seconds * SECOND / self.period_ns;
        let began_ns = self.now_ns;
        let mut suspects = Vec::new();
        for _ in 0..steps {
            let found = self.step(doing);
            let at_ns = self.now_ns - began_ns;
            suspects.extend(found.into_iter().map(|suspect| (at_ns, suspect)));
        }
        suspects
    }

    #[track_caller]
    fn nothing(&mut self, seconds: u64, doing: &[Option<Doing>]) {
        assert_eq!(self.run(seconds, doing), [], "{doing:?}");
    }
}

/// Which CPUs, and how.
fn kinds(suspects: &[Suspect]) -> Vec<(u32, LockupKind)> {
    suspects
        .iter()
        .map(|suspect| (suspect.cpu, suspect.kind))
        .collect()
}

const SOFT: LockupKind = LockupKind::Soft;
const HARD: LockupKind = LockupKind::Hard;

#[test]
fn a_soft_lockup_is_told_at_its_threshold_and_no_sooner() {
    let mut machine = Machine::usual();
    machine.nothing(5, &[Some(USER), Some(IDLE)]);
    let began_ns = machine.now_ns + machine.period_ns;
    let found = machine.run(25, &[Some(SPINS), Some(IDLE)]);
    let (first_ns, suspect) = &found[0];
    // The first sample of it comes one period late.
    assert_eq!(*first_ns, 20 * SECOND + machine.period_ns);
    assert_eq!(kinds(std::slice::from_ref(suspect)), [(0, SOFT)]);
    assert_eq!(suspect.since_ns, began_ns);
    assert_eq!(suspect.task.as_ref().unwrap().key.tid.0, 9);
    assert_eq!(suspect.unknown, Vec::<String>::new());
    let last = &found.last().unwrap().1;
    assert_eq!(last.until_ns, machine.now_ns, "its last sample");
    let count = found.len() as u64;
    assert_eq!(
        count,
        5 * SECOND / machine.period_ns,
        "it stands: {found:#?}"
    );
}

#[test]
fn a_cpu_that_recovers_is_not_suspected_any_more() {
    let mut machine = Machine::usual();
    assert!(!machine.run(21, &[Some(SPINS), Some(IDLE)]).is_empty());
    let switched = Doing {
        switches: 2,
        ..SPINS
    };
    // The same task, after a context switch.
    machine.nothing(19, &[Some(switched), Some(IDLE)]);
    machine.nothing(5, &[Some(USER), Some(IDLE)]);
}

#[test]
fn healthy_cpus_are_not_suspected() {
    let lone_in_kernel = Doing {
        resched: resched::NO,
        ..SPINS
    };
    for doing in [IDLE, USER, lone_in_kernel] {
        Machine::usual().nothing(100, &[Some(doing), Some(IDLE)]);
        Machine::usual().nothing(100, &[Some(doing), Some(doing)]);
    }
}

#[test]
fn one_sample_in_user_mode_or_idle_begins_anew() {
    for other in [
        USER,
        IDLE,
        Doing {
            resched: resched::NO,
            ..SPINS
        },
        Doing { tid: 10, ..SPINS },
    ] {
        let mut machine = Machine::usual();
        for _ in 0..5 {
            machine.nothing(19, &[Some(SPINS), Some(IDLE)]);
            assert_eq!(machine.step(&[Some(other), Some(IDLE)]), []);
        }
    }
}

#[test]
fn a_task_that_makes_system_calls_all_the_time_switches_when_it_is_asked_to() {
    let mut machine = Machine::usual();
    for switches in 0..400 {
        // Each time it is asked to, until the next return to user mode.
        let doing = Doing { switches, ..SPINS };
        assert_eq!(machine.step(&[Some(doing), Some(IDLE)]), []);
    }
}

#[test]
fn on_top_of_the_idle_task_a_softirq_can_lock_a_cpu_up() {
    let storm = Doing {
        resched: resched::PENDING,
        ..IDLE
    };
    let mut machine = Machine::usual();
    let found = machine.run(21, &[Some(IDLE), Some(storm)]);
    assert_eq!(kinds(&[found[0].1.clone()]), [(1, SOFT)]);
    assert_eq!(found[0].1.task, None);
}

#[test]
fn where_the_mark_is_not_known_the_survey_has_to_decide() {
    let unknown = |doing: Doing| Doing {
        resched: resched::UNKNOWN,
        ..doing
    };
    let mut machine = Machine::usual();
    machine.nothing(50, &[Some(unknown(USER)), Some(unknown(IDLE))]);
    let found = machine.run(21, &[Some(unknown(SPINS)), Some(unknown(IDLE))]);
    let suspect = &found[0].1;
    assert_eq!((suspect.cpu, suspect.kind), (0, SOFT));
    assert!(suspect.unknown[0].contains("another task"), "{suspect:#?}");
}

#[test]
fn a_machine_that_was_stopped_is_not_locked_up() {
    // As after a minute of its host's pause, and as after a jump of its clock.
    for doing in [USER, IDLE, SPINS] {
        let mut machine = Machine::usual();
        machine.nothing(10, &[Some(doing), Some(doing)]);
        machine.now_ns += 60 * SECOND;
        assert_eq!(machine.read(), [], "nobody beats yet");
        // We and one CPU were first.
        machine.sample(1, doing);
        assert_eq!(machine.read(), [], "one beats again");
        machine.nothing(9, &[Some(doing), Some(doing)]);
    }
}

#[test]
fn time_without_samples_is_not_counted() {
    let mut machine = Machine::usual();
    machine.nothing(15, &[Some(SPINS), Some(IDLE)]);
    machine.now_ns += 60 * SECOND;
    // It had 15 s and goes on: 5 s more, and the one sample that ends the gap.
    machine.nothing(5, &[Some(SPINS), Some(IDLE)]);
    let found = machine.run(2, &[Some(SPINS), Some(IDLE)]);
    let suspect = &found[0].1;
    assert_eq!(
        Nanos::between(suspect.since_ns, machine.slots[&0].last.at_ns).0 / SECOND,
        21
    );
    assert!(suspect.unknown[0].contains("not counted"), "{suspect:#?}");
}

#[test]
fn a_hard_lockup_is_told_by_the_other_cpu() {
    let mut machine = Machine::usual();
    machine.nothing(5, &[Some(USER), Some(IDLE)]);
    let last_ns = machine.now_ns;
    let found = machine.run(15, &[None, Some(IDLE)]);
    let (first_ns, suspect) = &found[0];
    assert_eq!(*first_ns, 10 * SECOND);
    assert_eq!((suspect.cpu, suspect.kind), (0, HARD));
    assert_eq!(suspect.since_ns, last_ns);
    assert_eq!(suspect.task.as_ref().unwrap().key.tid.0, 7);
    assert_eq!(suspect.unknown, Vec::<String>::new());
    machine.nothing(15, &[Some(USER), Some(IDLE)]);
}

#[test]
fn a_cpu_that_was_seen_to_be_silent_is_suspected_until_it_beats() {
    let mut machine = Machine::usual();
    machine.nothing(5, &[Some(USER), Some(IDLE)]);
    assert_ne!(machine.run(12, &[None, Some(IDLE)]), []);
    // The witness stumbles: that is no end.
    machine.now_ns += 5 * SECOND;
    assert_eq!(kinds(&machine.read()), [(0, HARD)]);
    assert_eq!(kinds(&machine.step(&[None, Some(IDLE)])), [(0, HARD)]);
    machine.nothing(15, &[Some(USER), Some(IDLE)]);
}

#[test]
fn a_cpu_that_takes_timer_interrupts_is_not_locked_up_hard() {
    let mut machine = Machine::usual();
    machine.nothing(5, &[Some(USER), Some(IDLE)]);
    for _ in 0..200 {
        // Our sampler alone is silent.
        *machine.timers.get_mut(&0).unwrap() += 1;
        assert_eq!(machine.step(&[None, Some(IDLE)]), []);
    }
    // And where they are not counted, that is said.
    let beats = machine
        .slots
        .iter()
        .map(|(&cpu, slot)| (cpu, CpuBeat::decode(slot, 0, Vec::new())))
        .collect();
    let suspects = machine.monitor.suspects(&Readings {
        now_ns: machine.now_ns,
        online: machine.online.clone(),
        beats,
        is_virtual: true,
        ..Readings::default()
    });
    assert_eq!(kinds(&suspects), [(0, HARD)]);
    assert_eq!(suspects[0].unknown.len(), 2, "{suspects:#?}");
}

#[test]
fn a_soft_lockup_that_becomes_hard_is_one_suspect_at_a_time() {
    let mut machine = Machine::usual();
    machine.run(25, &[Some(SPINS), Some(IDLE)]);
    let mut seen = Vec::new();
    for _ in 0..60 {
        let suspects = machine.step(&[None, Some(IDLE)]);
        assert_eq!(suspects.len(), 1, "{suspects:#?}");
        seen.extend(kinds(&suspects));
    }
    seen.dedup();
    assert_eq!(seen, [(0, SOFT), (0, HARD)]);
}

#[test]
fn a_soft_lockup_is_over_once_its_cpu_idles_without_a_beat() {
    let mut machine = Machine::usual();
    machine.nothing(5, &[Some(USER), Some(IDLE)]);
    // Before it, and so no sign of its end.
    machine.times.get_mut(&0).unwrap().idle += 7;
    let found = machine.run(25, &[Some(SPINS), Some(IDLE)]);
    let last_ns = machine.now_ns;
    assert_eq!(found.last().unwrap().1.until_ns, last_ns);
    // It may also have its interrupts off.
    let found = machine.run(3, &[None, Some(IDLE)]);
    assert_eq!(found.len() as u64, 3 * SECOND / machine.period_ns);
    let all = found.iter().map(|(_, suspect)| suspect);
    assert!(all.clone().all(|suspect| suspect.until_ns == last_ns));
    machine.times.get_mut(&0).unwrap().idle += 1;
    assert_eq!(machine.step(&[None, Some(IDLE)]), []);
    // Whatever it does then, without a beat.
    machine.nothing(2, &[None, Some(IDLE)]);
    // The same again is another one.
    let again = Doing {
        switches: 2,
        ..SPINS
    };
    machine.nothing(19, &[Some(again), Some(IDLE)]);
    assert_ne!(machine.run(3, &[Some(again), Some(IDLE)]), []);
}

#[test]
fn idle_time_under_a_softirq_on_top_of_the_idle_task_is_no_end() {
    let storm = Doing {
        resched: resched::PENDING,
        ..IDLE
    };
    let mut machine = Machine::usual();
    machine.run(21, &[Some(USER), Some(storm)]);
    for _ in 0..8 {
        machine.times.get_mut(&1).unwrap().idle += 25;
        let found = machine.step(&[Some(USER), Some(storm)]);
        assert_eq!(kinds(&found), [(1, SOFT)]);
    }
    let last_ns = machine.now_ns;
    for _ in 0..8 {
        machine.times.get_mut(&1).unwrap().idle += 25;
        let found = machine.step(&[Some(USER), None]);
        assert_eq!(kinds(&found), [(1, SOFT)], "it may be in there still");
        assert_eq!(found[0].until_ns, last_ns);
    }
}

#[test]
fn a_cpu_that_was_offline_is_not_locked_up() {
    let mut machine = Machine::usual();
    machine.nothing(5, &[Some(IDLE), Some(IDLE)]);
    machine.online.remove(&1);
    machine.nothing(30, &[Some(IDLE), None]);
    // It is back, and has no event yet.
    machine.online.insert(1);
    machine.hotplugged.insert(1, machine.now_ns);
    machine.nothing(30, &[Some(IDLE), None]);
    machine.nothing(5, &[Some(IDLE), Some(IDLE)]);
    // Then it counts again.
    let found = machine.run(11, &[Some(IDLE), None]);
    assert_eq!(kinds(&[found[0].1.clone()]), [(1, HARD)]);
}

#[test]
fn stolen_time_is_said() {
    let mut machine = Machine::usual();
    machine.is_virtual = true;
    machine.nothing(5, &[Some(USER), Some(IDLE)]);
    let mut suspects = Vec::new();
    for _ in 0..45 {
        machine.times.get_mut(&1).unwrap().stolen += 15;
        suspects = machine.step(&[None, Some(IDLE)]);
    }
    let [suspect] = &suspects[..] else {
        panic!("{suspects:#?}");
    };
    assert!(
        suspect
            .unknown
            .iter()
            .any(|line| line.contains("virtual machine"))
    );
    assert!(
        suspect
            .unknown
            .iter()
            .any(|line| line.contains("all CPUs' time")),
        "{suspect:#?}"
    );
}

#[test]
fn a_cpu_alone_cannot_be_told_from_a_machine_that_stands_still() {
    let mut machine = Machine::new(thresholds(), 1);
    machine.nothing(5, &[Some(USER)]);
    machine.nothing(100, &[None]);
}

#[test]
fn thresholds_that_are_off_tell_nothing() {
    let off = Thresholds {
        soft_lockup: None,
        hard_lockup: None,
        ..thresholds()
    };
    let mut machine = Machine::new(off, 2);
    machine.nothing(100, &[Some(SPINS), Some(IDLE)]);
    machine.nothing(100, &[None, Some(IDLE)]);
    let mut machine = Machine::new(
        Thresholds {
            soft_lockup: None,
            ..thresholds()
        },
        2,
    );
    machine.nothing(100, &[Some(SPINS), Some(IDLE)]);
    assert!(!machine.run(11, &[None, Some(IDLE)]).is_empty());
}

/// A CPU that does nothing wrong: whoever is asked to make room does so by the next sample
/// but some, and every gap is the machine's.
fn healthy() -> impl Strategy<Value = Vec<(Doing, u32)>> {
    let doing = prop_oneof![
        Just(IDLE),
        Just(USER),
        Just(SPINS),
        Just(Doing {
            resched: resched::NO,
            ..SPINS
        }),
    ];
    prop::collection::vec((doing, 1..60_u32), 1..40)
}

proptest! {
    #[test]
    fn a_healthy_machine_has_no_suspects(
        schedules in prop::collection::vec(healthy(), 1..4),
        pauses in prop::collection::btree_map(0..600_usize, 1..40_u64, 0..6),
    ) {
        let mut machine = Machine::new(thresholds(), schedules.len() as u32);
        let mut lanes: Vec<Vec<Doing>> = schedules
            .iter()
            .map(|schedule| {
                let mut switches = 0;
                schedule
                    .iter()
                    .flat_map(|&(doing, samples)| {
                        switches += 1;
                        let doing = Doing { switches, ..doing };
                        std::iter::repeat_n(doing, samples as usize)
                    })
                    .collect()
            })
            .collect();
        let longest = lanes.iter().map(Vec::len).max().unwrap_or(0);
        for lane in &mut lanes {
            lane.resize(longest, IDLE);
        }
        for step in 0..longest {
            if let Some(seconds) = pauses.get(&step) {
                machine.now_ns += seconds * SECOND;
                prop_assert_eq!(machine.read(), []);
            }
            let doing: Vec<_> = lanes.iter().map(|lane| Some(lane[step])).collect();
            prop_assert_eq!(machine.step(&doing), []);
        }
    }
}
