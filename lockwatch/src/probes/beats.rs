//! The sampler of CPUs: a program that each CPU's own timer runs, and the slots it keeps.

use std::{
    collections::{BTreeMap, BTreeSet},
    io, mem,
    sync::Arc,
    thread,
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData},
    programs::{
        PerfEvent, RawTracePoint,
        perf_event::{
            PerfEventConfig, PerfEventLinkId, PerfEventScope, SamplePolicy, SoftwareEvent,
        },
        raw_trace_point::RawTracePointLinkId,
    },
    util::{nr_cpus, online_cpus},
};
use lockwatch_ebpf::{
    beats::{Beat, BeatConfig, BeatStack, NeedResched, STACKS_MAX, StackKey, WAKEUPS_WANTED},
    survey::TaskLayout,
};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::{
    clock::now_ns,
    detect::Thresholds,
    kernel::{cpus, layout::Layout},
    lockup::{CpuBeat, CpuTimes, Pace, Readings, Sample},
    probes::{LoadError, iterator, loader::loader, map, pod},
    task::Nanos,
};

pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!("object/beats.bpf.o");

/// The program of the events.
const BEAT: &str = "beat";
/// The program that learns the bit of a pending reschedule.
const LEARNER: &str = "learn_need_resched";
/// The program that sees CPUs come and go.
const HOTPLUG: &str = "hotplug";

/// A CPU that has taken no step for so long has come, or gone.
const SETTLED: Nanos = Nanos(200_000_000);
/// Times of CPUs are read so often at most.
const TIMES_EVERY: Nanos = Nanos(1_000_000_000);
/// A slot that is being written is read again.
const READ_ATTEMPTS: u32 = 5;

pod!(
    TaskLayoutGlobal(TaskLayout),
    Config(BeatConfig),
    Slot(Beat),
    Key(StackKey),
    Stack(BeatStack),
    Learned(NeedResched)
);

/// The sampler at work. Dropping it closes all events, as the end of the process does:
/// nothing is pinned.
///
/// To open, close and read an event the kernel asks its CPU, and waits for the answer: with
/// one that is locked up, for ever. So all are opened at the start, and closed only when
/// their CPU has just come or gone, or the process ends. [`read`](Self::read) asks no CPU.
///
/// Blind: a CPU that was locked up before.
pub struct BeatProbes {
    pace: Pace,
    /// A CPU without a beat for this long is late.
    late: Option<Nanos>,
    events: BTreeMap<u32, OpenEvent>,
    slots: Array<MapData, Slot>,
    /// What was read of each CPU last, whole.
    whole: BTreeMap<u32, Beat>,
    hotplugged: Array<MapData, u64>,
    stacks: HashMap<MapData, Key, Stack>,
    learned: Array<MapData, Learned>,
    /// Attached until the bit is learned.
    learner: Option<RawTracePointLinkId>,
    /// How many stacks each CPU had kept when those of its past runs were taken out.
    cleaned: BTreeMap<u32, u64>,
    times: (u64, Arc<BTreeMap<u32, CpuTimes>>),
    is_virtual: bool,
    ebpf: Ebpf,
}

struct OpenEvent {
    link: PerfEventLinkId,
    opened_at_ns: u64,
}

impl std::fmt::Debug for BeatProbes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BeatProbes").finish_non_exhaustive()
    }
}

