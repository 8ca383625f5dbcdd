//! Tells from the beats of all CPUs which of them may be locked up.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::{CpuBeat, CpuTimes, LockupKind, Mode, Pace, Readings, Suspect};
use crate::{
    detect::Thresholds,
    figures::{Count, Span},
    task::Nanos,
};

/// Stolen time beyond this share of all time is worth saying.
const STOLEN_PERCENT: u64 = 20;

/// Readings of times that are kept, and how far they are apart at least.
const TIMES_KEPT: usize = 64;
const TIMES_APART: u64 = 1_000_000_000;

/// Tells from the beats of all CPUs which of them may be locked up.
///
/// Pure: the same readings give the same suspects. A suspect is no verdict: that the CPU is
/// not idle, and who waits for it, a survey has to see.
///
/// - **Soft**: from one sample to the next, for the threshold, the CPU was in the kernel with
///   the same task, no context switch, and a reschedule pending. The idle task counts too,
///   for it never keeps a CPU that another task is to get: then an interrupt or soft
///   interrupt is on top of it. Where it is not known whether a reschedule was pending, being
///   in the kernel is enough to be suspected. It is over with the first sample that shows
///   something else, or, without any (CPUs that idle may not beat), once the CPU is seen to
///   have idled since: it stood until its last sample then.
/// - **Hard**: the CPU is online and has not beaten for the threshold, while at least one
///   other CPU has, without a gap: so it is not the machine that stood still, nor are we late.
///   Its timer interrupts, where they are counted, have stopped too: so it is not our sampler
///   alone that is silent.
#[derive(Debug)]
pub struct Monitor {
    thresholds: Thresholds,
    pace: Pace,
    late: BTreeMap<u32, Late>,
    /// CPUs that were suspected of a hard lockup, with the last beat before it: until they
    /// beat again, they are.
    silent: BTreeMap<u32, u64>,
    /// CPUs that have idled since their last sample, with its time.
    idled: BTreeMap<u32, u64>,
    /// Readings of times, each with when it was taken, the oldest first.
    times: VecDeque<(u64, Arc<BTreeMap<u32, CpuTimes>>)>,
}

/// A CPU without a beat since the last reading.
#[derive(Clone, Copy, Debug)]
struct Late {
    /// Its last beat.
    last_ns: u64,
    /// Timer interrupts that it has had.
    timer_interrupts: u64,
    /// When that number was read first.
    since_ns: u64,
}

/// What the timer interrupts of a late CPU say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timer {
    /// They go on, or it is too early to tell.
    MayRun,
    /// They have stopped.
    Stopped,
    /// They are not counted here.
    Uncounted,
}

impl Monitor {
    /// Suspects nothing yet.
    pub fn new(thresholds: Thresholds) -> Self {
        Self {
            thresholds,
            pace: Pace::of(thresholds),
            late: BTreeMap::new(),
            silent: BTreeMap::new(),
            idled: BTreeMap::new(),
            times: VecDeque::new(),
        }
    }

    /// The CPUs that may be locked up now, by number; at most one suspect each.
    pub fn suspects(&mut self, readings: &Readings) -> Vec<Suspect> {
        self.keep_times(readings);
        let mut suspects = Vec::new();
        for (&cpu, beat) in &readings.beats {
            let timer = self.timer(cpu, beat, readings);
            self.follow_idling(cpu, beat, readings);
            // A CPU that goes offline or comes online stands still for that.
            if !readings.online.contains(&cpu) || beat.hotplugged_ns > beat.last_ns {
                continue;
            }
            let hard = self.hard(cpu, beat, timer, readings);
            if hard.is_some() {
                self.silent.insert(cpu, beat.last_ns);
            }
            suspects.extend(hard.or_else(|| self.soft(cpu, beat, readings)));
        }
        let still_suspected = |&cpu: &u32| {
            suspects
                .iter()
                .any(|it: &Suspect| it.cpu == cpu && it.kind == LockupKind::Hard)
        };
        self.silent.retain(|cpu, _| still_suspected(cpu));
        suspects
    }

