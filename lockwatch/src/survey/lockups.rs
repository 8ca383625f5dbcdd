//! CPUs that may be locked up, as beats tell, looked into: which task is there, what runs
//! on top of it, where it spins, and who is kept from running.
//!
//! Only the tasks tell whether a suspect still is one: another task on the CPU has got it
//! from somewhere. Whatever cannot be told is said to be unknown.

mod sharers;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;

use lockwatch_ebpf::survey::TaskLayout;

use crate::{
    kernel::{
        arch::{is_image_address, is_kernel_address, is_module_address},
        sleep_frames::is_thunk,
        softirqs::{Ran, bpf_program, is_bpf_program, is_softirq_thread, what_runs},
        stems::stem,
    },
    lock::StackId,
    lockup::{Context, Lockup, LockupKind, Sample, Spin, Starved, Suspect},
    survey::{
        functions::Functions,
        look::{Look, TaskLook},
        merge::Merger,
    },
    task::Nanos,
};

/// Most stacks of a profile.
const PROFILE_MAX: usize = 20;
/// Most starved tasks that are named.
const STARVED_MAX: usize = 20;
/// Most functions that are shown of a stack whose frames are not known.
const RETURNS_MAX: usize = 48;
/// Longer than any program or function that is not part of the image is likely to be, in
/// bytes: what lies further behind its symbol belongs to something loaded later.
const PROGRAM_MAX: u64 = 0x1000;
const MODULE_FUNCTION_MAX: u64 = 0x4000;

/// A place in code that nothing was known of when the symbols were read.
const LOADED_LATER: &str = "[a BPF program or module loaded later]";
const NOT_CODE: &str = "?";

/// What two looks tell of CPUs.
pub(super) struct Cpus<'a> {
    /// `None` where there was time for one only.
    pub(super) first: Option<&'a Look>,
    pub(super) last: &'a Look,
    /// Where a task keeps its CPU.
    pub(super) layout: &'a TaskLayout,
    /// Our own process: that its threads do not run there is no news.
    pub(super) own_tgid: u32,
}

/// This share of a hard lockup its task must have had the CPU: it got it up to one beat after
/// the last one.
const HARD_SHARE: (u64, u64) = (3, 4);

/// Those of the suspects that are locked up.
pub(super) fn lockups(
    suspects: &[Suspect],
    cpus: &Cpus<'_>,
    merger: &mut Merger<'_, '_>,
) -> Vec<Lockup> {
    let found = suspects.iter();
    found
        .filter_map(|suspect| cpus.lockup(suspect, merger))
        .collect()
}

impl<'a> Cpus<'a> {
    fn lockup(&self, suspect: &Suspect, merger: &mut Merger<'_, '_>) -> Option<Lockup> {
        let mut unknown = suspect.unknown.clone();
        let lasted = Nanos::between(suspect.since_ns, self.last.at_ns);
        let task = if self.layout.cpu.size == 0 {
            unknown.push(
                "which task is on the CPU now: this kernel does not say where a task is".to_owned(),
            );
            None
        } else {
            let now = self.task_on(suspect.cpu);
            if !self.is_same(suspect, now) {
                return None;
            }
            // A CPU without interrupts goes on with the task that it has. One that has got
            // another since its last beat does not hang: it slept through its timers, as idle
            // CPUs of some virtual machines do.
            let is_there_since = |task| {
                let had = merger.on_cpu(task);
                had.is_some_and(|had| had.0 >= lasted.0 / HARD_SHARE.1 * HARD_SHARE.0)
            };
            if suspect.kind == LockupKind::Hard && !now.is_some_and(is_there_since) {
                return None;
            }
            now
        };
        let starved = self.starved(suspect.cpu, lasted, merger);
        // It may be alone there, and then nothing is wrong with that.
        if suspect.kind == LockupKind::Soft && !suspect.is_reschedule_known && starved.is_empty() {
            return None;
        }
        let samples = total(&suspect.samples);
        let (context, program) = match suspect.kind {
            LockupKind::Soft => what_ran(&suspect.samples, merger.functions),
            // The samples are from before it stopped.
            LockupKind::Hard => (Context::Unknown, None),
        };
        let name = task
            .map(|task| task.name.clone())
            .or_else(|| suspect.task.clone());
        let is_task_interrupted = match (&context, &name) {
            (Context::Softirq { .. }, Some(task)) => !is_softirq_thread(&task.comm),
            (Context::Interrupt { .. }, Some(_)) => true,
            _ => false,
        };
        let mut returns = None;
        let mut sharers = Vec::new();
        if suspect.kind == LockupKind::Hard {
            unknown.extend(Self::hard_to_know());
            returns = task.and_then(|task| self.returns(task, merger));
            if let Some(task) = task {
                sharers = self.sharers(task, merger.functions);
            }
        }
        Some(Lockup {
            cpu: suspect.cpu,
            kind: suspect.kind,
            lasted,
            task: name,
            context,
            is_task_interrupted,
            program,
            profile: profile(&suspect.samples, merger),
            samples,
            returns,
            starved,
            sharers,
            unknown,
        })
    }

