//! The stall lab as a child: it makes a stall, and it is always ended.

use std::io::BufRead as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::process::{self, say};

/// The longest that any stall may stand.
const HOLD: &str = "60s";
/// How long the lab may take to build its stall, and to take it down …
const LIMIT: Duration = Duration::from_secs(30);
/// … with so much more for each waiter: they come one after another.
const LIMIT_EACH: Duration = Duration::from_millis(5);

/// The running stall lab. However it is left, the stall is ended.
#[derive(Debug)]
pub(crate) struct Lab {
    child: Child,
    /// Closing it tells the lab to take the stall down.
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    /// What stands, as the lab tells it.
    pub(crate) ready: Value,
}

impl Lab {
    /// Makes a stall of a scenario with so many waiters. It stands for a minute at most.
    pub(crate) fn raise(program: &Path, scenario: &str, waiters: u32) -> Result<Self> {
        let mut child = Command::new(program)
            .args([scenario, "--hold", HOLD, "--until-eof", "--waiters"])
            .arg(waiters.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("the lab has no stdout")?;
        let mut lab = Self {
            child,
            stdin,
            lines: process::lines_of(stdout),
            ready: Value::Null,
        };
        lab.ready = lab.event("ready", LIMIT + LIMIT_EACH * waiters)?;
        Ok(lab)
    }

    /// The lab's next line, which must be the named event.
    fn event(&mut self, name: &str, limit: Duration) -> Result<Value> {
        let line = self.lines.recv_timeout(limit).map_err(|_| {
            let state = match self.child.try_wait() {
                Ok(Some(status)) => format!("it ended with {status}"),
                _ => format!("nothing came in {limit:?}"),
            };
            anyhow::anyhow!("the stall lab gave no `{name}` event: {state}")
        })?;
        let event: Value = serde_json::from_str(&line)
            .with_context(|| format!("the stall lab wrote no JSON: {line}"))?;
        ensure!(
            event["event"] == name,
            "the stall lab wrote no `{name}` event but {line}"
        );
        Ok(event)
    }

    /// Takes the stall down and looks whether anything of it is left.
    pub(crate) fn finish(mut self) -> Result<()> {
        drop(self.stdin.take());
        let cleared = self.event("cleared", LIMIT)?;
        let ready = &self.ready;
        let status = process::wait(&mut self.child, LIMIT)?
            .context("the stall lab cleared its stall and does not end")?;
        ensure!(
            status.success() && cleared["clean"] == true,
            "the stall lab could not clean up: {cleared}, {status}"
        );
        let left: Vec<String> = tasks_of(ready)
            .into_iter()
            // A tid may be somebody else's by now; the name tells.
            .filter(|(tid, comm)| comm_of(*tid).is_some_and(|now| now == *comm))
            .map(|(tid, comm)| format!("{comm}[{tid}]"))
            .collect();
        ensure!(
            left.is_empty(),
            "tasks of the lab are left: {}",
            left.join(", ")
        );
        if let Some(mount) = ready["mount"].as_str().filter(|mount| !mount.is_empty()) {
            ensure!(!is_mounted(mount)?, "the lab's {mount} is still mounted");
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        say("ending the stall lab …");
        drop(self.stdin.take());
        if !matches!(process::wait(&mut self.child, LIMIT / 6), Ok(Some(_))) {
            say("the lab ignores the end of its stdin: sending it SIGTERM, then SIGKILL");
            if let Err(error) = process::end(&mut self.child) {
                say(format_args!("the stall lab may still run: {error:#}"));
            }
        }
    }
}

/// Tid and comm of every task that the lab has named and that did not exit before.
pub(crate) fn tasks_of(ready: &Value) -> Vec<(i64, String)> {
    ["holders", "waiters", "decoys"]
        .iter()
        .flat_map(|list| ready[*list].as_array().into_iter().flatten())
        .filter(|task| task["exited"] != true)
        .filter_map(|task| Some((task["tid"].as_i64()?, task["comm"].as_str()?.to_owned())))
        .collect()
}

fn comm_of(tid: i64) -> Option<String> {
    let comm = std::fs::read_to_string(format!("/proc/{tid}/comm")).ok()?;
    Some(comm.trim_end().to_owned())
}

fn is_mounted(mount: &str) -> Result<bool> {
    let mounts = std::fs::File::open("/proc/self/mounts").context("cannot read the mounts")?;
    for line in std::io::BufReader::new(mounts).lines() {
        if line?.split(' ').nth(1) == Some(mount) {
            return Ok(true);
        }
    }
    Ok(false)
}