    fn soft(&self, cpu: u32, beat: &CpuBeat, readings: &Readings) -> Option<Suspect> {
        let threshold = self.thresholds.soft_lockup?;
        let run = beat.run();
        if run.samples == 0 || run.counted < threshold {
            return None;
        }
        if self.idled.contains_key(&cpu) {
            return None;
        }
        let silent = Nanos::between(beat.last_ns, readings.now_ns);
        // From then on it is hard or nothing.
        let bound = self.thresholds.hard_lockup.unwrap_or(self.pace.steady_gap);
        if silent >= bound.max(self.pace.steady_gap) {
            return None;
        }
        let mut unknown = Vec::new();
        if beat.is_pending.is_none() {
            unknown.push(
                "whether another task is to get this CPU: this kernel's mark for it is not known"
                    .to_owned(),
            );
        }
        let uncounted = Nanos::between(run.counted.0, run.lasted.0);
        if uncounted > Nanos(0) {
            unknown.push(format!(
                "what it did for {} without a sample, up to {} at a time: that is not counted",
                Span(uncounted),
                Span(run.longest_gap)
            ));
        }
        if silent > self.pace.gap {
            unknown.push(format!(
                "what it does now: the last sample is {} old",
                Span(silent)
            ));
        }
        unknown.extend(self.stolen(cpu, readings.now_ns, run.lasted));
        Some(Suspect {
            kind: LockupKind::Soft,
            since_ns: beat.last_ns.saturating_sub(run.counted.0),
            ..Self::suspect(cpu, beat, unknown)
        })
    }

    fn hard(&self, cpu: u32, beat: &CpuBeat, timer: Timer, readings: &Readings) -> Option<Suspect> {
        let threshold = self.thresholds.hard_lockup?;
        let silent = Nanos::between(beat.last_ns, readings.now_ns);
        if silent < threshold.max(self.pace.steady_gap) {
            return None;
        }
        if timer == Timer::MayRun {
            return None;
        }
        let others = || {
            readings
                .beats
                .iter()
                .filter(|&(&other, _)| other != cpu && readings.online.contains(&other))
        };
        // It has beaten since before this one fell silent, and does now.
        let is_witness = |other: &CpuBeat| {
            let steady_gap = self.pace.steady_gap.0;
            other.steady_since_ns <= beat.last_ns.saturating_add(steady_gap)
                && other.last_ns.saturating_add(steady_gap) >= readings.now_ns
        };
        let witnesses = others().filter(|(_, other)| is_witness(other)).count();
        // Once it was seen to be silent alone, what others do since says nothing of it.
        let was_seen = self.silent.get(&cpu) == Some(&beat.last_ns);
        if witnesses == 0 && !was_seen {
            return None;
        }
        let mut unknown = Vec::new();
        let silent_too = others().count() - witnesses;
        if silent_too > 0 {
            unknown.push(format!(
                "why {} did not beat steadily either",
                Count::of(silent_too).nouns("other CPU", "other CPUs")
            ));
        }
        if timer == Timer::Uncounted {
            unknown.push(
                "whether it takes timer interrupts: the kernel does not count them here".to_owned(),
            );
        }
        if readings.is_virtual {
            unknown.push(
                "whether the host of this virtual machine lets the CPU run: a CPU that it stops looks the same"
                    .to_owned(),
            );
        }
        unknown.extend(self.stolen(cpu, readings.now_ns, silent));
        Some(Suspect {
            kind: LockupKind::Hard,
            since_ns: beat.last_ns,
            until_ns: readings.now_ns,
            ..Self::suspect(cpu, beat, unknown)
        })
    }

    fn suspect(cpu: u32, beat: &CpuBeat, mut unknown: Vec<String>) -> Suspect {
        if beat.lost_stacks > 0 {
            unknown.push(format!(
                "{} that could not be kept",
                Count(beat.lost_stacks).nouns("sampled stack", "sampled stacks")
            ));
        }
        Suspect {
            cpu,
            kind: LockupKind::Soft,
            since_ns: beat.last_ns,
            until_ns: beat.last_ns,
            task: beat.task.clone(),
            samples: beat.stacks.clone(),
            is_reschedule_known: beat.is_pending.is_some(),
            unknown,
        }
    }