    /// The task that the last look saw on this CPU. None: its idle task, which no look has.
    fn task_on(&self, cpu: u32) -> Option<&'a TaskLook> {
        let mut tasks = self.last.tasks.iter();
        tasks.find(|task| task.record.on_cpu != 0 && task.record.cpu == cpu)
    }

    /// Whether the CPU is where the suspect says, and has been there in both looks.
    fn is_same(&self, suspect: &Suspect, now: Option<&TaskLook>) -> bool {
        let stood = |now: &TaskLook| match self.earlier(now) {
            Some(then) => is_on_same_run(then, now),
            None => self.first.is_none(),
        };
        match (suspect.kind, now) {
            (LockupKind::Soft, None) => suspect.task.is_none(),
            (LockupKind::Soft, Some(now)) => {
                suspect
                    .task
                    .as_ref()
                    .is_some_and(|it| it.key == now.name.key)
                    && stood(now)
            }
            // Idle: it sleeps, and needs no timer.
            (LockupKind::Hard, None) => false,
            // It may have come after the last sample.
            (LockupKind::Hard, Some(now)) => stood(now),
        }
    }

    /// The same task in the first look.
    fn earlier(&self, now: &TaskLook) -> Option<&'a TaskLook> {
        let first = self.first?;
        let index = first.task_at(now.record.task)?;
        Some(&first.tasks[index]).filter(|then| then.name.key == now.name.key)
    }

    /// Tasks that were ready to run on this CPU in both looks, and did not.
    fn starved(&self, cpu: u32, lasted: Nanos, merger: &Merger<'_, '_>) -> Vec<Starved> {
        let waits = |task: &TaskLook| {
            let record = &task.record;
            // 2 is on its way to another CPU; a state other than 0 is asleep, and not yet taken
            // off the queue (delayed dequeue, 6.12+).
            record.on_rq == 1 && record.on_cpu == 0 && record.state == 0 && record.cpu == cpu
        };
        let mut starved: Vec<Starved> = self
            .last
            .tasks
            .iter()
            .filter(|now| waits(now) && now.record.tgid != self.own_tgid)
            .filter(|now| match self.earlier(now) {
                Some(then) => waits(then) && has_same_switches(then, now),
                None => self.first.is_none(),
            })
            .map(|now| Starved {
                task: now.name.clone(),
                // When it became ready is not known: it can have slept since it last ran.
                since: merger.off_cpu(now).map_or(lasted, |off| off.min(lasted)),
            })
            .collect();
        starved.sort_by(|a, b| b.since.cmp(&a.since).then(a.task.key.cmp(&b.task.key)));
        starved.truncate(STARVED_MAX);
        starved
    }

    /// What cannot be known of a CPU that takes no interrupts.
    fn hard_to_know() -> Vec<String> {
        vec![
            "where it is now: its registers cannot be read without an NMI, and its samples are \
             from before it stopped"
                .to_owned(),
            "whether an interrupt's handler runs there: the interrupt stack is not read".to_owned(),
        ]
    }

    /// The functions that words on a task's stack return to.
    fn returns(&self, task: &TaskLook, merger: &mut Merger<'_, '_>) -> Option<StackId> {
        let words = self.last.words(task);
        let mut frames: Vec<String> = words
            .iter()
            .filter(|&&word| is_image_address(word))
            .filter_map(|&word| {
                let (name, offset) = merger.functions.returned_into(word)?;
                // Where a function begins is rather a pointer to it.
                let returns = !merger.functions.is_symbol(word) && !is_thunk(stem(name));
                (returns && is_within(name, offset, word)).then(|| format!("{name}+{offset:#x}"))
            })
            .collect();
        // The outer ones are the likelier to be alive.
        let surplus = frames.len().saturating_sub(RETURNS_MAX);
        frames.drain(..surplus);
        (!frames.is_empty()).then(|| merger.stacks.intern(frames))
    }
}

/// On the CPU in both, and not off it in between.
fn is_on_same_run(then: &TaskLook, now: &TaskLook) -> bool {
    then.record.on_cpu != 0
        && now.record.on_cpu != 0
        && then.record.cpu == now.record.cpu
        && has_same_switches(then, now)
}

fn has_same_switches(then: &TaskLook, now: &TaskLook) -> bool {
    let switches = |task: &TaskLook| (task.record.nvcsw, task.record.nivcsw);
    then.name.key == now.name.key && switches(then) == switches(now)
}

fn total(samples: &[Sample]) -> u32 {
    let counts = samples.iter().map(|sample| sample.count);
    counts.fold(0, u32::saturating_add)
}

fn profile(samples: &[Sample], merger: &mut Merger<'_, '_>) -> Vec<Spin> {
    let mut profile: Vec<Spin> = Vec::new();
    for sample in samples {
        let frames = names(sample, merger.functions);
        if frames.is_empty() {
            continue;
        }
        let stack = merger.stacks.intern(frames);
        match profile.iter_mut().find(|spin| spin.stack == stack) {
            Some(spin) => spin.count = spin.count.saturating_add(sample.count),
            None => profile.push(Spin {
                stack,
                count: sample.count,
            }),
        }
    }
    profile.sort_by_key(|spin| (Reverse(spin.count), spin.stack));
    profile.truncate(PROFILE_MAX);
    profile
}

