//! The process's own side: its main thread and its actors.

use std::{
    ffi::CString,
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::{mman::ProtFlags, signal::Signal},
    unistd::{Pid, getppid},
};

use super::{Actor, COMM, ERRAND, Part, SERVER_COMM};
use crate::{
    fuse::{Server, Source, Tree},
    iterator::Iterator,
    mapping::{FreshPage, Mapping, map_one_page, map_privately, open_direct, start_writeback},
    watchdog::{exit_now, silence_streams},
    worker::Rest,
};

const STACK_BYTES: usize = 64 << 10;

/// The child's ends of the pipes.
pub(super) struct Stagehand {
    pub(super) lab: Pid,
    pub(super) control: File,
    pub(super) reports: File,
    pub(super) actors: Vec<(Actor, File)>,
    /// A file system that the process serves itself, and how late its answers may be.
    pub(super) serves: Option<(Tree, Duration)>,
}

/// A report: index of the actor, then its tid. The server comes after the last actor.
pub(super) const REPORT_BYTES: usize = 8;

impl Stagehand {
    /// The whole life of the process.
    pub(super) fn run(self, mount: &Path) -> Result<()> {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
            .context("cannot ask to be killed with the lab")?;
        if getppid() != self.lab {
            bail!("the lab is gone already");
        }
        silence_streams()?;
        let name = CString::new(COMM).context("the target's name has a zero byte")?;
        nix::sys::prctl::set_name(&name).context("cannot name the target")?;
        let mut control = self.control;
        let mut byte = [0];
        if control
            .read(&mut byte)
            .context("cannot read from the lab")?
            == 0
        {
            return Ok(());
        }
        let rest = Rest::default();
        let errand = Rest::default();
        if let Some((tree, max_delay)) = self.serves {
            let server = serve(mount, tree, max_delay, errand.clone())?;
            (&self.reports)
                .write_all(&encode_report(self.actors.len(), server))
                .context("cannot report to the lab")?;
        }
        let common = Arc::new(OnceLock::new());
        let mut threads = Vec::new();
        for (index, (actor, go)) in self.actors.into_iter().enumerate() {
            let stage = Entrance {
                index,
                go,
                reports: self.reports.try_clone().context("cannot copy a pipe")?,
                rest: rest.clone(),
                errand: errand.clone(),
                common: Arc::clone(&common),
            };
            let mount = mount.to_owned();
            let comm = actor.comm.clone();
            let thread = thread::Builder::new()
                .name(comm.clone())
                .stack_size(STACK_BYTES)
                .spawn(move || {
                    if let Err(error) = stage.play(actor.part, mount) {
                        eprintln!("stall-lab: target: thread {}: {error:#}", actor.comm);
                        exit_now(1);
                    }
                })
                .with_context(|| format!("cannot start thread {comm}"))?;
            threads.push(thread);
        }
        // Until the end of the pipe: the lab writes nothing more.
        let _ = control.read(&mut byte);
        rest.end();
        errand.end();
        for thread in threads {
            if thread.join().is_err() {
                bail!("a thread panicked");
            }
        }
        Ok(())
    }
}

/// Starts the process's own server; returns its thread id. Once `errand` is over, it
/// touches a page that nobody has touched, before it answers the request of that label.
///
/// Everything that is run later is run once before: text that is not there yet would be
/// a page fault, too.
fn serve(mount: &Path, tree: Tree, max_delay: Duration, errand: Rest) -> Result<i32> {
    let rehearsal = Rest::default();
    rehearsal.end();
    rehearsal.wait();
    FreshPage::new()?.touch();
    let page = FreshPage::new()?;
    let server = Server::start(SERVER_COMM, mount, Source::Nothing, tree, max_delay)?;
    server.send(ERRAND, move || {
        errand.wait();
        page.touch();
    });
    Ok(server.task().tid.0)
}

/// What a thread of the target needs to know.
struct Entrance {
    index: usize,
    go: File,
    reports: File,
    rest: Rest,
    /// What the process's own server waits for.
    errand: Rest,
    /// The mapping of [`Part::WriteAgain`].
    common: Arc<OnceLock<Mapping>>,
}

