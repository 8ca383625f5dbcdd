//! The stream's programs: attached to tracepoints, reading nothing but what they
//! are handed.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
};

use aya::{
    Btf, BtfError, Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, RingBuf},
    programs::{BtfTracePoint, ProgramError},
};
use lockwatch_ebpf::{
    stream::{Event, OpenWait, StreamConfig, WAITS_MAX, WaitKey, Watched, counter},
    survey::TaskLayout,
};
use zerocopy::FromBytes as _;

use crate::probes::{LoadError, log, pod};

static OBJECT: &[u8] = aya::include_bytes_aligned!("object/stream.bpf.o");

/// Programs without which there is no stream, in the order of attaching: an end
/// without its begin is ignored, a begin without its end would stay open.
const CONTENTION: [&str; 2] = ["contention_end", "contention_begin"];
/// Programs that tell how holders spend their time.
const SCHED: [&str; 2] = ["sched_wakeup", "sched_switch"];

/// `BPF_NOEXIST`: insert, never replace.
const NOEXIST: u64 = 1;

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel has no such tracepoint.
    #[error(
        "this kernel has no tracepoint {0}: watching lock waits as they begin and end needs Linux 5.19 or later"
    )]
    NoTracepoint(&'static str),
    /// The kernel refused something.
    #[error(transparent)]
    Load(#[from] LoadError),
}

pod!(
    Layout(TaskLayout),
    Config(StreamConfig),
    Key(WaitKey),
    Wait(OpenWait),
    Times(Watched)
);

/// The loaded and attached programs, and their maps. Dropping it detaches all, as
/// the end of the process does: nothing is pinned.
pub struct StreamProbes {
    waits: HashMap<MapData, Key, Wait>,
    events: RingBuf<MapData>,
    counters: PerCpuArray<MapData, u64>,
    watched: HashMap<MapData, u32, Times>,
    watching: Array<MapData, u32>,
    sched: Result<(), AttachError>,
    log: log::ProgramLog,
    _ebpf: Ebpf,
}

impl std::fmt::Debug for StreamProbes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamProbes").finish_non_exhaustive()
    }
}

impl StreamProbes {
    /// Loads the object for this kernel's layout and attaches its programs.
    ///
    /// # Errors
    /// When the kernel has no contention tracepoints, or refuses a program or a map.
    pub fn attach(layout: &TaskLayout, config: &StreamConfig) -> Result<Self, AttachError> {
        let btf =
            Btf::from_sys_fs().map_err(|error| LoadError::program(ProgramError::Btf(error)))?;
        let layout = Layout(*layout);
        let config = Config(*config);
        let log_level = log::level();
        let mut loader = EbpfLoader::new();
        loader
            .btf(Some(&btf))
            .override_global("TASK_LAYOUT", &layout, true)
            .override_global("STREAM_CONFIG", &config, true);
        log::configure(&mut loader, &log_level);
        let mut ebpf = loader.load(OBJECT).map_err(LoadError::object)?;

        let log = log::ProgramLog::open(&mut ebpf);
        let maps = (
            map(&mut ebpf, "WAITS")?,
            map(&mut ebpf, "EVENTS")?,
            map(&mut ebpf, "COUNTERS")?,
            map(&mut ebpf, "WATCHED")?,
            map(&mut ebpf, "WATCHING")?,
        );
        let typed = |error| LoadError::Map(io::Error::other(error));
        let mut probes = Self {
            waits: HashMap::try_from(maps.0).map_err(typed)?,
            events: RingBuf::try_from(maps.1).map_err(typed)?,
            counters: PerCpuArray::try_from(maps.2).map_err(typed)?,
            watched: HashMap::try_from(maps.3).map_err(typed)?,
            watching: Array::try_from(maps.4).map_err(typed)?,
            sched: Ok(()),
            log,
            _ebpf: ebpf,
        };
        attach_all(&mut probes._ebpf, &btf, CONTENTION)?;
        probes.sched = attach_all(&mut probes._ebpf, &btf, SCHED);
        Ok(probes)
    }

