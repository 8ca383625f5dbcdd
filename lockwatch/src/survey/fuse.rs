//! Who waits for which FUSE connection, and who has its device open, from one look.
//!
//! A request is never told by a pointer on a stack alone: the task has to be queued on the
//! request's own wait queue, by an entry that lies in its stack and points back.

mod reader;
#[cfg(test)]
mod tests;

use std::{collections::hash_map::Entry, time::Instant};

use rustc_hash::FxHashMap;

use self::reader::Reader;
use crate::{
    kernel::{
        fuse::{ANSWER_WAITS, FuseLayout, device_read},
        layout::Layout,
        memory::MemoryError,
        symbols::Symbols,
    },
    probes::survey::SurveyProbes,
    survey::{functions::Functions, look::Look},
};

/// How far out the function that waits for an answer may be: it calls the scheduler.
const INNERMOST: usize = 4;

/// A task that waits for the answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// Index into [`Look::tasks`].
    pub(super) task: usize,
    /// Address of the `fuse_req`.
    pub(super) address: u64,
    /// Address of the `fuse_conn`.
    pub(super) connection: u64,
    /// A daemon has read it.
    pub(super) is_sent: bool,
}

/// A table of open files that has a connection's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Device {
    /// Address of the `files_struct`.
    pub(super) files: u64,
    /// Address of the `fuse_conn`.
    pub(super) connection: u64,
}

/// What people call a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    /// Directory under `/sys/fs/fuse/connections`.
    pub(super) number: Option<u32>,
    /// In words.
    pub(super) name: String,
}

/// What one look says of FUSE.
#[derive(Debug, Default)]
pub(super) struct SeenFuse {
    /// Requests with tasks that wait for them.
    pub(super) requests: Vec<Request>,
    /// Who has the devices of their connections open.
    pub(super) devices: Vec<Device>,
    /// What the connections are called, by address.
    pub(super) connections: FxHashMap<u64, Connection>,
    /// Tasks that wait for FUSE, nobody can tell for which request.
    pub(super) unresolved: Vec<usize>,
    /// Why it is not known who serves, or not what is waited for.
    pub(super) missing: Option<String>,
}

impl SeenFuse {
    /// Whether a task waits for FUSE.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.requests.is_empty() || !self.unresolved.is_empty()
    }
}

/// Tasks asleep in a function that waits for the answer to a FUSE request.
pub(super) fn waits(functions: &mut Functions<'_>, look: &Look) -> Vec<usize> {
    let mut found = Vec::new();
    for (index, task) in look.tasks.iter().enumerate() {
        if task.record.on_cpu != 0 || task.record.moved != 0 || !task.state.is_asleep() {
            continue;
        }
        let is_there = task.frames.iter().take(INNERMOST).any(|frame| {
            let stem = functions.stem(frame.return_address);
            ANSWER_WAITS.contains(&stem)
        });
        if is_there {
            found.push(index);
        }
    }
    found
}

/// What is kept of FUSE from look to look.
#[derive(Debug, Default)]
pub(super) struct FuseState {
    /// Where the function starts that reads FUSE devices, once it was asked for.
    device_read: Option<Option<u64>>,
    /// The open devices, read once in a survey: there may be a million open files.
    devices: Option<Devices>,
}

#[derive(Debug)]
struct Devices {
    open: Vec<Device>,
    /// The connections that were waited for when they were read.
    asked_for: Vec<u64>,
    /// Why they are not known.
    missing: Option<String>,
}

impl Devices {
    fn unknown(asked_for: Vec<u64>, why: &str) -> Self {
        Self {
            open: Vec::new(),
            asked_for,
            missing: Some(why.to_owned()),
        }
    }

    /// Whether they were read for all of these connections.
    fn are_of(&self, connections: &[u64]) -> bool {
        connections
            .iter()
            .all(|connection| self.asked_for.contains(connection))
    }
}

/// What FUSE is asked with.
pub(super) struct Asker<'a> {
    /// The kernel's layouts.
    pub(super) layout: &'a Layout,
    /// The kernel's symbols.
    pub(super) symbols: &'a Symbols,
    /// Programs that read kernel memory and open files.
    pub(super) probes: &'a mut SurveyProbes,
    /// What is known already.
    pub(super) state: &'a mut FuseState,
    /// Open files are not read any further then.
    pub(super) until: Instant,
}

impl FuseState {
    /// Before a survey: devices come and go.
    pub(super) fn forget_devices(&mut self) {
        self.devices = None;
    }
}

impl Asker<'_> {
    /// Which of these tasks waits for which daemon.
    ///
    /// # Errors
    /// When kernel memory cannot be read at all.
    pub(super) fn look(&mut self, look: &Look, waits: &[usize]) -> Result<SeenFuse, MemoryError> {
        let mut seen = SeenFuse::default();
        if waits.is_empty() {
            return Ok(seen);
        }
        let Some(fuse) = &self.layout.fuse else {
            seen.unresolved = waits.to_vec();
            let reason = "this kernel's FUSE has a layout that lockwatch does not know";
            seen.missing = Some(reason.to_owned());
            return Ok(seen);
        };
        let mut reader = self.reader(look, fuse);
        (seen.requests, seen.unresolved) = reader.requests(waits)?;
        for request in &seen.requests {
            if let Entry::Vacant(vacant) = seen.connections.entry(request.connection) {
                vacant.insert(reader.name(request.connection, request.address)?);
            }
        }
        let asked_for: Vec<u64> = seen.connections.keys().copied().collect();
        if asked_for.is_empty() {
            return Ok(seen);
        }
        let known = self.state.devices.take();
        let devices = match known.filter(|known| known.are_of(&asked_for)) {
            Some(known) => known,
            None => self.devices(look, fuse, asked_for)?,
        };
        seen.devices.clone_from(&devices.open);
        seen.missing.clone_from(&devices.missing);
        self.state.devices = Some(devices);
        Ok(seen)
    }

    fn reader<'a>(&'a mut self, look: &'a Look, fuse: &'a FuseLayout) -> Reader<'a> {
        Reader {
            look,
            layout: self.layout,
            fuse,
            memory: self.probes,
        }
    }

    fn devices(
        &mut self,
        look: &Look,
        fuse: &FuseLayout,
        asked_for: Vec<u64>,
    ) -> Result<Devices, MemoryError> {
        let symbols = self.symbols;
        let read = self
            .state
            .device_read
            .get_or_insert_with(|| device_read(symbols));
        let Some(read) = *read else {
            let why = "FUSE was loaded after lockwatch was started";
            return Ok(Devices::unknown(asked_for, why));
        };
        match self.probes.read_open_files(read, self.until) {
            Ok(Some(open)) => Ok(Devices {
                open: self.reader(look, fuse).devices(&open)?,
                asked_for,
                missing: None,
            }),
            Ok(None) => {
                let why = "this kernel does not list its open files, or not in time";
                Ok(Devices::unknown(asked_for, why))
            }
            Err(error) => Ok(Devices::unknown(asked_for, &error.to_string())),
        }
    }
}
