//! What looks at one kernel say: the running one, or one whose memory somebody has kept.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rustc_hash::FxHashMap;

use super::OpenError;
use crate::{
    daemon::Daemon,
    figures::Count,
    kernel::{
        layout::Layout,
        memory::{KernelMemory, MemoryError},
        symbols::Symbols,
    },
    kernel_log::KernelLog,
    lock::{LockAddr, LockClass, LockKind, Stacks},
    lockup,
    survey::{
        Survey, cgroup,
        clock::{Clocks, tick_rate},
        daemons, device,
        functions::Functions,
        fuse::SeenFuse,
        holders::{self, Scene, Suspect},
        holds::{self, TracedHold},
        lockups::{self, Cpus},
        look::Look,
        merge::{Merger, Seen},
        names::{self, Identity},
        queue::{self, Queue, Row},
        sleepers::{self, Asleep, History},
    },
    task::{BlockDevice, Nanos, StuckClass, Tid},
};

/// What is known of a kernel before any of its tasks is looked at. The kernel may be the
/// running one, or one whose memory somebody has kept.
#[derive(Debug)]
pub(in crate::survey) struct Kernel {
    pub(in crate::survey) layout: Layout,
    pub(in crate::survey) symbols: Arc<Symbols>,
    pub(in crate::survey) rows: Vec<Row>,
}

impl Kernel {
    /// # Errors
    /// When it has no function that queues tasks on rwsems.
    pub(in crate::survey) fn new(layout: Layout, symbols: Symbols) -> Result<Self, OpenError> {
        let queued = &layout.locks.queued;
        let slow_paths: Vec<_> = queued.iter().map(|layout| layout.slow_paths).collect();
        let rows: Vec<Row> = queued
            .iter()
            .zip(symbols.ranges_in_image(&slow_paths))
            .map(|(layout, slow_paths)| Row {
                layout: *layout,
                slow_paths,
            })
            .collect();
        let blind = |row: &Row| row.layout.kind == LockKind::Rwsem && row.slow_paths.is_empty();
        if rows.iter().any(blind) {
            return Err(OpenError::SlowPaths);
        }
        Ok(Self {
            layout,
            symbols: Arc::new(symbols),
            rows,
        })
    }

    /// Every lock that tasks of a look wait for, with who could hold it; and how many
    /// queues could not be read. `holds` were traced; no task of `own_tgid` is a suspect.
    ///
    /// # Errors
    /// When the memory cannot be read at all.
    pub(super) fn queues(
        &self,
        look: &Look,
        holds: &[TracedHold],
        own_tgid: u32,
        functions: &mut Functions<'_>,
        memory: &mut dyn KernelMemory,
    ) -> Result<(Vec<SeenQueue>, u32), MemoryError> {
        let mut found = queue::find(look, &self.rows, memory)?;
        let pi = queue::find_pi(look, &self.layout.locks, functions, memory)?;
        found.queues.extend(pi.queues);
        found.unsettled += pi.unsettled;
        queue::find_drained(
            look,
            &self.rows,
            &self.layout,
            functions,
            memory,
            &mut found.queues,
        )?;
        let mut queues = Vec::with_capacity(found.queues.len());
        for mut queue in found.queues {
            let caller = queue.entries.first().and_then(|entry| {
                let stems = functions.stems(&look.tasks[entry.task]);
                stems.iter().copied().find(|stem| names::is_caller(stem))
            });
            let identity =
                names::identify(&queue, caller, look, &self.layout, &self.symbols, memory)?;
            // Some kernels make it of an rwsem.
            if identity.class == LockClass::VmaLock {
                queue.kind = LockKind::VmaLock;
            }
            let mut scene = Scene {
                look,
                layout: &self.layout,
                functions,
                memory,
                own_tgid,
            };
            let testimony = holds::testimony(look, &queue, holds);
            let suspects = holders::suspects(&mut scene, &queue, &identity, &testimony.heard)?;
            queues.push(SeenQueue {
                queue,
                identity,
                suspects,
                contradiction: testimony.contradiction,
            });
        }
        Ok((queues, found.unsettled))
    }

    /// Says of the holders what is asked of few tasks only: which control group they are
    /// in, and which block device they wait for.
    ///
    /// # Errors
    /// When the memory cannot be read at all.
    pub(super) fn describe_holders(
        &self,
        survey: &mut Survey,
        look: &Look,
        functions: &mut Functions<'_>,
        memory: &mut dyn KernelMemory,
    ) -> Result<(), MemoryError> {
        let tasks = look.by_key();
        for holder in survey.locks.iter_mut().flat_map(|lock| &mut lock.holders) {
            let Some(&index) = tasks.get(&holder.task.key) else {
                continue;
            };
            let task = &look.tasks[index];
            if let Some(layout) = &self.layout.cgroup {
                holder.cgroup = cgroup::path(task, layout, memory)?;
            }
            if holder.stuck.class == StuckClass::BlockIo {
                let name = device::of_task(functions, look, task, &self.layout, memory)?;
                holder.stuck.device = name.map(|name| BlockDevice {
                    name,
                    in_flight: None,
                });
            }
        }
        Ok(())
    }