impl BeatProbes {
    /// Loads the programs and begins to sample every online CPU, as often as the thresholds
    /// ask for.
    ///
    /// # Errors
    /// When the kernel refuses a program, a map or an event.
    pub fn open(layout: &Layout, thresholds: Thresholds) -> Result<Self, LoadError> {
        let pace = Pace::of(thresholds);
        // Of the possible ones, which x86 numbers without a gap.
        let slots = nr_cpus().map_err(|(_, error)| LoadError::Cpus(error))? as u32;
        let task = TaskLayoutGlobal(layout.task);
        let config = Config(pace.config(layout.task_flags, layout.task_prio));
        let mut ebpf = loader()
            .override_global("TASK_LAYOUT", &task, true)
            .override_global("BEAT_CONFIG", &config, true)
            .map_max_entries("BEATS", slots)
            .map_max_entries("HOTPLUGGED", slots)
            .load(OBJECT)
            .map_err(LoadError::object)?;
        // Before there is an event that could go.
        attach(&mut ebpf, HOTPLUG, "cpuhp_enter")?;
        let learner = attach(&mut ebpf, LEARNER, "sched_wakeup")?;
        let beat: &mut PerfEvent = iterator::program(&mut ebpf, BEAT)?;
        beat.load().map_err(LoadError::program)?;
        let typed = |error| LoadError::Map(io::Error::other(error));
        let mut probes = Self {
            pace,
            late: thresholds
                .hard_lockup
                .map(|Nanos(ns)| pace.gap.max(Nanos(ns / 2))),
            events: BTreeMap::new(),
            whole: BTreeMap::new(),
            slots: Array::try_from(map(&mut ebpf, "BEATS")?).map_err(typed)?,
            hotplugged: Array::try_from(map(&mut ebpf, "HOTPLUGGED")?).map_err(typed)?,
            stacks: HashMap::try_from(map(&mut ebpf, "BEAT_STACKS")?).map_err(typed)?,
            learned: Array::try_from(map(&mut ebpf, "NEED_RESCHED")?).map_err(typed)?,
            learner: Some(learner),
            cleaned: BTreeMap::new(),
            times: (0, Arc::default()),
            is_virtual: cpus::is_virtual(),
            ebpf,
        };
        probes.learn();
        for cpu in cpus_of(online_cpus())? {
            probes.open_event(cpu)?;
        }
        Ok(probes)
    }

    /// How often CPUs are sampled.
    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// Whether it is known which bit says that a reschedule is pending.
    pub fn knows_pending(&self) -> bool {
        self.learned().mask != 0
    }

    /// What is learned of that bit.
    pub fn learned(&self) -> NeedResched {
        self.learned
            .get(&0, 0)
            .map_or_else(|_| NeedResched::default(), |learned| learned.0)
    }

    /// Reads what there is of all CPUs, and follows those that come and go.
    ///
    /// # Errors
    /// When a map or the list of CPUs cannot be read.
    pub fn read(&mut self) -> Result<Readings, LoadError> {
        let now_ns = now_ns();
        let online: BTreeSet<u32> = cpus_of(online_cpus())?.into_iter().collect();
        self.follow_hotplug(&online);
        self.read_slots();
        // Not copied, for there may be hundreds: given back below.
        let slots = mem::take(&mut self.whole);
        let beats = |cpu: &u32| {
            let last = slots.get(cpu).map(|slot| slot.last.at_ns);
            last.is_some_and(|last_ns| Nanos::between(last_ns, now_ns) <= self.pace.gap)
        };
        // To detach, too, all CPUs are asked.
        if self.learner.is_some() && self.knows_pending() && online.iter().all(beats) {
            self.stop_learning();
        }
        let mut stacks = self.read_stacks(&slots);
        let is_late = |cpu: &u32| {
            let last = slots.get(cpu).map(|slot| slot.last.at_ns);
            self.late
                .zip(last)
                .is_some_and(|(late, last_ns)| Nanos::between(last_ns, now_ns) >= late)
        };
        let timer_interrupts = if online.iter().any(is_late) {
            cpus::timer_interrupts()
                .inspect_err(|error| tracing::debug!("cannot read interrupts: {error}"))
                .unwrap_or_default()
        } else {
            BTreeMap::new()
        };
        // A long run without a sample: over, if the CPU idles now.
        let may_idle = |slot: &Beat| {
            Nanos::between(slot.last.at_ns, now_ns) > self.pace.gap && self.is_long(slot)
        };
        if self.times.1.is_empty()
            || Nanos::between(self.times.0, now_ns) >= TIMES_EVERY
            || slots.values().any(may_idle)
        {
            let times = cpus::times()
                .inspect_err(|error| tracing::debug!("cannot read times: {error}"))
                .unwrap_or_default();
            self.times = (now_ns, Arc::new(times));
        }
        let beats = slots
            .iter()
            .map(|(&cpu, slot)| {
                let stacks = stacks.remove(&cpu).unwrap_or_default();
                (cpu, CpuBeat::decode(slot, self.hotplugged_at(cpu), stacks))
            })
            .collect();
        self.whole = slots;
        Ok(Readings {
            now_ns,
            online,
            beats,
            times: Arc::clone(&self.times.1),
            times_ns: self.times.0,
            timer_interrupts,
            is_virtual: self.is_virtual,
        })
    }

