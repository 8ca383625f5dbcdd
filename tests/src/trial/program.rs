//! A program that is run, with its output, and never longer than allowed.

use std::{
    ffi::OsStr,
    io::{self, BufRead, BufReader, Read},
    os::unix::process::ExitStatusExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{errno::Errno, libc, sys::signal, unistd::Pid};

use crate::clock;

/// Time between two looks at a child.
const TICK: Duration = Duration::from_millis(1);

/// How long a killed child may take to end: it may have to wait for a stall.
const DEATH: Duration = Duration::from_secs(15);

/// How long the ends of its output may take after its own.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A running child whose output is collected. Dropped, it is killed.
pub struct Program {
    name: String,
    child: Child,
    /// It was waited for; its pid may be somebody else's by now.
    reaped: bool,
    out: Receiver<String>,
    err: Receiver<String>,
    out_so_far: String,
    err_so_far: String,
    begun: Instant,
    begun_ns: u64,
}

/// How a program ended, and what it said.
#[derive(Debug)]
pub struct Ended {
    /// What was run.
    pub name: String,
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// From before its start until it was gone.
    pub took: Duration,
    /// Start, `CLOCK_MONOTONIC`.
    pub begun_ns: u64,
    /// End, `CLOCK_MONOTONIC`.
    pub ended_ns: u64,
    /// Most memory it had resident, KiB. At least that of this test's own
    /// process, from which it was started.
    pub peak_rss_kib: u64,
}

impl Ended {
    /// Its exit code; `None` if a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Everything there is to say about it, for a failed assertion.
    pub fn describe(&self) -> String {
        format!(
            "{}\nended with {} after {:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.name,
            self.status,
            self.took,
            self.stdout.trim_end(),
            self.stderr.trim_end()
        )
    }
}

impl Program {
    /// Starts it with piped output and, unless the command says otherwise
    /// before, no input.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let name = name(command);
        let begun = Instant::now();
        let begun_ns = clock::monotonic_ns();
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{name}`"))?;
        let out = lines(child.stdout.take());
        let err = lines(child.stderr.take());
        Ok(Self {
            name,
            child,
            reaped: false,
            out,
            err,
            out_so_far: String::new(),
            err_so_far: String::new(),
            begun,
            begun_ns,
        })
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// When it cannot be started, or is still running after `limit`: then it
    /// is killed.
    pub fn run(command: &mut Command, limit: Duration) -> Result<Ended> {
        Self::start(command.stdin(Stdio::null()))?.end(limit)
    }

    /// Closes its standard input, if that was piped.
    pub fn close_stdin(&mut self) {
        drop(self.child.stdin.take());
    }

    /// The next line of standard output; `None` at the end of it.
    ///
    /// # Errors
    /// When none comes within `limit`.
    pub fn out_line(&mut self, limit: Duration) -> Result<Option<String>> {
        let line = next(&self.out, &mut self.out_so_far, limit);
        line.with_context(|| self.silence("standard output", limit))
    }

    /// The next line of standard error; `None` at the end of it.
    ///
    /// # Errors
    /// When none comes within `limit`.
    pub fn err_line(&mut self, limit: Duration) -> Result<Option<String>> {
        let line = next(&self.err, &mut self.err_so_far, limit);
        line.with_context(|| self.silence("standard error", limit))
    }

    fn silence(&self, stream: &str, limit: Duration) -> String {
        format!(
            "`{}` wrote no line to its {stream} within {limit:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.name, self.out_so_far, self.err_so_far
        )
    }

    /// Its process id, as long as it was not waited for.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Sends it a signal. Nothing happens if it has ended.
    pub fn signal(&self, signal: signal::Signal) {
        if !self.reaped {
            // Not waited for yet, so the pid is still its own.
            let _ = signal::kill(self.pid(), signal);
        }
    }

    /// Waits for its end; `None` if it is still running after `limit`.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<(ExitStatus, u64)>> {
        let deadline = Instant::now() + limit;
        loop {
            match self.reap()? {
                Some(ended) => return Ok(Some(ended)),
                None if Instant::now() >= deadline => return Ok(None),
                None => thread::sleep(TICK),
            }
        }
    }

    /// Waits for its end and takes what it has said.
    ///
    /// # Errors
    /// When it is still running after `limit`: then it is killed.
    pub fn end(mut self, limit: Duration) -> Result<Ended> {
        let Some((status, peak_rss_kib)) = self.wait(limit)? else {
            self.kill();
            self.drain();
            bail!(
                "`{}` was still running after {limit:?} and was killed\n--- stdout\n{}\n--- stderr\n{}",
                self.name,
                self.out_so_far,
                self.err_so_far
            );
        };
        let (took, ended_ns) = (self.begun.elapsed(), clock::monotonic_ns());
        self.drain();
        Ok(Ended {
            name: self.name.clone(),
            status,
            stdout: std::mem::take(&mut self.out_so_far),
            stderr: std::mem::take(&mut self.err_so_far),
            took,
            begun_ns: self.begun_ns,
            ended_ns,
            peak_rss_kib,
        })
    }

    /// What it has written to standard error so far.
    pub fn stderr_so_far(&mut self) -> &str {
        while let Ok(line) = self.err.try_recv() {
            self.err_so_far.push_str(&line);
        }
        &self.err_so_far
    }

    fn drain(&mut self) {
        let deadline = Instant::now() + LAST_WORDS;
        let left = || deadline.saturating_duration_since(Instant::now());
        while let Ok(Some(_)) = next(&self.out, &mut self.out_so_far, left()) {}
        while let Ok(Some(_)) = next(&self.err, &mut self.err_so_far, left()) {}
    }

    /// Exit status and peak memory, once it has ended.
    fn reap(&mut self) -> Result<Option<(ExitStatus, u64)>> {
        let mut status = 0;
        // SAFETY: all zeroes is a valid value of this plain structure.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are valid for the time of the call; the pid
        // is a child of ours that was not waited for.
        let pid = unsafe {
            libc::wait4(
                self.pid().as_raw(),
                &raw mut status,
                libc::WNOHANG,
                &raw mut usage,
            )
        };
        match Errno::result(pid) {
            Ok(0) | Err(Errno::EINTR) => Ok(None),
            Ok(_) => {
                self.reaped = true;
                Ok(Some((ExitStatus::from_raw(status), usage.ru_maxrss as u64)))
            }
            Err(error) => Err(error).with_context(|| format!("cannot wait for `{}`", self.name)),
        }
    }

    fn kill(&mut self) {
        self.signal(signal::Signal::SIGKILL);
        // If even this is not enough, it will end with the stall it waits for.
        let _ = self.wait(DEATH);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
        }
    }
}

/// Reads lines on a thread, which ends with the stream.
fn lines(stream: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (send, receive) = mpsc::channel();
    if let Some(stream) = stream {
        thread::spawn(move || {
            let mut reader = BufReader::new(stream);
            let mut line = Vec::new();
            while matches!(reader.read_until(b'\n', &mut line), Ok(size) if size > 0) {
                let text = String::from_utf8_lossy(&line).into_owned();
                if send.send(text).is_err() {
                    return;
                }
                line.clear();
            }
        });
    }
    receive
}

fn next(
    stream: &Receiver<String>,
    so_far: &mut String,
    limit: Duration,
) -> io::Result<Option<String>> {
    match stream.recv_timeout(limit) {
        Ok(line) => {
            so_far.push_str(&line);
            Ok(Some(line))
        }
        Err(RecvTimeoutError::Disconnected) => Ok(None),
        Err(RecvTimeoutError::Timeout) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn name(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_and_code_are_kept() {
        let mut command = shell("echo out; echo err >&2; exit 3");
        let ended = Program::run(&mut command, Duration::from_secs(10)).unwrap();
        assert_eq!(ended.code(), Some(3));
        assert_eq!((&*ended.stdout, &*ended.stderr), ("out\n", "err\n"));
        assert!(ended.peak_rss_kib > 0);
        assert!(ended.begun_ns < ended.ended_ns);
    }

    #[test]
    fn a_program_that_does_not_end_is_killed() {
        let begun = Instant::now();
        let error = Program::run(
            &mut shell("echo here; exec sleep 60"),
            Duration::from_millis(200),
        )
        .unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(10));
        let text = format!("{error:#}");
        assert!(
            text.contains("still running") && text.contains("here"),
            "{text}"
        );
    }
}