    /// The tasks of a look that have slept uninterruptibly for long; `own` is our own
    /// thread.
    ///
    /// # Errors
    /// When the memory cannot be read at all.
    pub(super) fn sleepers(
        &self,
        look: &Look,
        scheduler_offset_ns: Option<i64>,
        own: Option<Tid>,
        functions: &mut Functions<'_>,
        history: &mut History,
        memory: &mut dyn KernelMemory,
    ) -> Result<Vec<Asleep>, MemoryError> {
        let clocks = Clocks {
            scheduler_offset_ns,
            hz: None,
        };
        let layout = &self.layout;
        sleepers::seen(look, &clocks, own, layout, functions, history, memory)
    }

    /// Says what the sleepers wait for. The look is the survey's last one.
    ///
    /// # Errors
    /// When the memory cannot be read at all.
    pub(super) fn describe_sleepers(
        &self,
        survey: &mut Survey,
        look: &Look,
        functions: &mut Functions<'_>,
        memory: &mut dyn KernelMemory,
    ) -> Result<(), MemoryError> {
        sleepers::describe(survey, look, &self.layout, functions, memory)
    }

    /// What looks at the memory of a kernel say that somebody has kept. Its tasks' times
    /// are those of its scheduler.
    ///
    /// # Errors
    /// When the memory cannot be read at all.
    #[cfg(test)]
    pub(in crate::survey) fn survey_of(
        &self,
        looks: Vec<Look>,
        suspects: &[lockup::Suspect],
        memory: &mut dyn KernelMemory,
    ) -> Result<Survey, MemoryError> {
        let began = Instant::now();
        let mut sights = Vec::new();
        let mut history = History::default();
        let functions = &mut Functions::new(&self.symbols);
        for look in looks {
            let (queues, unsettled) = self.queues(&look, &[], 0, functions, memory)?;
            let sleepers = self.sleepers(&look, Some(0), None, functions, &mut history, memory)?;
            sights.push(Sight {
                scheduler_offset_ns: Some(0),
                look,
                sleepers,
                queues,
                fuse: SeenFuse::default(),
                unsettled,
                holds_error: None,
                read_at: began,
                took: Duration::ZERO,
            });
        }
        let mut survey = self.conclude(&sights, suspects, began, Vec::new(), functions);
        if let Some(last) = sights.last() {
            self.describe_holders(&mut survey, &last.look, functions, memory)?;
            self.describe_sleepers(&mut survey, &last.look, functions, memory)?;
        }
        Ok(survey)
    }

    pub(super) fn conclude(
        &self,
        looks: &[Sight],
        suspects: &[lockup::Suspect],
        began: Instant,
        mut degraded: Vec<String>,
        functions: &mut Functions<'_>,
    ) -> Survey {
        degraded.extend(self.layout.locks.degraded.iter().cloned());
        let (first, last) = match looks {
            [only] => (None, only),
            [first, .., last] => (Some(first), last),
            [] => unreachable!("a survey has at least one look"),
        };
        let mut stacks = Stacks::default();
        let clocks = clocks(looks);
        if clocks.hz.is_none() {
            degraded.push("the kernel's tick rate could not be told: waits are counted from the last time off CPU".to_owned());
        }
        let mut merger = Merger {
            functions,
            clocks,
            stacks: &mut stacks,
            by_addresses: FxHashMap::default(),
        };
        let earlier = first.map(Sight::by_lock);
        let mut locks = Vec::new();
        // Locks that one look could not read, and that the other alone tells of.
        let mut half_seen = false;
        for now in &last.queues {
            let seen = now.seen(&last.look);
            let then = earlier.as_ref().and_then(|it| it.get(&now.queue.lock));
            let before = match (first, then) {
                (Some(first), Some(then)) => Some(then.seen(&first.look)),
                // It may have been there, unread: what this look alone says.
                (Some(first), None) if first.unsettled > 0 => None,
                // Not there before: too young to stand.
                (Some(_), None) => continue,
                (None, _) => None,
            };
            let lock = merger.lock(before.as_ref(), &seen, now.identity.clone());
            // Once is a race between the tracer and the look.
            let contradicted = then.is_some_and(|then| then.contradiction.is_some());
            if let (Some(lock), true, Some(contradiction)) =
                (&lock, contradicted, &now.contradiction)
            {
                degraded.push(format!(
                    "{}: {contradiction}; its word is followed",
                    lock.name
                ));
            }
            half_seen |= before.is_none() && lock.is_some();
            locks.extend(lock);
        }
        if let Some(first) = first.filter(|_| last.unsettled > 0) {
            let now = last.by_lock();
            let is_gone = |then: &&SeenQueue| !now.contains_key(&then.queue.lock);
            for then in first.queues.iter().filter(is_gone) {
                let seen = then.seen(&first.look);
                let lock = merger.lock(None, &seen, then.identity.clone());
                half_seen |= lock.is_some();
                locks.extend(lock);
            }
        }
        if let Some(error) = looks.iter().find_map(|sight| sight.holds_error.as_ref()) {
            degraded.push(format!(
                "the traced holds could not be read ({error}): holders come from the survey alone"
            ));
        }
        let own_tgid = std::process::id();
        let daemons = daemons::daemons(
            first.map(Sight::fuse_sight),
            last.fuse_sight(),
            own_tgid,
            &mut merger,
        );
        let sleepers = sleepers::standing(
            first.map(|first| &first.look),
            &last.look,
            &last.sleepers,
            &locks,
            &daemons,
            &mut merger,
        );
        degraded.extend(unknown_daemons(first, last, &daemons));
        let lockups = lockups::lockups(
            suspects,
            &Cpus {
                first: first.map(|first| &first.look),
                last: &last.look,
                layout: &self.layout.task,
                own_tgid,
            },
            &mut merger,
        );
        if last.unsettled > 0 {
            degraded.push(format!(
                "{}: tasks come and go there, and whether others are stuck behind them is not known; ask again",
                Count(last.unsettled.into()).nouns(
                    "queue changed faster than it could be read",
                    "queues changed faster than they could be read"
                )
            ));
        }
        Survey {
            taken_at: jiff::Timestamp::now(),
            taken_at_ns: last.look.at_ns,
            duration: Nanos::from_duration(began.elapsed()),
            paused: Nanos(0),
            looks: if half_seen {
                1
            } else {
                u32::try_from(looks.len()).unwrap_or(u32::MAX)
            },
            task_count: u32::try_from(last.look.tasks.len()).unwrap_or(u32::MAX),
            degraded,
            locks,
            daemons,
            sleepers,
            lockups,
            kernel_log: KernelLog::default(),
            stacks,
        }
    }
}