    /// Shows the learner some wake-ups that mark a reschedule for sure: to leave a CPU, our
    /// thread wakes the one that moves it, which no other task keeps from running. Where
    /// there is but one CPU, it has to wait for idle ones.
    fn learn(&mut self) {
        const NAPS: u32 = 20;
        // A thread of its own, for the CPUs that ours may use are not ours to change.
        let moved = thread::Builder::new().name("lockwatch-moves".to_owned());
        if let Ok(moves) = moved.spawn(move_about) {
            let _ = moves.join();
        }
        for _ in 0..NAPS {
            if self.knows_pending() {
                return self.stop_learning();
            }
            thread::sleep(Duration::from_millis(2));
        }
        tracing::debug!("it is not known yet how the kernel marks a pending reschedule");
    }

    fn stop_learning(&mut self) {
        let Some(link) = self.learner.take() else {
            return;
        };
        let learner: Result<&mut RawTracePoint, _> = iterator::program(&mut self.ebpf, LEARNER);
        if let Ok(learner) = learner
            && let Err(error) = learner.detach(link)
        {
            tracing::debug!("cannot detach {LEARNER}: {error}");
        }
    }

    fn open_event(&mut self, cpu: u32) -> Result<(), LoadError> {
        // Before, so that a step taken meanwhile is not missed.
        let opened_at_ns = now_ns();
        let rate = self.pace.rate;
        let beat: &mut PerfEvent = iterator::program(&mut self.ebpf, BEAT)?;
        let link = beat
            .attach(
                PerfEventConfig::Software(SoftwareEvent::CpuClock),
                PerfEventScope::AllProcessesOneCpu { cpu },
                SamplePolicy::Frequency(rate),
                false,
            )
            .map_err(LoadError::program)?;
        self.events.insert(cpu, OpenEvent { link, opened_at_ns });
        Ok(())
    }

    fn close_event(&mut self, cpu: u32) {
        let Some(event) = self.events.remove(&cpu) else {
            return;
        };
        let beat: Result<&mut PerfEvent, _> = iterator::program(&mut self.ebpf, BEAT);
        if let Ok(beat) = beat
            && let Err(error) = beat.detach(event.link)
        {
            tracing::debug!("cannot close the event of CPU {cpu}: {error}");
        }
    }

    /// Gives an event to each CPU that has come, and to each that was gone meanwhile, and
    /// takes it from each that has gone.
    fn follow_hotplug(&mut self, online: &BTreeSet<u32>) {
        let gone = |cpu: &u32| !online.contains(cpu);
        for cpu in self.events.keys().copied().filter(gone).collect::<Vec<_>>() {
            self.close_event(cpu);
        }
        for &cpu in online {
            let stepped_ns = self.hotplugged_at(cpu);
            let is_current = |event: &OpenEvent| event.opened_at_ns > stepped_ns;
            if self.events.get(&cpu).is_some_and(is_current)
                || Nanos::between(stepped_ns, now_ns()) < SETTLED
            {
                continue;
            }
            self.close_event(cpu);
            // Gone again, or not there yet: the next reading sees.
            if let Err(error) = self.open_event(cpu) {
                tracing::debug!("no event for CPU {cpu} yet: {error}");
            }
        }
    }

    fn hotplugged_at(&self, cpu: u32) -> u64 {
        self.hotplugged.get(&cpu, 0).unwrap_or(0)
    }