    /// Follows the timer interrupts of a CPU while it does not beat.
    fn timer(&mut self, cpu: u32, beat: &CpuBeat, readings: &Readings) -> Timer {
        if self
            .late
            .get(&cpu)
            .is_some_and(|late| late.last_ns != beat.last_ns)
        {
            self.late.remove(&cpu);
        }
        if readings.timer_interrupts.is_empty() {
            return Timer::Uncounted;
        }
        let Some(&count) = readings.timer_interrupts.get(&cpu) else {
            return Timer::Uncounted;
        };
        let late = self.late.entry(cpu).or_insert(Late {
            last_ns: beat.last_ns,
            timer_interrupts: count,
            since_ns: readings.now_ns,
        });
        // The first ones after its last beat say nothing yet.
        if count != late.timer_interrupts {
            late.timer_interrupts = count;
            late.since_ns = readings.now_ns;
        }
        if Nanos::between(late.since_ns, readings.now_ns) < self.pace.steady_gap {
            Timer::MayRun
        } else {
            Timer::Stopped
        }
    }

    /// Notes a CPU that has idled since its last sample, if that was of a task: no run of
    /// samples with one task and no context switch has idle time in it. (Of a soft interrupt on
    /// top of the idle task that cannot be said: the kernel may count it as idle,
    /// `tick_nohz_irq_exit` in kernel/time/tick-sched.c.)
    fn follow_idling(&mut self, cpu: u32, beat: &CpuBeat, readings: &Readings) {
        if self.idled.get(&cpu).is_some_and(|&at| at != beat.last_ns) {
            self.idled.remove(&cpu);
        }
        let idle = |times: &BTreeMap<u32, CpuTimes>| times.get(&cpu).map(|times| times.idle);
        let began_ns = beat.last_ns.saturating_sub(beat.run().lasted.0);
        let mut within = self.times.iter().filter(|(at_ns, _)| *at_ns >= began_ns);
        let then = within.find_map(|(_, times)| idle(times));
        let now = idle(&readings.times);
        let has_idled = then.zip(now).is_some_and(|(then, now)| now > then);
        if beat.mode != Mode::Idle && beat.run().samples > 0 && has_idled {
            self.idled.insert(cpu, beat.last_ns);
        }
    }

    fn keep_times(&mut self, readings: &Readings) {
        let is_due = self
            .times
            .back()
            .is_none_or(|(at_ns, _)| readings.times_ns >= at_ns.saturating_add(TIMES_APART));
        if !is_due || readings.times.is_empty() {
            return;
        }
        if self.times.len() == TIMES_KEPT {
            self.times.pop_front();
        }
        self.times
            .push_back((readings.times_ns, Arc::clone(&readings.times)));
    }

    /// Says so if much time was stolen from this CPU, or from all together, within this
    /// time and a bit before.
    fn stolen(&self, cpu: u32, now_ns: u64, within: Nanos) -> Option<String> {
        let began_ns = now_ns.saturating_sub(within.0);
        let (_, before) = self
            .times
            .iter()
            .rev()
            .find(|(at_ns, _)| *at_ns <= began_ns)
            .or_else(|| self.times.front())?;
        let (_, after) = self.times.back()?;
        let share = |times: &dyn Fn(&BTreeMap<u32, CpuTimes>) -> CpuTimes| {
            let (before, after) = (times(before), times(after));
            let all = after.all.saturating_sub(before.all);
            let stolen = after.stolen.saturating_sub(before.stolen);
            (100 * stolen).checked_div(all).unwrap_or(0)
        };
        let own = share(&|times| times.get(&cpu).copied().unwrap_or_default());
        let all = share(&|times| {
            times
                .values()
                .fold(CpuTimes::default(), |sum, cpu| CpuTimes {
                    all: sum.all + cpu.all,
                    stolen: sum.stolen + cpu.stolen,
                    idle: sum.idle + cpu.idle,
                })
        });
        let (percent, whose) = if own > STOLEN_PERCENT {
            (own, "this CPU's")
        } else if all > STOLEN_PERCENT {
            (all, "all CPUs'")
        } else {
            return None;
        };
        Some(format!(
            "how much it ran itself: the host gave {percent} % of {whose} time to other machines"
        ))
    }
}