/// The frames of a sample as a report shows them.
fn names(sample: &Sample, functions: &mut Functions<'_>) -> Vec<String> {
    places(sample, functions)
        .into_iter()
        .map(|place| match place {
            Place::Known(name, offset) => format!("{name}+{offset:#x}"),
            Place::Later => LOADED_LATER.to_owned(),
            Place::None => NOT_CODE.to_owned(),
        })
        .collect()
}

#[derive(Clone, Copy)]
enum Place<'k> {
    /// In this function, so far in.
    Known(&'k str, u64),
    /// In code that was loaded later.
    Later,
    /// In nothing that is code.
    None,
}

/// Where a sample's frames are. The first is where the CPU was, the others are returned to.
fn places<'k>(sample: &Sample, functions: &mut Functions<'k>) -> Vec<Place<'k>> {
    let kernel = |&(_, address): &(usize, &u64)| is_kernel_address(*address);
    let frames = sample.frames.iter().enumerate().filter(kernel);
    frames
        .map(|(index, &address)| {
            let at = u64::from(index == 0);
            match functions.returned_into(address + at) {
                Some((name, offset)) if is_within(name, offset, address) => {
                    Place::Known(name, offset - at)
                }
                _ if is_image_address(address) => Place::Later,
                _ => Place::None,
            }
        })
        .collect()
}

/// Whether a place so far behind a symbol can be that function's: symbols have no ends, and
/// what was loaded later has none among those that were read.
fn is_within(name: &str, offset: u64, address: u64) -> bool {
    if is_bpf_program(name) {
        offset < PROGRAM_MAX
    } else {
        !is_module_address(address) || offset < MODULE_FUNCTION_MAX
    }
}

/// What runs in most of the samples, and the BPF program in it.
fn what_ran(samples: &[Sample], functions: &mut Functions<'_>) -> (Context, Option<String>) {
    let mut kinds: Votes<&'static str> = Votes::new();
    let mut vectors: Votes<Option<&'static str>> = Votes::new();
    let mut callbacks: Votes<String> = Votes::new();
    let mut handlers: Votes<Option<String>> = Votes::new();
    let mut programs: Votes<String> = Votes::new();
    for sample in samples {
        let places = places(sample, functions);
        let stems: Vec<&str> = places
            .iter()
            .map(|place| match place {
                Place::Known(name, _) => stem(name),
                Place::Later | Place::None => "",
            })
            .collect();
        let count = sample.count;
        let program = bpf_program(&stems);
        match what_runs(&stems) {
            None => continue,
            Some(Ran::Task) => kinds.add(TASK, count),
            Some(Ran::Softirq { vector, callback }) => {
                kinds.add(SOFTIRQ, count);
                vectors.add(vector, count);
                // Where a program is all that the vector runs, that says it.
                if let Some(callback) = callback {
                    callbacks.add(stems[callback].to_owned(), count);
                }
            }
            Some(Ran::Interrupt { handler }) => {
                kinds.add(INTERRUPT, count);
                handlers.add(handler.map(ToOwned::to_owned), count);
            }
        }
        if let Some(program) = program {
            programs.add(program, count);
        }
    }
    let all = total(samples);
    let context = match kinds.majority(all) {
        Some(&TASK) => Context::Task,
        Some(&SOFTIRQ) => Context::Softirq {
            vector: vectors
                .majority(vectors.total())
                .copied()
                .flatten()
                .map(ToOwned::to_owned),
            callback: callbacks.most().cloned(),
            callbacks: u32::try_from(callbacks.0.len()).unwrap_or(u32::MAX),
        },
        Some(&INTERRUPT) => Context::Interrupt {
            handler: handlers.majority(handlers.total()).cloned().flatten(),
        },
        _ => Context::Unknown,
    };
    (context, programs.majority(all).cloned())
}

const TASK: &str = "task";
const SOFTIRQ: &str = "softirq";
const INTERRUPT: &str = "interrupt";

/// What samples say, each with its count.
struct Votes<T>(Vec<(T, u32)>);

impl<T: PartialEq> Votes<T> {
    const fn new() -> Self {
        Self(Vec::new())
    }

    fn add(&mut self, what: T, count: u32) {
        match self.0.iter_mut().find(|(known, _)| *known == what) {
            Some((_, sum)) => *sum = sum.saturating_add(count),
            None => self.0.push((what, count)),
        }
    }

    fn total(&self) -> u32 {
        let counts = self.0.iter().map(|(_, count)| *count);
        counts.fold(0, u32::saturating_add)
    }

    /// The first of those said most often.
    fn most(&self) -> Option<&T> {
        let most = self.0.iter().rev().max_by_key(|(_, count)| *count)?;
        Some(&most.0)
    }

    /// What more than half of `all` say.
    fn majority(&self, all: u32) -> Option<&T> {
        let most = self.0.iter().find(|(_, count)| *count > all / 2)?;
        Some(&most.0)
    }
}
