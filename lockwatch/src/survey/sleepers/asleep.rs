//! For how long tasks have slept, at least.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    kernel::{
        layout::Layout,
        memory::{KernelMemory, MemoryError, half_word, word},
        scheduler::SchedulerLayout,
        sleep_frames::sleeps_by_design,
    },
    survey::{
        clock::Clocks,
        functions::Functions,
        look::{Look, TaskLook},
    },
    task::{Nanos, TaskKey, TaskState, Tid},
};

/// Nobody calls a shorter sleep a hanging task. It bounds a survey's size, too.
const LEAST: Nanos = Nanos(1_000_000_000);

/// A task that sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::survey) struct Asleep {
    /// Index into [`Look::tasks`].
    pub(in crate::survey) task: usize,
    /// For how long it has slept, at least.
    pub(in crate::survey) at_least: Nanos,
    /// The scheduler counts it as waiting for I/O.
    pub(in crate::survey) io_wait: bool,
}

/// Tasks of which the scheduler does not tell when they went to sleep: when surveys first saw
/// them in this sleep. The kernel's own detector knows no more than that
/// (`check_hung_task`, kernel/hung_task.c).
#[derive(Debug, Default)]
pub(in crate::survey) struct History {
    first_seen_ns: FxHashMap<(TaskKey, u64), u64>,
}

impl History {
    /// More tasks than these are not remembered.
    const MAX: usize = 16_384;

    /// Remembers the sleeps of one look, and forgets all others. Gives how long each has
    /// been seen.
    fn update(&mut self, look: &Look, sleeps: &[usize]) -> Vec<Nanos> {
        let mut now = FxHashMap::default();
        let seen = sleeps.iter().map(|&index| {
            let task = &look.tasks[index];
            let record = &task.record;
            let sleep = (task.name.key, record.nvcsw.wrapping_add(record.nivcsw));
            let first = self.first_seen_ns.get(&sleep).copied();
            let first = first.unwrap_or(record.taken_at_ns);
            if now.len() < Self::MAX {
                now.insert(sleep, first);
            }
            Nanos::between(first, record.taken_at_ns)
        });
        let seen = seen.collect();
        self.first_seen_ns = now;
        seen
    }
}

/// The tasks of a look that have been in uninterruptible sleep for a second or longer,
/// except where that is as user space wants it. `own` is our own thread.
///
/// # Errors
/// When kernel memory cannot be read at all.
pub(in crate::survey) fn seen(
    look: &Look,
    clocks: &Clocks,
    own: Option<Tid>,
    layout: &Layout,
    functions: &mut Functions<'_>,
    history: &mut History,
    memory: &mut dyn KernelMemory,
) -> Result<Vec<Asleep>, MemoryError> {
    let may_have_slept = |task: &TaskLook| {
        // It slept no earlier than it got the CPU.
        let record = &task.record;
        let off_cpu = clocks.off_cpu(record.last_arrival_ns, record.taken_at_ns);
        matches!(task.state, TaskState::Uninterruptible | TaskState::Killable)
            && record.on_cpu == 0
            && record.moved == 0
            && off_cpu.is_none_or(|off_cpu| off_cpu >= LEAST)
    };
    let mut sleeps: Vec<usize> = (0..look.tasks.len())
        .filter(|&index| may_have_slept(&look.tasks[index]))
        .collect();
    sleeps.retain(|&index| !sleeps_by_design(&functions.stems(&look.tasks[index])));
    if sleeps.is_empty() {
        history.update(look, &[]);
        return Ok(Vec::new());
    }
    let told = match &layout.scheduler {
        Some(scheduler) => told(look, &sleeps, own, scheduler, memory)?,
        None => vec![None; sleeps.len()],
    };
    let untold: Vec<usize> = sleeps
        .iter()
        .zip(&told)
        .filter_map(|(&index, told)| told.is_none().then_some(index))
        .collect();
    let mut remembered = history.update(look, &untold).into_iter();
    let mut asleep = Vec::new();
    for (task, told) in sleeps.into_iter().zip(told) {
        let at_least = match told {
            Some(at_least) => at_least,
            None => remembered.next().unwrap_or_default(),
        };
        if at_least >= LEAST {
            asleep.push(Asleep {
                task,
                at_least,
                io_wait: false,
            });
        }
    }
    if let Some(bit) = layout.io_wait {
        let byte = |sleeper: &Asleep| (look.tasks[sleeper.task].record.task + bit.byte, 1);
        let reads: Vec<(u64, usize)> = asleep.iter().map(byte).collect();
        let mut sleepers = asleep.iter_mut();
        memory.read_each(&reads, &mut |byte| {
            if let (Some(sleeper), Some(byte)) = (sleepers.next(), byte) {
                sleeper.io_wait = byte[0] & bit.mask != 0;
            }
        })?;
    }
    Ok(asleep)
}

