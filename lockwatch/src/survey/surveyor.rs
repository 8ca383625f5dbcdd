//! Takes surveys of the running kernel.

mod kernel;

use std::{
    fs,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustc_hash::FxHashMap;

pub(super) use self::kernel::Kernel;
use self::kernel::Sight;
use crate::{
    clock::now_ns,
    kernel::{
        block::{in_flight_file, is_counted_file},
        btf::BtfError,
        capabilities::{self, Missing},
        layout::Layout,
        locks::RWSEM_SLOW_PATHS,
        memory::MemoryError,
        symbol_tables,
        symbols::{Symbols, SymbolsError},
    },
    kmsg::KernelLogReader,
    lockup::Suspect,
    probes::{LoadError, long_holds::Recorders, survey::SurveyProbes, types::Types},
    survey::{
        Survey, SurveyOptions,
        functions::Functions,
        fuse::{self, Asker, FuseState},
        holds::HoldSource,
        look::{Look, Looking},
        recent_holds,
        sleepers::History,
    },
    task::{BlockDevice, Nanos, Tid},
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
    log: KernelLogReader,
    sleeps: History,
}

/// What a surveyor has besides the kernel's symbols, which take the longest to read.
#[derive(Debug)]
pub struct Parts {
    probes: SurveyProbes,
    log: KernelLogReader,
}

impl Parts {
    /// Loads the survey's programs, and reads the kernel's log.
    ///
    /// # Errors
    /// When a privilege or a kernel feature is missing, naming it and the remedy.
    pub fn load(types: &Types) -> Result<Self, OpenError> {
        capabilities::check()?;
        thread::scope(|scope| {
            let log = thread::Builder::new()
                .spawn_scoped(scope, KernelLogReader::open)
                .map_err(OpenError::Thread)?;
            let Layout {
                task, open_file, ..
            } = &types.layout;
            let probes = SurveyProbes::load(task, open_file, &types.hookable)?;
            let log = log
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok(Self { probes, log })
        })
    }

    /// The symbols of the kernel's image, from its memory; `None` if they are not found there.
    pub fn symbols_of_the_image(&mut self) -> Option<Symbols> {
        match symbol_tables::read(&mut self.probes) {
            Ok(Some(symbols)) => return Some(symbols),
            Ok(None) => {
                tracing::info!("the kernel's tables of symbols are not found in its memory");
            }
            Err(error) => tracing::info!("{error}"),
        }
        None
    }
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
        let types = Types::read()?;
        let mut parts = Parts::load(&types)?;
        let symbols = match parts.symbols_of_the_image() {
            Some(symbols) => symbols,
            None => Symbols::from_proc()?,
        };
        Self::new(parts, types.layout, symbols)
    }

    /// Puts together what was read and loaded.
    ///
    /// # Errors
    /// When the symbols do not show where tasks queue.
    pub fn new(parts: Parts, layout: Layout, symbols: Symbols) -> Result<Self, OpenError> {
        Ok(Self {
            kernel: Kernel::new(layout, symbols)?,
            probes: parts.probes,
            holds: None,
            fuse: FuseState::default(),
            log: parts.log,
            sleeps: History::default(),
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
    /// `suspects` are CPUs that may be locked up: it says of each whether it is.
    ///
    /// # Errors
    /// When the kernel stops answering.
    pub fn survey(
        &mut self,
        options: &SurveyOptions,
        suspects: &[Suspect],
    ) -> Result<Survey, SurveyError> {
        self.looks(options, suspects, None::<fn(Survey)>)
    }

    /// As [`Self::survey`], and hands out what the first look alone says before it
    /// takes the second: for those who cannot wait for ever.
    ///
    /// # Errors
    /// When the kernel stops answering.
    pub fn survey_in_steps(
        &mut self,
        options: &SurveyOptions,
        suspects: &[Suspect],
        preliminary: impl FnOnce(Survey),
    ) -> Result<Survey, SurveyError> {
        self.looks(options, suspects, Some(preliminary))
    }

    fn looks(
        &mut self,
        options: &SurveyOptions,
        suspects: &[Suspect],
        preliminary: Option<impl FnOnce(Survey)>,
    ) -> Result<Survey, SurveyError> {
        let began = Instant::now();
        self.fuse.forget_devices();
        let until = began + options.deadline;
        let symbols = Arc::clone(&self.kernel.symbols);
        let functions = &mut Functions::new(&symbols);
        let first = self.look(until, Vec::new(), None, functions)?;
        // Nobody waits, and no CPU seems to hang: nothing can be standing.
        let is_quiet = first.queues.is_empty() && first.sleepers.is_empty() && suspects.is_empty();
        if is_quiet && first.unsettled == 0 && !first.fuse.is_waited_for() {
            return self.conclude(&[first], suspects, began, Vec::new(), functions);
        }
        let looks = [first];
        if began.elapsed() + options.pause > options.deadline {
            let reason = "the deadline left time for one look only: nothing is certain".to_owned();
            return self.conclude(&looks, suspects, began, vec![reason], functions);
        }
        // What the first look says is put together during the pause, which begins when all
        // tasks have been read.
        if let Some(preliminary) = preliminary {
            preliminary(self.conclude(&looks, suspects, began, Vec::new(), functions)?);
        }
        let [mut first] = looks;
        let memory = first.look.forget_callers(functions);
        let mut paused = options.pause.saturating_sub(first.read_at.elapsed());
        thread::sleep(paused);
        let mut second = self.look(until, memory, Some(&first.look), functions)?;
        // Under a queue that changes faster than it is read, the next look may have luck.
        for _ in 0..LOOKS_MORE {
            let is_settled = first.unsettled + second.unsettled == 0;
            if is_settled || began.elapsed() + options.pause + second.took > options.deadline {
                break;
            }
            thread::sleep(options.pause);
            paused += options.pause;
            let third = self.look(until, Vec::new(), None, functions)?;
            // The two that could read most, the later ones of equals.
            if third.unsettled > first.unsettled.max(second.unsettled) {
                continue;
            }
            if first.unsettled >= second.unsettled {
                first = second;
            }
            second = third;
        }
        let mut survey = self.conclude(&[first, second], suspects, began, Vec::new(), functions)?;
        survey.paused = Nanos::from_duration(paused);
        Ok(survey)
    }

    fn conclude(
        &mut self,
        looks: &[Sight],
        suspects: &[Suspect],
        began: Instant,
        degraded: Vec<String>,
        functions: &mut Functions<'_>,
    ) -> Result<Survey, SurveyError> {
        let kernel = &self.kernel;
        let mut survey = kernel.conclude(looks, suspects, began, degraded, functions);
        if let Some(last) = looks.last() {
            self.kernel
                .describe_holders(&mut survey, &last.look, functions, &mut self.probes)?;
            survey.kernel_log = self.log.log(last.scheduler_offset_ns);
            // After one look there is no time, or more to come.
            if looks.len() > 1 {
                self.kernel.describe_sleepers(
                    &mut survey,
                    &last.look,
                    functions,
                    &mut self.probes,
                )?;
                if !survey.locks.is_empty() {
                    let recorders = Recorders::find();
                    tracing::debug!(
                        "recorders of long holds on this host: {}",
                        recorders.count()
                    );
                    recent_holds::describe(
                        &mut survey,
                        &last.look,
                        &recorders,
                        &self.kernel.layout,
                        functions,
                        &mut self.probes,
                    )?;
                }
            }
        }
        let mut in_flight = InFlight::default();
        let holders = survey.locks.iter_mut().flat_map(|lock| &mut lock.holders);
        let sleepers = survey.sleepers.iter_mut();
        let stuck = holders
            .map(|holder| &mut holder.stuck)
            .chain(sleepers.map(|sleeper| &mut sleeper.stuck));
        for device in stuck.filter_map(|stuck| stuck.device.as_mut()) {
            in_flight.fill(device);
        }
        survey.duration = Nanos::from_duration(began.elapsed());
        Ok(survey)
    }

    /// Looks at every task. The words of their stacks are put into this memory, whatever is
    /// in it. Those that stand as in an earlier look, right before this one, are unwound no
    /// second time.
    pub(super) fn look_at_tasks(
        &mut self,
        memory: Vec<u64>,
        earlier: Option<&Look>,
    ) -> Result<Look, SurveyError> {
        let mut looking = Looking::new(self.kernel.layout.task.thread_size, memory, earlier);
        self.probes
            .read_tasks(earlier.is_some(), &mut |records| looking.take(records))?;
        Ok(looking.end())
    }

    /// One look at everything: tasks, queues, and who could hold what. `memory` and `earlier`
    /// as in [`Self::look_at_tasks`].
    fn look(
        &mut self,
        until: Instant,
        memory: Vec<u64>,
        earlier: Option<&Look>,
        functions: &mut Functions<'_>,
    ) -> Result<Sight, SurveyError> {
        let began = Instant::now();
        let woke_ns = own_wake_up();
        let look = self.look_at_tasks(memory, earlier)?;
        let read_at = Instant::now();
        let (holds, holds_error) = match self.holds.as_mut().map(|source| source.holds()) {
            Some(Ok(holds)) => (holds, None),
            Some(Err(error)) => (Vec::new(), Some(error.to_string())),
            None => (Vec::new(), None),
        };
        let scheduler_offset_ns = scheduler_offset(&look, woke_ns);
        let own_tgid = std::process::id();
        let sleepers = self.kernel.sleepers(
            &look,
            scheduler_offset_ns,
            Some(own_tid()),
            functions,
            &mut self.sleeps,
            &mut self.probes,
        )?;
        let (queues, unsettled) =
            self.kernel
                .queues(&look, &holds, own_tgid, functions, &mut self.probes)?;
        let waits = fuse::waits(functions, &look);
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
            sleepers,
            queues,
            fuse,
            unsettled,
            holds_error,
            read_at,
            took: began.elapsed(),
        })
    }
}

/// What is in flight, each disk asked once.
#[derive(Default)]
struct InFlight(FxHashMap<String, Option<u64>>);

impl InFlight {
    fn fill(&mut self, device: &mut BlockDevice) {
        let known = self.0.get(&device.name).copied();
        device.in_flight = known.unwrap_or_else(|| {
            let requests = in_flight(&device.name);
            self.0.insert(device.name.clone(), requests);
            requests
        });
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
    now_ns()
}

fn own_tid() -> Tid {
    Tid(rustix::thread::gettid().as_raw_nonzero().get() as u32)
}

/// What to add to a scheduler time of this look, in which our own thread had got a CPU
/// right before `woke_ns`.
fn scheduler_offset(look: &Look, woke_ns: u64) -> Option<i64> {
    let own_tid = own_tid();
    let own = look
        .tasks
        .iter()
        .find(|task| task.name.key.tid == own_tid)?;
    let arrival = own.record.last_arrival_ns;
    (arrival != 0).then(|| woke_ns as i64 - arrival as i64)
}
