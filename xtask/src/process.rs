//! Running other programs: with their output, and never longer than allowed.

use std::fmt::Display;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{self, SigHandler, Signal};
use nix::unistd::Pid;

/// How often a wait looks at its deadline.
const TICK: Duration = Duration::from_millis(50);
/// How long a program may take to end after SIGTERM, before SIGKILL.
const GRACE: Duration = Duration::from_secs(3);

/// A progress line on stderr, said before a step that takes its time.
pub(crate) fn say(line: impl Display) {
    eprintln!("xtask: {line}");
}

/// Says `what`, runs `step`, and says how long it took when that was long.
pub(crate) fn timed<T>(what: &str, step: impl FnOnce() -> Result<T>) -> Result<T> {
    say(format_args!("{what} …"));
    let start = Instant::now();
    let value = step().with_context(|| format!("{what} failed"))?;
    let took = start.elapsed();
    if took > Duration::from_secs(1) {
        say(format_args!("  done in {:.1} s", took.as_secs_f64()));
    }
    Ok(value)
}

/// How a command is named in messages: program and arguments.
pub(crate) fn name(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut line = program
        .file_name()
        .unwrap_or(command.get_program())
        .to_string_lossy()
        .into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

/// Runs a command whose output the user shall see; an exit code other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = name(command);
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` ended with {status}");
    }
    Ok(())
}

/// Runs a command for its stdout; its stderr becomes part of the error.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let line = name(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` ended with {}: {}", output.status, stderr.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{line}` wrote no UTF-8"))
}

/// How a supervised command ended.
#[derive(Debug)]
pub(crate) enum End {
    /// By itself.
    Exited(ExitStatus),
    /// Its process group was killed when the limit had passed.
    TimedOut,
}

/// What is to be done after a line of a supervised command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    GoOn,
    /// The command stands still for so long, and goes on then.
    StandStill(Duration),
}

/// Runs a command in a process group of its own, hands its stdout over line by
/// line, and kills the whole group when `limit` has passed or we are told to stop.
pub(crate) fn supervise(
    command: &mut Command,
    limit: Duration,
    mut on_line: impl FnMut(&str),
) -> Result<End> {
    let on_line = |line: &str| {
        on_line(line);
        Next::GoOn
    };
    supervise_while(command, limit, on_line, || true)
}

/// Like [`supervise`]; the time is also up when `may_go_on`, which is asked
/// several times a second, says no, and a line can make the command stand still.
pub(crate) fn supervise_while(
    command: &mut Command,
    limit: Duration,
    mut on_line: impl FnMut(&str) -> Next,
    mut may_go_on: impl FnMut() -> bool,
) -> Result<End> {
    let line = name(command);
    let deadline = Instant::now() + limit;
    watch_signals()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    let stdout = child.stdout.take().context("no stdout")?;
    let lines = lines_of(stdout);
    let end = loop {
        match lines.recv_timeout(TICK) {
            Ok(text) => match on_line(&text) {
                Next::GoOn => {}
                Next::StandStill(time) => stand_still(&child, time)?,
            },
            // It may close its stdout long before it ends.
            Err(RecvTimeoutError::Disconnected) => thread::sleep(TICK),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Err(interrupted) = heed_signals() {
            kill_group(&mut child)?;
            return Err(interrupted.context(format!("while `{line}` ran")));
        }
        if let Some(status) = child.try_wait()? {
            break End::Exited(status);
        }
        if Instant::now() >= deadline || !may_go_on() {
            kill_group(&mut child)?;
            break End::TimedOut;
        }
    };
    // What is still in the pipe; something that outlived its group may hold it open.
    let drained = Instant::now() + GRACE;
    while let Ok(text) = lines.recv_timeout(drained.saturating_duration_since(Instant::now())) {
        on_line(&text);
    }
    Ok(end)
}

/// Reads lines in a thread of its own, so that a wait for one can be bounded.
pub(crate) fn lines_of(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while reader
            .read_until(b'\n', &mut line)
            .is_ok_and(|bytes| bytes > 0)
        {
            let text = String::from_utf8_lossy(&line)
                .trim_end_matches('\n')
                .to_owned();
            if sender.send(text).is_err() {
                break;
            }
            line.clear();
        }
    });
    receiver
}

/// Waits for a child, but not longer than `limit`.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(TICK);
    }
}