/// The clocks of a run queue.
#[derive(Clone, Copy)]
struct RunQueue {
    cpu: u32,
    clock: u64,
    /// What its clock for tasks has left out so far.
    left_out: u64,
}

/// How long each of these has slept, at least, as the scheduler tells it.
fn told(
    look: &Look,
    sleeps: &[usize],
    own: Option<Tid>,
    layout: &SchedulerLayout,
    memory: &mut dyn KernelMemory,
) -> Result<Vec<Option<Nanos>>, MemoryError> {
    let own = look
        .tasks
        .iter()
        .position(|task| Some(task.name.key.tid) == own);
    let asked: Vec<usize> = sleeps.iter().copied().chain(own).collect();
    let reads: Vec<(u64, usize)> = asked
        .iter()
        .flat_map(|&index| {
            let task = look.tasks[index].record.task;
            [layout.exec_start, layout.group_queue].map(|at| (task.wrapping_add(at), 8))
        })
        .collect();
    let mut words: Vec<Option<u64>> = Vec::with_capacity(reads.len());
    memory.read_each(&reads, &mut |bytes| {
        words.push(bytes.map(|bytes| word(bytes, 0)));
    })?;
    let of_groups = run_queues(&words, layout, memory)?;
    // No run queue's clock is ahead of time. Ours was set when we last got the CPU, or by a
    // tick since.
    let now = of_groups.values().map(|run_queue| run_queue.clock).max();
    let at_least = |index: usize, words: &[Option<u64>]| {
        let record = &look.tasks[index].record;
        let run_queue = of_groups.get(&words[1]?)?;
        let exec_start = words[0].filter(|&start| start != 0)?;
        let slept_at = exec_start.checked_add(run_queue.left_out)?;
        // The run queue of another CPU, or no run queue at all.
        if run_queue.cpu != record.cpu || slept_at > run_queue.clock {
            return None;
        }
        Some(Nanos::between(slept_at.max(record.last_arrival_ns), now?))
    };
    let words = words.chunks_exact(2);
    Ok(sleeps
        .iter()
        .zip(words)
        .map(|(&index, words)| at_least(index, words))
        .collect())
}

/// The run queues that these tasks' group queues belong to, by the address of the latter.
/// `words` are pairs, of which the second is that address.
fn run_queues(
    words: &[Option<u64>],
    layout: &SchedulerLayout,
    memory: &mut dyn KernelMemory,
) -> Result<FxHashMap<u64, RunQueue>, MemoryError> {
    let groups: FxHashSet<u64> = words.iter().skip(1).step_by(2).flatten().copied().collect();
    let groups: Vec<u64> = groups.into_iter().collect();
    let reads: Vec<(u64, usize)> = groups
        .iter()
        .map(|group| (group.wrapping_add(layout.run_queue), 8))
        .collect();
    let found: Vec<(u64, u64)> = groups
        .into_iter()
        .zip(memory.read_batch(&reads)?)
        .filter_map(|(group, bytes)| Some((group, word(&bytes?, 0))))
        .collect();
    let reads: Vec<(u64, usize)> = found
        .iter()
        .flat_map(|&(_, run_queue)| {
            // In this order: an update in between makes the difference too large, which
            // makes the sleep too short.
            [(layout.cpu, 4), (layout.clock_task, 8), (layout.clock, 8)]
                .map(|(at, len)| (run_queue.wrapping_add(at), len))
        })
        .collect();
    let read = memory.read_batch(&reads)?;
    let decode = |bytes: &[Option<Vec<u8>>]| {
        let clock = word(bytes[2].as_deref()?, 0);
        Some(RunQueue {
            cpu: half_word(bytes[0].as_deref()?, 0),
            clock,
            left_out: clock.checked_sub(word(bytes[1].as_deref()?, 0))?,
        })
    };
    Ok(found
        .into_iter()
        .zip(read.chunks_exact(3))
        .filter_map(|((group, _), bytes)| Some((group, decode(bytes)?)))
        .collect())
}