impl Entrance {
    fn play(self, part: Part, mount: PathBuf) -> Result<()> {
        match part {
            Part::Touch { file, page } => {
                let map = Mapping::new(&mount.join(file), ProtFlags::PROT_READ)?;
                drop(mount);
                if self.enter()? {
                    map.touch(page);
                }
            }
            Part::Pass { file, page } => {
                let map = Mapping::new(&mount.join(file), ProtFlags::PROT_READ)?;
                drop(mount);
                if self.enter()? {
                    map.pass(page);
                }
            }
            Part::Stat { file } => {
                if self.enter()? {
                    // What it is told does not matter.
                    let _ = std::fs::metadata(mount.join(file));
                }
            }
            Part::Iterate { file } => {
                let map = Mapping::new(&mount.join(file), ProtFlags::PROT_READ)?;
                let mut iterator = Iterator::reading(map.first())?;
                drop(mount);
                if self.enter()? {
                    iterator.run();
                }
                self.wait()?;
                drop(iterator);
                return Ok(());
            }
            Part::SendServer => {
                drop(mount);
                if self.enter()? {
                    self.errand.end();
                }
            }
            Part::TouchAndExit { file } => {
                let map = Mapping::new(&mount.join(file), ProtFlags::PROT_READ)?;
                if self.enter()? {
                    map.touch(0);
                }
                return Ok(());
            }
            Part::MapDirect { file } => {
                let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
                let path = mount.join(file);
                // Opening a file drops its pages, too: it comes before they are dirty.
                let direct = open_direct(&path)?;
                Mapping::new(&path, both)?.dirty();
                drop((mount, path));
                if self.enter()? {
                    map_privately(&direct)?;
                }
                self.wait()?;
                drop(direct);
                return Ok(());
            }
            Part::WriteAgain { file } => {
                let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
                // Open until the end: closing it would wait for the writeback.
                let (map, opened) = Mapping::keeping_file(&mount.join(file), both)?;
                map.dirty();
                start_writeback(&opened)?;
                drop(mount);
                let map = self.common.get_or_init(|| map);
                if self.enter()? {
                    map.dirty();
                }
                self.wait()?;
                drop(opened);
                return Ok(());
            }
            Part::Advise => {
                drop(mount);
                if self.enter()? {
                    let map = self.common.get().context("nothing was mapped to advise")?;
                    map.advise()?;
                }
            }
            Part::Map => {
                drop(mount);
                if self.enter()? {
                    map_one_page()?;
                }
            }
            Part::MapAndExit => {
                if self.enter()? {
                    map_one_page()?;
                }
                return Ok(());
            }
            Part::Futex => {
                drop(mount);
                if self.enter()? {
                    self.rest.wait();
                }
                return Ok(());
            }
        }
        self.wait()?;
        Ok(())
    }

    /// Reports its tid and waits for its turn; false if there is none.
    fn enter(&self) -> Result<bool> {
        let report = encode_report(self.index, nix::unistd::gettid().as_raw());
        (&self.reports)
            .write_all(&report)
            .context("cannot report to the lab")?;
        self.wait()
    }

    fn wait(&self) -> Result<bool> {
        let mut byte = [0];
        let size = (&self.go)
            .read(&mut byte)
            .context("cannot read from the lab")?;
        Ok(size > 0)
    }
}

fn encode_report(index: usize, tid: i32) -> [u8; REPORT_BYTES] {
    let mut report = [0; REPORT_BYTES];
    report[..4].copy_from_slice(&(index as u32).to_ne_bytes());
    report[4..].copy_from_slice(&tid.to_ne_bytes());
    report
}

pub(super) fn decode_report(report: [u8; REPORT_BYTES]) -> (usize, i32) {
    let [a, b, c, d, e, f, g, h] = report;
    (
        u32::from_ne_bytes([a, b, c, d]) as usize,
        i32::from_ne_bytes([e, f, g, h]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_comes_back_as_it_was_sent() {
        assert_eq!(decode_report(encode_report(3, 4_000_000)), (3, 4_000_000));
    }
}