/// Ends one child: SIGTERM, then SIGKILL. It is not reaped yet, so the pid is still its own.
pub(crate) fn end(child: &mut Child) -> Result<()> {
    if child.try_wait()?.is_some() {
        return Ok(());
    }
    signal::kill(pid(child)?, Signal::SIGTERM).context("cannot send SIGTERM")?;
    if wait(child, GRACE)?.is_none() {
        child.kill().context("cannot send SIGKILL")?;
        child.wait()?;
    }
    Ok(())
}

/// Stops a child, which is not reaped meanwhile, and lets it go on after that time, or when
/// we are told to stop.
fn stand_still(child: &Child, time: Duration) -> Result<()> {
    let pid = pid(child)?;
    signal::kill(pid, Signal::SIGSTOP).context("cannot stop a child")?;
    let until = Instant::now() + time;
    while Instant::now() < until && !INTERRUPTED.load(Ordering::Relaxed) {
        thread::sleep(TICK);
    }
    signal::kill(pid, Signal::SIGCONT).context("cannot let a child go on")
}

/// Ends a child and all that it has started and that stayed in its group.
fn kill_group(child: &mut Child) -> Result<()> {
    let group = pid(child)?;
    // The group may be gone already; the child itself is waited for below.
    let _ = signal::killpg(group, Signal::SIGTERM);
    let ended = wait(child, GRACE)?;
    // Those that ignored SIGTERM or outlived their leader.
    let _ = signal::killpg(group, Signal::SIGKILL);
    if ended.is_none() {
        child.wait()?;
    }
    Ok(())
}

fn pid(child: &Child) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(child.id())?))
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn interrupted(_: i32) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// An error once we are told to stop: for who has to end what it has started.
pub(crate) fn heed_signals() -> Result<()> {
    watch_signals()?;
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// A supervised group does not get the terminal's Ctrl-C, so we pass it on.
fn watch_signals() -> Result<()> {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe,
        // and nothing else in this program sets a handler for these signals.
        unsafe { signal::signal(signal, SigHandler::Handler(interrupted)) }
            .with_context(|| format!("cannot watch {signal}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_and_exit_code_are_handed_over() {
        let mut lines = Vec::new();
        let end = supervise(
            &mut shell("echo one; printf two; exit 3"),
            Duration::from_secs(20),
            |line| lines.push(line.to_owned()),
        )
        .unwrap();
        assert!(
            matches!(end, End::Exited(status) if status.code() == Some(3)),
            "{end:?}"
        );
        assert_eq!(lines, ["one", "two"]);
    }

    #[test]
    fn a_command_stands_still_and_goes_on() {
        let still = Duration::from_millis(600);
        let mut times = Vec::new();
        let end = supervise_while(
            &mut shell("for i in 1 2 3 4 5 6; do echo $i; sleep 0.05; done"),
            Duration::from_secs(20),
            |line| {
                times.push(Instant::now());
                if line == "2" {
                    return Next::StandStill(still);
                }
                Next::GoOn
            },
            || true,
        )
        .unwrap();
        assert!(
            matches!(end, End::Exited(status) if status.success()),
            "{end:?}"
        );
        // Lines that were in the pipe already come at once, later ones do not.
        let whole = times[5] - times[1];
        assert!(whole >= still, "{whole:?}");
        let after = times[5] - times[2];
        assert!(
            after >= Duration::from_millis(100),
            "it did not stop: {after:?}"
        );
    }

    #[test]
    fn a_group_that_exceeds_its_limit_is_killed_whole() {
        let start = Instant::now();
        let mut lines = Vec::new();
        // The grandchild would hold the pipe open for a minute.
        let end = supervise(
            &mut shell("sleep 60 & echo $!; wait"),
            Duration::from_millis(300),
            |line| lines.push(line.to_owned()),
        )
        .unwrap();
        assert!(matches!(end, End::TimedOut), "{end:?}");
        assert!(start.elapsed() < Duration::from_secs(20));
        let grandchild = lines[0].parse().unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while signal::kill(Pid::from_raw(grandchild), None).is_ok() && Instant::now() < deadline {
            // Dead, but it stays a zombie until its new parent has looked.
            let stat = std::fs::read_to_string(format!("/proc/{grandchild}/stat"));
            if stat.is_ok_and(|stat| stat.contains(") Z ")) {
                return;
            }
            thread::sleep(TICK);
        }
        assert!(signal::kill(Pid::from_raw(grandchild), None).is_err());
    }
}
