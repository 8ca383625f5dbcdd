//! How the holders of stalled locks spend their time.

use lockwatch_ebpf::stream::{SLEEPS, Watched, phase, sleep};
use rustc_hash::FxHashMap;

use crate::{
    clock::now_ns,
    probes::stream::StreamProbes,
    task::{Nanos, TaskKey, TaskState},
};

/// How a task spent its time since it was first watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// `CLOCK_MONOTONIC` ns from which on it is known.
    pub from_ns: u64,
    /// On a CPU.
    pub running: Nanos,
    /// Ready, without a CPU.
    pub runnable: Nanos,
    /// Asleep.
    pub asleep: Nanos,
    /// Times it left the CPU.
    pub switches: u32,
    /// Of the time asleep: in the sleep in which it was found.
    pub found_asleep: Nanos,
    /// Of the rest of it: by the stack with which it fell asleep; no more than a few
    /// stacks, so that the sum may fall short.
    pub sleeps: Vec<Slept>,
}

/// The sleeps of a task with one and the same stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slept {
    /// Kernel addresses, innermost first.
    pub frames: Vec<u64>,
    /// Time spent in it.
    pub time: Nanos,
}

impl Times {
    fn read(from_ns: u64, watched: &Watched, now_ns: u64) -> Self {
        // The phase that has not ended yet counts up to now.
        let open_ns = now_ns.saturating_sub(watched.changed_at_ns);
        let total = |which: u32| {
            let open_ns = if watched.phase == which { open_ns } else { 0 };
            Nanos(watched.ns[which as usize] + open_ns)
        };
        let slept = |ns: u64, which: u32| {
            let open = watched.phase == phase::ASLEEP && watched.sleep == which;
            Nanos(ns + if open { open_ns } else { 0 })
        };
        let sleeps = (0..SLEEPS)
            .filter(|&slot| watched.sleeps[slot].digest != 0)
            .map(|slot| {
                let sleep = &watched.sleeps[slot];
                Slept {
                    frames: sleep
                        .frames
                        .iter()
                        .copied()
                        .take_while(|&at| at != 0)
                        .collect(),
                    time: slept(sleep.ns, slot as u32),
                }
            })
            .collect();
        Self {
            from_ns,
            running: total(phase::RUNNING),
            runnable: total(phase::RUNNABLE),
            asleep: total(phase::ASLEEP),
            switches: watched.switches,
            found_asleep: slept(watched.found_ns, sleep::FOUND),
            sleeps,
        }
    }

    /// What happened between `earlier` and this reading of the same task.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let minus = |now: Nanos, then: Nanos| Nanos(now.0.saturating_sub(then.0));
        let sleeps = self.sleeps.iter().map(|slept| {
            let then = earlier
                .sleeps
                .iter()
                .find(|then| then.frames == slept.frames);
            Slept {
                frames: slept.frames.clone(),
                time: minus(slept.time, then.map_or(Nanos(0), |then| then.time)),
            }
        });
        Self {
            from_ns: self.from_ns.max(earlier.from_ns),
            running: minus(self.running, earlier.running),
            runnable: minus(self.runnable, earlier.runnable),
            asleep: minus(self.asleep, earlier.asleep),
            switches: self.switches.saturating_sub(earlier.switches),
            found_asleep: minus(self.found_asleep, earlier.found_asleep),
            sleeps: sleeps.collect(),
        }
    }

    /// All of it.
    pub fn total(&self) -> Nanos {
        Nanos(self.running.0 + self.runnable.0 + self.asleep.0)
    }
}

/// The tasks whose times are kept, each for as many stalls as want it.
#[derive(Debug, Default)]
pub(super) struct Watching {
    tasks: FxHashMap<TaskKey, Entry>,
    refused: u64,
}

#[derive(Debug)]
struct Entry {
    from_ns: u64,
    wanted: u32,
}

impl Watching {
    /// Keeps the times of this task, which was in `state` a moment ago. Each call
    /// wants one `release`. False if there is no room.
    pub(super) fn watch(
        &mut self,
        probes: &mut StreamProbes,
        task: TaskKey,
        state: TaskState,
    ) -> bool {
        if let Some(entry) = self.tasks.get_mut(&task) {
            entry.wanted += 1;
            return true;
        }
        let from_ns = now_ns();
        let initial = Watched {
            start_time_ns: task.start_ns,
            changed_at_ns: from_ns,
            phase: match state {
                TaskState::Running => phase::RUNNING,
                TaskState::Runnable => phase::RUNNABLE,
                state if state.is_asleep() => phase::ASLEEP,
                _ => phase::UNKNOWN,
            },
            sleep: sleep::FOUND,
            ..Watched::default()
        };
        let kept = probes.watch(task.tid.0, initial);
        if kept {
            self.tasks.insert(task, Entry { from_ns, wanted: 1 });
        } else {
            self.refused += 1;
        }
        kept
    }

    /// The times of a task so far; `None` if it is not watched.
    pub(super) fn times(&self, probes: &StreamProbes, task: TaskKey) -> Option<Times> {
        let entry = self.tasks.get(&task)?;
        let watched = probes.watched(task.tid.0)?;
        Some(Times::read(entry.from_ns, &watched, now_ns()))
    }

    /// One stall less wants this task's times.
    pub(super) fn release(&mut self, probes: &mut StreamProbes, task: TaskKey) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        entry.wanted -= 1;
        if entry.wanted == 0 {
            self.tasks.remove(&task);
            probes.unwatch(task.tid.0, self.tasks.is_empty());
        }
    }

    /// Tasks that found no room.
    pub(super) fn refused(&self) -> u64 {
        self.refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_open_phase_counts_up_to_now() {
        let mut watched = Watched {
            start_time_ns: 1,
            changed_at_ns: 1_000,
            ns: [0, 10, 20, 30],
            found_ns: 5,
            phase: phase::ASLEEP,
            switches: 2,
            sleep: 1,
            ..Watched::default()
        };
        for (slot, ns) in [(0, 7), (1, 18)] {
            watched.sleeps[slot].ns = ns;
            watched.sleeps[slot].digest = 1;
            watched.sleeps[slot].frames[..2].copy_from_slice(&[slot as u64 + 1, 9]);
        }
        let times = Times::read(900, &watched, 1_500);
        assert_eq!(times.running, Nanos(10));
        assert_eq!(times.runnable, Nanos(20));
        assert_eq!(times.asleep, Nanos(530));
        assert_eq!(times.total(), Nanos(560));
        assert_eq!(times.found_asleep, Nanos(5));
        let slept = |frames: [u64; 2], ns| Slept {
            frames: frames.to_vec(),
            time: Nanos(ns),
        };
        assert_eq!(times.sleeps, [slept([1, 9], 7), slept([2, 9], 518)]);
        let later = Times::read(900, &watched, 1_600).since(&times);
        assert_eq!(later.total(), Nanos(100));
        assert_eq!(later.sleeps, [slept([1, 9], 0), slept([2, 9], 100)]);
    }
}
