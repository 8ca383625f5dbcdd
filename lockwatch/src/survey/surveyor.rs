//! Takes surveys of the running kernel.

use std::{
    fs,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustc_hash::FxHashMap;

use crate::{
    daemon::Daemon,
    figures::Count,
    kernel::{
        block::{in_flight_file, is_counted_file},
        btf::{Btf, BtfError},
        capabilities::{self, Missing},
        fuse::MODULE,
        layout::Layout,
        locks::RWSEM_SLOW_PATHS,
        memory::{KernelMemory, MemoryError},
        symbols::{Symbols, SymbolsError},
    },
    lock::{LockAddr, LockClass, LockKind, Stacks},
    probes::{LoadError, survey::SurveyProbes},
    survey::{
        Survey, SurveyOptions, cgroup,
        clock::{Clocks, tick_rate},
        daemons, device,
        functions::Functions,
        fuse::{self, Asker, FuseState, SeenFuse},
        holders::{self, Scene, Suspect},
        holds::{self, HoldSource, TracedHold},
        look::Look,
        merge::{Merger, Seen},
        names::{self, Identity},
        queue::{self, Queue, Row},
    },
    task::{BlockDevice, Nanos, StuckClass},
};

/// Why no survey can be taken on this host, with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A privilege or a namespace.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// Type information.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// aya's view of the same type information.
    #[error("cannot use the kernel's type information")]
    AyaBtf(#[source] aya::BtfError),
    /// Symbols.
    #[error(transparent)]
    Symbols(#[from] SymbolsError),
    /// A thread of our own.
    #[error("cannot start a thread: is there a limit on processes (ulimit -u) or memory?")]
    Thread(#[source] std::io::Error),
    /// The kernel has no function that queues tasks on rwsems.
    #[error(
        "this kernel has none of the functions {RWSEM_SLOW_PATHS:?}: its rwsems are not the ones lockwatch knows (PREEMPT_RT, or before 5.3)"
    )]
    SlowPaths,
    /// Programs.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// Why a survey that could be started did not end.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// Tasks could not be read.
    #[error(transparent)]
    Tasks(#[from] LoadError),
    /// Kernel memory could not be read.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A study without its tracer is worth nothing.
    #[error("the traced holds could not be read")]
    Holds(#[source] std::io::Error),
}

/// Everything a survey needs, loaded: it can be asked again and again.
#[derive(Debug)]
pub struct Surveyor {
    pub(super) kernel: Kernel,
    pub(super) probes: SurveyProbes,
    pub(super) holds: Option<Box<dyn HoldSource>>,
    fuse: FuseState,
}

/// What is known of a kernel before any of its tasks is looked at. The kernel may be the
/// running one, or one whose memory somebody has kept.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) layout: Layout,
    pub(super) symbols: Arc<Symbols>,
    pub(super) rows: Vec<Row>,
}

/// Looks beyond the second, where a queue could not be read.
const LOOKS_MORE: u32 = 4;

impl Surveyor {
    /// Reads the kernel's symbols and types and loads the survey's programs.
    /// Attaches nothing.
    ///
    /// # Errors
    /// When a privilege or a kernel feature is missing, naming it and the remedy.
    pub fn open() -> Result<Self, OpenError> {
        capabilities::check()?;
        thread::scope(|scope| {
            // Most of the time goes into the kernel formatting its symbols.
            let symbols = thread::Builder::new()
                .spawn_scoped(scope, Symbols::from_proc)
                .map_err(OpenError::Thread)?;
            let layout = Layout::from_btf(&Btf::from_sys_with(MODULE)?)?;
            let btf = aya::Btf::from_sys_fs().map_err(OpenError::AyaBtf)?;
            let probes = SurveyProbes::load(&layout.task, &layout.open_file, &btf)?;
            let symbols = symbols
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok(Self {
                kernel: Kernel::new(layout, symbols)?,
                probes,
                holds: None,
                fuse: FuseState::default(),
            })
        })
    }

    /// Asks this tracer for the holds it knows, right after each look at the tasks.
    #[must_use]
    pub fn with_holds(mut self, source: Box<dyn HoldSource>) -> Self {
        self.holds = Some(source);
        self
    }

    /// The kernel's symbols, as read when it was opened.
    pub fn symbols(&self) -> Arc<Symbols> {
        Arc::clone(&self.kernel.symbols)
    }

    /// Takes one survey: two looks, and what both agree on. While queues change faster
    /// than they can be read, a few looks more, of which the best two count.
    ///
    /// # Errors
    /// When the kernel stops answering.
    pub fn survey(&mut self, options: &SurveyOptions) -> Result<Survey, SurveyError> {
        self.survey_in_steps(options, |_| ())
    }

    /// As [`Self::survey`], and hands out what the first look alone says before it
    /// takes the second: for those who cannot wait for ever.
    ///
    /// # Errors
    /// When the kernel stops answering.
    pub fn survey_in_steps(
        &mut self,
        options: &SurveyOptions,
        preliminary: impl FnOnce(Survey),
    ) -> Result<Survey, SurveyError> {
        let began = Instant::now();
        self.fuse.forget_devices();
        let until = began + options.deadline;
        let first = self.look(until)?;
        // Nobody waits: nothing can be standing.
        if first.queues.is_empty() && first.unsettled == 0 && !first.fuse.is_waited_for() {
            return self.conclude(&[first], began, Vec::new());
        }
        let looks = [first];
        if began.elapsed() + options.pause > options.deadline {
            let reason = "the deadline left time for one look only: nothing is certain".to_owned();
            return self.conclude(&looks, began, vec![reason]);
        }
        preliminary(self.conclude(&looks, began, Vec::new())?);
        thread::sleep(options.pause);
        let [mut first] = looks;
        let mut second = self.look(until)?;
        let mut paused = options.pause;
        // Under a queue that changes faster than it is read, the next look may have luck.
        for _ in 0..LOOKS_MORE {
            let is_settled = first.unsettled + second.unsettled == 0;
            if is_settled || began.elapsed() + options.pause + second.took > options.deadline {
                break;
            }
            thread::sleep(options.pause);
            paused += options.pause;
            let third = self.look(until)?;
            // The two that could read most, the later ones of equals.
            if third.unsettled > first.unsettled.max(second.unsettled) {
                continue;
            }
            if first.unsettled >= second.unsettled {
                first = second;
            }
            second = third;
        }
        let mut survey = self.conclude(&[first, second], began, Vec::new())?;
        survey.paused = Nanos::from_duration(paused);
        Ok(survey)
    }

    fn conclude(
        &mut self,
        looks: &[Sight],
        began: Instant,
        degraded: Vec<String>,
    ) -> Result<Survey, SurveyError> {
        let mut survey = self.kernel.conclude(looks, began, degraded);
        if let Some(last) = looks.last() {
            self.kernel
                .describe_holders(&mut survey, &last.look, &mut self.probes)?;
        }
        for holder in survey.locks.iter_mut().flat_map(|lock| &mut lock.holders) {
            if let Some(device) = &mut holder.stuck.device {
                device.in_flight = in_flight(&device.name);
            }
        }
        survey.duration = Nanos::from_duration(began.elapsed());
        Ok(survey)
    }

    /// One look at everything: tasks, queues, and who could hold what.
    fn look(&mut self, until: Instant) -> Result<Sight, SurveyError> {
        let began = Instant::now();
        let woke_ns = own_wake_up();
        let look = Look::decode(
            self.probes.read_tasks()?,
            self.kernel.layout.task.thread_size,
        );
        let (holds, holds_error) = match self.holds.as_mut().map(|source| source.holds()) {
            Some(Ok(holds)) => (holds, None),
            Some(Err(error)) => (Vec::new(), Some(error.to_string())),
            None => (Vec::new(), None),
        };
        let scheduler_offset_ns = scheduler_offset(&look, woke_ns);
        let own_tgid = std::process::id();
        let (queues, unsettled) = self
            .kernel
            .queues(&look, &holds, own_tgid, &mut self.probes)?;
        let waits = fuse::waits(&mut Functions::new(&self.kernel.symbols), &look);
        let mut asker = Asker {
            layout: &self.kernel.layout,
            symbols: &self.kernel.symbols,
            probes: &mut self.probes,
            state: &mut self.fuse,
            until,
        };
        let fuse = asker.look(&look, &waits)?;
        Ok(Sight {
            scheduler_offset_ns,
            look,
            queues,
            fuse,
            unsettled,
            holds_error,
            took: began.elapsed(),
        })
    }
}

impl Kernel {
    /// # Errors
    /// When it has no function that queues tasks on rwsems.
    pub(super) fn new(layout: Layout, symbols: Symbols) -> Result<Self, OpenError> {
        let rows: Vec<Row> = layout
            .locks
            .queued
            .iter()
            .map(|layout| Row {
                layout: *layout,
                slow_paths: symbols.ranges_of(layout.slow_paths),
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
    fn queues(
        &self,
        look: &Look,
        holds: &[TracedHold],
        own_tgid: u32,
        memory: &mut dyn KernelMemory,
    ) -> Result<(Vec<SeenQueue>, u32), MemoryError> {
        let mut functions = Functions::new(&self.symbols);
        let mut found = queue::find(look, &self.rows, memory)?;
        let pi = queue::find_pi(look, &self.layout.locks, &mut functions, memory)?;
        found.queues.extend(pi.queues);
        found.unsettled += pi.unsettled;
        queue::find_drained(
            look,
            &self.rows,
            &self.layout,
            &mut functions,
            memory,
            &mut found.queues,
        )?;
        let mut queues = Vec::with_capacity(found.queues.len());
        for mut queue in found.queues {
            let caller = queue.entries.first().and_then(|entry| {
                let stems = functions.stems(&look.tasks[entry.task]);
                stems.into_iter().find(|stem| names::is_caller(stem))
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
                functions: &mut functions,
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
    fn describe_holders(
        &self,
        survey: &mut Survey,
        look: &Look,
        memory: &mut dyn KernelMemory,
    ) -> Result<(), MemoryError> {
        let mut functions = Functions::new(&self.symbols);
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
                let name = device::of_task(&mut functions, look, task, &self.layout, memory)?;
                holder.stuck.device = name.map(|name| BlockDevice {
                    name,
                    in_flight: None,
                });
            }
        }
        Ok(())
    }

    /// What looks at the memory of a kernel say that somebody has kept. Its tasks' times
    /// are those of its scheduler.
    ///
    /// # Errors
    /// When the memory cannot be read at all.
    #[cfg(test)]
    pub(super) fn survey_of(
        &self,
        looks: Vec<Look>,
        memory: &mut dyn KernelMemory,
    ) -> Result<Survey, MemoryError> {
        let began = Instant::now();
        let mut sights = Vec::new();
        for look in looks {
            let (queues, unsettled) = self.queues(&look, &[], 0, memory)?;
            sights.push(Sight {
                scheduler_offset_ns: Some(0),
                look,
                queues,
                fuse: SeenFuse::default(),
                unsettled,
                holds_error: None,
                took: Duration::ZERO,
            });
        }
        let mut survey = self.conclude(&sights, began, Vec::new());
        if let Some(last) = sights.last() {
            self.describe_holders(&mut survey, &last.look, memory)?;
        }
        Ok(survey)
    }

    fn conclude(&self, looks: &[Sight], began: Instant, mut degraded: Vec<String>) -> Survey {
        degraded.extend(self.layout.locks.degraded.iter().cloned());
        let (first, last) = match looks {
            [only] => (None, only),
            [first, .., last] => (Some(first), last),
            [] => unreachable!("a survey has at least one look"),
        };
        let mut stacks = Stacks::default();
        let mut functions = Functions::new(&self.symbols);
        let clocks = clocks(looks);
        if clocks.hz.is_none() {
            degraded.push("the kernel's tick rate could not be told: waits are counted from the last time off CPU".to_owned());
        }
        let mut merger = Merger {
            functions: &mut functions,
            clocks,
            stacks: &mut stacks,
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
        degraded.extend(unknown_daemons(first, last, &daemons));
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
            stacks,
        }
    }
}

/// What one look found.
struct Sight {
    /// As in [`Clocks`], by this look alone.
    scheduler_offset_ns: Option<i64>,
    look: Look,
    queues: Vec<SeenQueue>,
    fuse: SeenFuse,
    unsettled: u32,
    /// Why the tracer could not tell its holds.
    holds_error: Option<String>,
    took: Duration,
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

struct SeenQueue {
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

/// Requests that a disk's driver has not completed; `None` where that cannot be read.
fn in_flight(disk: &str) -> Option<u64> {
    let is_counted = fs::read_to_string(is_counted_file(disk)).ok()?;
    if is_counted.trim() == "0" {
        return None;
    }
    let counts = fs::read_to_string(in_flight_file(disk)).ok()?;
    counts
        .split_ascii_whitespace()
        .map(|count| count.parse::<u64>().ok())
        .sum()
}

/// Leaves the CPU for a moment and says when it came back: together with the
/// scheduler's own entry for this thread that relates its clock to ours.
fn own_wake_up() -> u64 {
    thread::sleep(Duration::from_micros(50));
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// What to add to a scheduler time of this look, in which our own thread had got a CPU
/// right before `woke_ns`.
fn scheduler_offset(look: &Look, woke_ns: u64) -> Option<i64> {
    let own_tid = rustix::thread::gettid().as_raw_nonzero().get() as u32;
    let own = look
        .tasks
        .iter()
        .find(|task| task.name.key.tid.0 == own_tid)?;
    let arrival = own.record.last_arrival_ns;
    (arrival != 0).then(|| woke_ns as i64 - arrival as i64)
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
