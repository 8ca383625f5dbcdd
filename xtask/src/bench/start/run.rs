//! lockwatch while it runs: when it is ready, and what memory it takes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::process;

/// It is ready within a third of a second; an emulated machine is slow.
const LIMIT: Duration = Duration::from_secs(120);
const LOOK_AGAIN: Duration = Duration::from_millis(1);

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

/// How long a command takes that answers with exit code 0 or 1.
pub(crate) fn to_its_end(program: &Path, arguments: &[&str]) -> Result<Duration> {
    let began = Instant::now();
    let mut child = answering(program, arguments)?;
    let status = child.wait().context("cannot wait for lockwatch")?;
    let took = began.elapsed();
    ensure!(is_answer(status), "lockwatch has not answered: {status}");
    Ok(took)
}

/// The most that is resident of such a command, as it is seen every millisecond. What the
/// kernel tells at its end (`ru_maxrss`) is no less than what its parent had at the exec.
pub(crate) fn peak(program: &Path, arguments: &[&str]) -> Result<u64> {
    let mut child = answering(program, arguments)?;
    let file = format!("/proc/{}/status", child.id());
    let deadline = Instant::now() + LIMIT;
    let mut peak = 0;
    let status = loop {
        // It is still ours, dead or alive, but has no memory any more at its end.
        if let Ok(now) = kib(&fs::read_to_string(&file)?, "VmHWM:") {
            peak = peak.max(now);
        }
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            process::end(&mut child)?;
            bail!("lockwatch has not answered within {LIMIT:?}");
        }
        thread::sleep(LOOK_AGAIN);
    };
    ensure!(is_answer(status), "lockwatch has not answered: {status}");
    Ok(peak)
}

fn answering(program: &Path, arguments: &[&str]) -> Result<Child> {
    let mut command = Command::new(program);
    let command = command.args(arguments).stdout(Stdio::null());
    let line = process::name(command);
    command
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))
}

fn is_answer(status: ExitStatus) -> bool {
    matches!(status.code(), Some(0 | 1))
}

/// A number of KiB behind a key, in bytes.
fn kib(text: &str, key: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    number
        .map(|number| number * 1024)
        .with_context(|| format!("the kernel tells no {key}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told_in_kib() {
        let text = "VmPeak:\t    9000 kB\nVmHWM:\t    1234 kB\n";
        assert_eq!(kib(text, "VmHWM:").unwrap(), 1234 << 10);
        assert!(kib(text, "Rss:").is_err());
    }

    #[test]
    fn a_peak_is_not_that_of_its_parent() {
        // Ours is larger than that of a shell.
        let peak = peak(Path::new("sh"), &["-c", "sleep 0.1; exit 1"]).unwrap();
        assert!(peak > 0 && peak < 8 << 20, "{peak}");
        assert!(to_its_end(Path::new("sh"), &["-c", "exit 2"]).is_err());
    }
}
