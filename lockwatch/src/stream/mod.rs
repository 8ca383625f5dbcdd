//! The stream: lock waits as they begin and end, and how the holders of stalled
//! locks spend their time.
//!
//! What is true now is read from the kernel's maps at each [`Stream::scan`]; events
//! only add the exact ends. So a lost event blurs a time and never the picture.

pub mod counts;
mod event;
mod holds;
pub mod long_holds;
mod polled;
mod sleeps;
mod watched;

use std::{io, os::fd::OwnedFd};

pub use event::{Event, Scan, Wait, WaitId};
pub use holds::TracedHolds;
use lockwatch_ebpf::stream::{OpenWait, StreamConfig, counter};
pub use polled::PolledWaits;
use serde::{Deserialize, Serialize};
pub use sleeps::{AsleepIn, asleep_in};
use tokio::io::unix::AsyncFd;
use watched::Watching;
pub use watched::{Slept, Times};

use crate::{
    clock::now_ns,
    kernel::{layout::Layout, locks::RT_RWSEM_DRAINS, symbols::Symbols},
    plan::{Plan, Purpose, WaitEnds},
    probes::{
        counts::{CountGlobals, CountsMap},
        hook::Refused,
        stream::{StreamLoadError, StreamProbes},
    },
    task::{Nanos, TaskKey, TaskState},
};

/// What the stream sends.
#[derive(Clone, Copy, Debug)]
pub struct StreamOptions {
    /// Ends of waits shorter than this are not sent.
    pub ends_from: Nanos,
    /// Send the begin of every wait, too.
    pub begins: bool,
}

/// Why there is no stream, with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The programs cannot be loaded.
    #[error("cannot watch lock waits")]
    Load(#[from] StreamLoadError),
    /// The ring buffer cannot be waited for.
    #[error("cannot wait for the kernel's events")]
    Wait(#[source] io::Error),
}

/// What could not be sent, kept or read, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lost {
    /// Begins that did not fit the ring buffer.
    pub begins: u64,
    /// Ends that did not fit the ring buffer: those waits' lengths are not exact.
    pub ends: u64,
    /// Waits that did not fit the map; a survey shows those that stand.
    pub waits: u64,
    /// Readings of the map that changes under them cut short.
    pub scans: u64,
    /// Events that could not be decoded.
    pub malformed: u64,
    /// Holders whose times could not be kept.
    pub watched: u64,
}

impl Lost {
    /// Kind and number of each, in the order of a report.
    pub fn by_kind(&self) -> [(&'static str, u64); 6] {
        [
            ("begins", self.begins),
            ("ends", self.ends),
            ("waits", self.waits),
            ("scans", self.scans),
            ("malformed", self.malformed),
            ("watched", self.watched),
        ]
    }
}

/// Waits whose ends no program sees, so that a survey has to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnseenEnds {
    /// None: tracepoints see every end.
    None,
    /// Those of waits that stood before the programs were attached: a task leaves a
    /// function by way of a program only if it entered it that way.
    OfSeeds,
    /// All.
    OfAll,
}

impl UnseenEnds {
    fn of(plan: &Plan) -> Self {
        let at_functions = plan.hooks.iter().filter_map(|hook| match hook.purpose {
            Purpose::WaitBegin {
                awaited: Some(_),
                end,
            } => Some(end),
            _ => None,
        });
        at_functions.fold(Self::None, |unseen, end| match (unseen, end) {
            (Self::OfAll, _) | (_, WaitEnds::Survey) => Self::OfAll,
            (_, WaitEnds::Hook) => Self::OfSeeds,
        })
    }
}

/// The attached programs, decoded.
#[derive(Debug)]
pub struct Stream {
    probes: StreamProbes,
    ready: AsyncFd<OwnedFd>,
    watching: Watching,
    /// Whether there is anything that keeps the times of tasks.
    keeps_times: bool,
    lost: Lost,
    unseen_ends: UnseenEnds,
}

