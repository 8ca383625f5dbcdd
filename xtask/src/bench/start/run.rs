//! lockwatch while it runs: when it is ready, and what memory it takes.

use std::collections::BTreeMap;
use std::fs;
use std::mem::MaybeUninit;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::libc;
use serde::{Deserialize, Serialize};

use crate::process;

/// It is ready within a third of a second; an emulated machine is slow.
const LIMIT: Duration = Duration::from_secs(120);

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Resident, pages of files and of maps that it has mapped included.
    pub(crate) resident: u64,
    /// The most that was resident.
    pub(crate) peak: u64,
    /// Of its BPF maps, in the kernel.
    pub(crate) maps: u64,
}

/// A command that goes on until it is told to stop. Dropped, it is stopped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    /// Keeps the pipe open.
    _lines: Receiver<String>,
}

impl Running {
    /// Starts it, and returns once it has said a line on stderr that begins with `says`.
    pub(crate) fn start(program: &Path, arguments: &[&str], says: &str) -> Result<Self> {
        let mut command = Command::new(program);
        let command = command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let line = process::name(command);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start `{line}`"))?;
        let stderr = child.stderr.take().context("no stderr")?;
        let running = Self {
            child,
            _lines: process::lines_of(stderr),
        };
        let deadline = Instant::now() + LIMIT;
        let mut said = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match running._lines.recv_timeout(left) {
                Ok(text) if text.starts_with(says) => return Ok(running),
                Ok(text) => said.push(text),
                Err(_) => bail!("`{line}` is not ready, but says: {}", said.join(" / ")),
            }
        }
    }

    /// What it takes now.
    pub(crate) fn memory(&self) -> Result<Memory> {
        let pid = self.child.id();
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let kib = |text: &str, key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            number
                .map(|number| number * 1024)
                .with_context(|| format!("the kernel tells no {key} of process {pid}"))
        };
        // `status` tells it to some pages per CPU only.
        let resident = kib(&read("smaps_rollup")?, "Rss:")?;
        let peak = kib(&read("status")?, "VmHWM:")?;
        Ok(Memory {
            resident,
            peak: peak.max(resident),
            maps: maps(pid)?,
        })
    }

    /// Tells it to stop, and waits for that.
    pub(crate) fn end(mut self) -> Result<()> {
        process::end(&mut self.child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = process::end(&mut self.child);
    }
}

/// What the kernel counts for all maps that a process has open, each once.
fn maps(pid: u32) -> Result<u64> {
    let folder = format!("/proc/{pid}/fdinfo");
    let mut bytes = BTreeMap::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))? {
        // Closed meanwhile.
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let field = |key: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(key))?;
            line.trim().parse().ok()
        };
        if let (Some(id), Some(memory)) = (field("map_id:"), field("memlock:")) {
            bytes.insert(id, memory);
        }
    }
    ensure!(!bytes.is_empty(), "process {pid} has no BPF map");
    Ok(bytes.into_values().sum())
}

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) took: Duration,
    /// Bytes that were resident at most.
    pub(crate) peak: u64,
}

/// Runs a command that answers with exit code 0 or 1.
pub(crate) fn to_its_end(program: &Path, arguments: &[&str]) -> Result<Ended> {
    let began = Instant::now();
    let mut command = Command::new(program);
    let command = command.args(arguments).stdout(Stdio::null());
    let line = process::name(command);
    let child = command
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    let pid = i32::try_from(child.id())?;
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel writes what the two pointers point at; the child is ours, and nobody
    // else waits for it.
    let ended = unsafe { libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr()) };
    let took = began.elapsed();
    ensure!(ended == pid, "cannot wait for `{line}`");
    // SAFETY: plain integers, for which zero is a value, and the kernel has written them.
    let usage = unsafe { usage.assume_init() };
    let is_answer = libc::WIFEXITED(status) && libc::WEXITSTATUS(status) <= 1;
    ensure!(is_answer, "`{line}` has not answered: status {status:#x}");
    Ok(Ended {
        took,
        peak: u64::try_from(usage.ru_maxrss)? * 1024,
    })
}
