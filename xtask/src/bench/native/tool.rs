//! What is run beside the work.

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::bench::Bench;
use crate::packages::{self, Program};
use crate::process;

/// lockwatch in one of its modes, another tool, or nothing.
#[derive(Debug)]
pub(super) struct Tool {
    pub(super) name: &'static str,
    /// Empty: nothing is run.
    command: Vec<String>,
    /// It says this on stderr, or on stdout, once it is attached.
    ready: &'static str,
}

/// One that runs.
#[derive(Debug)]
pub(super) struct Running(Option<Child>);

/// A tool that is not attached by then is broken.
const READY_LIMIT: Duration = Duration::from_secs(20);

const PEERS: [Program; 2] = [
    Program {
        name: "bpftrace",
        package: "bpftrace",
        purpose: "is measured beside lockwatch",
    },
    Program {
        name: "perf",
        package: "linux-perf",
        purpose: "is measured beside lockwatch",
    },
];

/// Waits by address of the lock, as its manual would count them.
const BPFTRACE: &str = "BEGIN { printf(\"attached\\n\"); } \
    tracepoint:lock:contention_begin { @at[tid] = nsecs; } \
    tracepoint:lock:contention_end /@at[tid]/ { @ns[args->lock_addr] = sum(nsecs - @at[tid]); delete(@at[tid]); }";

impl Tool {
    /// Nothing first, lockwatch's modes, and if wanted what others have.
    pub(super) fn all(bench: &Bench<'_>) -> Result<Vec<Self>> {
        let lockwatch = bench.workspace.release_binary("lockwatch");
        let own = |name, arguments: &[&str], ready| Self {
            name,
            command: [&[lockwatch.to_string_lossy().as_ref()], arguments]
                .concat()
                .iter()
                .map(ToString::to_string)
                .collect(),
            ready,
        };
        let listen = ["export", "--listen", "127.0.0.1:0"];
        let mut tools = vec![
            Self {
                name: "nothing",
                command: Vec::new(),
                ready: "",
            },
            own("watch", &["watch"], "watching: "),
            own("export", &listen, "exporting: "),
            own(
                "watch --track-holds",
                &["watch", "--track-holds"],
                "watching: ",
            ),
            own(
                "export --track-holds",
                &[&listen[..], &["--track-holds"]].concat(),
                "exporting: ",
            ),
        ];
        if bench.peers {
            packages::ensure(&PEERS)?;
            let other = |name, command: &[&str], ready| Self {
                name,
                command: command.iter().map(ToString::to_string).collect(),
                ready,
            };
            tools.push(other("bpftrace", &["bpftrace", "-e", BPFTRACE], "attached"));
            tools.push(other(
                "perf record",
                &[
                    "perf",
                    "record",
                    "--verbose",
                    "-a",
                    "-e",
                    "lock:contention_begin,lock:contention_end",
                    "-o",
                    "/dev/null",
                ],
                "mmap size",
            ));
        }
        Ok(tools)
    }

    /// Starts it, and waits until it is attached.
    pub(super) fn start(&self) -> Result<Running> {
        let [program, arguments @ ..] = &self.command[..] else {
            return Ok(Running(None));
        };
        let (output, input) = std::io::pipe().context("cannot make a pipe")?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(input.try_clone()?)
            .stderr(input)
            .spawn()
            .with_context(|| format!("cannot start {}", self.name))?;
        // From here on it is ended, whatever happens.
        let running = Running(Some(child));
        let lines = process::lines_of(output);
        let until = Instant::now() + READY_LIMIT;
        let mut said = Vec::new();
        while let Ok(line) = lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            if line.contains(self.ready) {
                // Whoever writes must never wait for who reads.
                thread::spawn(move || lines.iter().for_each(drop));
                return Ok(running);
            }
            said.push(line);
        }
        bail!("{} does not run here: {}", self.name, said.join("\n"))
    }
}

impl Running {
    /// Ends it.
    pub(super) fn end(mut self) -> Result<()> {
        match self.0.take() {
            Some(mut child) => process::end(&mut child),
            None => Ok(()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // It is an error already that brings us here.
            let _ = process::end(child);
        }
    }
}