/// What one look found.
pub(super) struct Sight {
    /// As in [`Clocks`], by this look alone.
    pub(super) scheduler_offset_ns: Option<i64>,
    pub(super) look: Look,
    /// Tasks that have slept uninterruptibly for long.
    pub(super) sleepers: Vec<Asleep>,
    pub(super) queues: Vec<SeenQueue>,
    pub(super) fuse: SeenFuse,
    pub(super) unsettled: u32,
    /// Why the tracer could not tell its holds.
    pub(super) holds_error: Option<String>,
    /// When all its tasks had been read.
    pub(super) read_at: Instant,
    pub(super) took: Duration,
}

impl Sight {
    /// The queues by their locks.
    fn by_lock(&self) -> FxHashMap<LockAddr, &SeenQueue> {
        let mut by_lock = FxHashMap::default();
        for seen in &self.queues {
            by_lock.entry(seen.queue.lock).or_insert(seen);
        }
        by_lock
    }

    fn fuse_sight(&self) -> daemons::Sight<'_> {
        daemons::Sight {
            look: &self.look,
            fuse: &self.fuse,
        }
    }
}

/// Why the daemons that tasks wait for are not all known, if they are not.
fn unknown_daemons(first: Option<&Sight>, last: &Sight, daemons: &[Daemon]) -> Vec<String> {
    let mut lines = Vec::new();
    let unresolved = daemons::unresolved(first.map(Sight::fuse_sight), last.fuse_sight());
    if unresolved > 0 {
        let reason = last.fuse.missing.as_deref();
        lines.push(format!(
            "{} for a FUSE daemon, which could not be told: {}",
            Count(unresolved.into()).nouns("task waits", "tasks wait"),
            reason.unwrap_or("their requests were not found")
        ));
    } else if let (false, Some(reason)) = (daemons.is_empty(), &last.fuse.missing) {
        lines.push(format!(
            "who serves {} is not known: {reason}",
            Count(daemons.len() as u64).nouns("FUSE file system", "FUSE file systems")
        ));
    }
    lines
}

pub(super) struct SeenQueue {
    queue: Queue,
    identity: Identity,
    suspects: Vec<Suspect>,
    /// Where the tracer and the lock's word disagree.
    contradiction: Option<String>,
}

impl SeenQueue {
    fn seen<'a>(&'a self, look: &'a Look) -> Seen<'a> {
        Seen {
            look,
            queue: &self.queue,
            suspects: &self.suspects,
        }
    }
}

fn clocks(looks: &[Sight]) -> Clocks {
    // A late wake-up makes the offset too large, never too small: the least is best.
    let scheduler_offset_ns = looks
        .iter()
        .filter_map(|sight| sight.scheduler_offset_ns)
        .min();
    let hz = looks
        .last()
        .and_then(|sight| tick_rate(sight.look.jiffies, sight.look.at_ns));
    Clocks {
        scheduler_offset_ns,
        hz,
    }
}