impl Stream {
    /// Loads what the plan asks for. Must be called inside a tokio runtime. Without
    /// `symbols`, waits of writers for rwsems of `PREEMPT_RT` look like waits for rtmutexes.
    ///
    /// # Errors
    /// When the plan sees no waits or the kernel refuses the programs.
    pub fn load(
        plan: &Plan,
        layout: &Layout,
        symbols: Option<&Symbols>,
        btf: &aya::Btf,
        options: &StreamOptions,
        counts: &CountGlobals,
    ) -> Result<Self, StreamError> {
        let config = StreamConfig {
            ends_from_ns: options.ends_from.0,
            begins: options.begins.into(),
            own_tgid: std::process::id(),
        };
        let rt_writers = symbols
            .filter(|_| layout.locks.rt_rwsem.is_some())
            .map_or_else(Vec::new, |symbols| {
                symbols.ranges_in_image_where(|stem| RT_RWSEM_DRAINS.contains(&stem))
            });
        let probes = StreamProbes::load(plan, &layout.task, &config, counts, &rt_writers, btf)?;
        let events = probes.events_fd().try_clone_to_owned();
        // SAFETY: an `OwnedFd` keeps its number open and the same for its life.
        let ready = events
            .and_then(|fd| unsafe { AsyncFd::register(fd) }.map_err(io::Error::from))
            .map_err(StreamError::Wait)?;
        Ok(Self {
            probes,
            ready,
            watching: Watching::default(),
            keeps_times: plan.sees_holder_times(),
            lost: Lost::default(),
            unseen_ends: UnseenEnds::of(plan),
        })
    }

    /// The counts of waits, to be read apart from the rest; `None` if they were taken before.
    pub fn take_counts(&mut self) -> Option<CountsMap> {
        self.probes.take_counts()
    }

    /// Attaches it.
    ///
    /// # Errors
    /// When the kernel refuses a program.
    pub fn attach(&mut self) -> Result<(), Refused> {
        self.probes.attach()
    }

    /// Waits whose ends no program sees.
    pub fn unseen_ends(&self) -> UnseenEnds {
        self.unseen_ends
    }

    /// Waits until the kernel wants its events read. It wakes only for a ring buffer
    /// that fills up: call [`Stream::scan`] on a timer, too.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn ready(&self) -> io::Result<()> {
        self.ready.readable().await?.clear_ready();
        Ok(())
    }

    /// Takes the events that are there, oldest first.
    pub fn events(&mut self, mut each: impl FnMut(Event)) {
        let mut undecoded = 0;
        let malformed = self.probes.drain(|event| match Event::decode(&event) {
            Some(event) => each(event),
            None => undecoded += 1,
        });
        self.lost.malformed += malformed + undecoded;
    }

    /// Reads the waits that are open now. `at_ns` is the time before the reading:
    /// a wait that began earlier and is not in it is over.
    pub fn scan(&mut self) -> Scan {
        let at_ns = now_ns();
        let mut waits = Vec::new();
        // An entry can be reused between its key and its value being read: an old
        // wait counts only when it reads the same twice.
        let probes = &self.probes;
        let complete = probes.read_waits(|key, open| {
            let old = at_ns.saturating_sub(open.since_ns) > Nanos::MILLI.0;
            if !old || probes.wait(key) == Some(open) {
                waits.push(Wait::decode(key, &open));
            }
        });
        if !complete {
            self.lost.scans += 1;
        }
        Scan {
            at_ns,
            waits,
            complete,
        }
    }

    /// Enters a wait that began before the programs were attached, so that its end
    /// is seen where [`Self::unseen_ends`] allows it; false if the task has an open wait on this lock already.
    pub fn seed(&mut self, wait: &Wait) -> bool {
        let (key, open) = wait.encode();
        self.probes.insert_wait(key, open)
    }

    /// Takes a wait out whose end no program has seen; false if it is not there any more.
    pub fn take_out(&mut self, wait: &Wait) -> bool {
        let (key, entered) = wait.encode();
        let is_same = |open: OpenWait| open.since_ns == entered.since_ns;
        let stands = self.probes.wait(key).is_some_and(is_same);
        if stands {
            self.probes.remove_wait(key, entered.since_ns);
        }
        stands
    }

    /// Keeps the times of a task that was in `state` a moment ago. Each call wants
    /// one [`Stream::release`]. False if there is no room, or the plan does not see them.
    pub fn watch(&mut self, task: TaskKey, state: TaskState) -> bool {
        self.keeps_times && self.watching.watch(&mut self.probes, task, state)
    }

    /// The times of a watched task so far.
    pub fn times(&self, task: TaskKey) -> Option<Times> {
        self.watching.times(&self.probes, task)
    }

    /// One less wants the times of this task.
    pub fn release(&mut self, task: TaskKey) {
        self.watching.release(&mut self.probes, task);
    }

    /// Waits that have been recorded in the kernel so far.
    pub fn wait_count(&self) -> u64 {
        self.probes.counters()[counter::WAITS as usize]
    }

    /// What has been lost so far.
    pub fn lost(&self) -> Lost {
        let counters = self.probes.counters();
        Lost {
            begins: counters[counter::LOST_BEGIN as usize],
            ends: counters[counter::LOST_END as usize],
            waits: counters[counter::LOST_WAIT as usize],
            watched: self.watching.refused(),
            ..self.lost
        }
    }
}