    /// Why the times of holders are not known, if they are not.
    pub fn sched_error(&self) -> Option<&AttachError> {
        self.sched.as_ref().err()
    }

    /// What becomes readable when the kernel wants its events read.
    pub fn events_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Takes the events that are there, oldest first; returns how many had another
    /// size than [`Event`].
    pub fn drain(&mut self, mut each: impl FnMut(Event)) -> u64 {
        let mut malformed = 0;
        while let Some(item) = self.events.next() {
            match Event::read_from_bytes(&item) {
                Ok(event) => each(event),
                Err(_) => malformed += 1,
            }
        }
        self.log.flush();
        malformed
    }

    /// Reads the open waits; false if the walk was cut short by changes under it.
    ///
    /// Waits that stand still during the walk are all found if the result is true:
    /// when the entry under the cursor goes, the kernel starts over from the first.
    pub fn read_waits(&self, mut each: impl FnMut(WaitKey, OpenWait)) -> bool {
        let steps_max = 4 * WAITS_MAX as usize;
        for (step, key) in self.waits.keys().enumerate() {
            let Ok(key) = key else { return false };
            if step == steps_max {
                return false;
            }
            // Gone in between: ended.
            if let Ok(wait) = self.waits.get(&key, 0) {
                each(key.0, wait.0);
            }
        }
        true
    }

    /// The open wait of this task on this lock.
    pub fn wait(&self, key: WaitKey) -> Option<OpenWait> {
        self.waits.get(&Key(key), 0).ok().map(|wait| wait.0)
    }

    /// Adds an open wait that began before the programs were attached; false if the
    /// task has one on this lock already, or there is no room.
    pub fn insert_wait(&mut self, key: WaitKey, wait: OpenWait) -> bool {
        self.waits.insert(Key(key), Wait(wait), NOEXIST).is_ok()
    }

    /// Takes out an open wait that has proved wrong.
    pub fn remove_wait(&mut self, key: WaitKey) {
        // Not there: it ended just now, which is as good.
        let _ = self.waits.remove(&Key(key));
    }

    /// The counters, summed over CPUs, indexed by [`counter`].
    pub fn counters(&self) -> [u64; counter::COUNT as usize] {
        std::array::from_fn(|index| {
            self.counters
                .get(&(index as u32), 0)
                .map_or(0, |values| values.iter().sum())
        })
    }

    /// Begins to keep the times of a task; false if there is no room.
    pub fn watch(&mut self, tid: u32, initial: Watched) -> bool {
        self.watched.insert(tid, Times(initial), NOEXIST).is_ok()
            && self.watching.set(0, 1, 0).is_ok()
    }

    /// The times of a watched task.
    pub fn watched(&self, tid: u32) -> Option<Watched> {
        self.watched.get(&tid, 0).ok().map(|times| times.0)
    }

    /// Stops keeping the times of a task. `last`: no other is watched now.
    pub fn unwatch(&mut self, tid: u32, last: bool) {
        if last {
            // Without the flag the programs only cost more: nothing to do about it.
            let _ = self.watching.set(0, 0, 0);
        }
        let _ = self.watched.remove(&tid);
    }
}

fn map(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, LoadError> {
    ebpf.take_map(name).ok_or(LoadError::Missing(name))
}

fn attach_all<const N: usize>(
    ebpf: &mut Ebpf,
    btf: &Btf,
    names: [&'static str; N],
) -> Result<(), AttachError> {
    // All loaded before the first is attached: a refusal leaves nothing behind.
    for name in names {
        let program = program(ebpf, name)?;
        program.load(name, btf).map_err(|error| match error {
            ProgramError::Btf(BtfError::UnknownBtfTypeName { .. }) => {
                AttachError::NoTracepoint(name)
            }
            error => LoadError::program(error).into(),
        })?;
    }
    for name in names {
        program(ebpf, name)?.attach().map_err(LoadError::program)?;
    }
    Ok(())
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut BtfTracePoint, LoadError> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(LoadError::Missing(name))
}