    /// Reads the slots of all CPUs that have ever beaten.
    fn read_slots(&mut self) {
        for cpu in 0..self.slots.len() {
            // Of a CPU that its host has stopped inside of the program, the sample before.
            if let Some(slot) = self.read_slot(cpu) {
                self.whole.insert(cpu, slot);
            }
        }
    }

    /// One slot; `None` if the CPU has never beaten, or is writing it.
    fn read_slot(&self, cpu: u32) -> Option<Beat> {
        let mut last: Option<Beat> = None;
        for _ in 0..READ_ATTEMPTS {
            let slot = self.slots.get(&cpu, 0).ok()?.0;
            if slot.done == 0 {
                return None;
            }
            // Twice the same, for the kernel copies it in no promised order.
            if last == Some(slot) && slot.begun == slot.done {
                return last;
            }
            last = Some(slot);
        }
        None
    }

    /// Whether it may become a lockup, so that stacks are kept of it.
    fn is_long(&self, slot: &Beat) -> bool {
        let run = slot.run();
        run.samples > 1 && run.counted_ns >= self.pace.stacks_after.0
    }

    /// The stacks of runs that may become lockups, by CPU. Takes out those of runs that
    /// have ended.
    fn read_stacks(&mut self, slots: &BTreeMap<u32, Beat>) -> BTreeMap<u32, Vec<Sample>> {
        let is_clean = |(cpu, slot): (&u32, &Beat)| {
            self.cleaned.get(cpu).copied().unwrap_or(0) == slot.kept_stacks
        };
        if slots.iter().all(is_clean) {
            return BTreeMap::new();
        }
        let mut found: BTreeMap<u32, Vec<Sample>> = BTreeMap::new();
        let mut over = Vec::new();
        // A walk can start over when the entry under it goes.
        for key in self.stacks.keys().take(4 * STACKS_MAX as usize).flatten() {
            let Some(slot) = slots.get(&key.0.cpu) else {
                continue;
            };
            if !self.is_long(slot) {
                over.push(key);
                continue;
            }
            let Ok(Stack(stack)) = self.stacks.get(&key, 0) else {
                continue;
            };
            if stack.run_since_ns == slot.run().since_ns {
                let frames = &stack.frames[..stack.frames.len().min(stack.frame_count as usize)];
                let samples = found.entry(key.0.cpu).or_default();
                let sample = Sample {
                    frames: frames.to_vec(),
                    count: stack.count,
                };
                if !samples.contains(&sample) {
                    samples.push(sample);
                }
            }
        }
        for key in over {
            // Not there: a walk that started over had it twice.
            let _ = self.stacks.remove(&key);
        }
        let ended = slots.iter().filter(|(_, slot)| !self.is_long(slot));
        let ended: Vec<(u32, u64)> = ended.map(|(&cpu, slot)| (cpu, slot.kept_stacks)).collect();
        self.cleaned.extend(ended);
        found
    }
}

/// Goes from CPU to CPU, of those that this thread may use.
fn move_about() {
    const MOVES: usize = 4 * WAKEUPS_WANTED as usize;
    let Ok(allowed) = sched_getaffinity(None) else {
        return;
    };
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU)
        .filter(|&cpu| allowed.is_set(cpu))
        .take(2)
        .collect();
    for &cpu in cpus.iter().cycle().take(MOVES) {
        let mut one = CpuSet::new();
        one.set(cpu);
        if let Err(error) = sched_setaffinity(None, &one) {
            tracing::debug!("cannot go to CPU {cpu}: {error}");
        }
    }
}

/// Loads a raw tracepoint's program and attaches it.
fn attach(
    ebpf: &mut Ebpf,
    name: &'static str,
    tracepoint: &str,
) -> Result<RawTracePointLinkId, LoadError> {
    let program: &mut RawTracePoint = iterator::program(ebpf, name)?;
    program.load().map_err(LoadError::program)?;
    program.attach(tracepoint).map_err(LoadError::program)
}

fn cpus_of(listed: Result<Vec<u32>, (&str, io::Error)>) -> Result<Vec<u32>, LoadError> {
    listed.map_err(|(_, error)| LoadError::Cpus(error))
}
