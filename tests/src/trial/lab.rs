//! The lab as a child: it makes a stall, and it is always ended.

use std::{
    env,
    error::Error,
    fmt,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::Signal;

use super::{Program, stall_lab};
use crate::truth::{Cleared, Event, NOT_HERE, Ready, Scenario};

/// How often a stall is tried to be made.
const ATTEMPTS: u32 = 3;

/// Before what is said of an attempt in vain. The verb that runs these tests in virtual
/// machines counts such lines.
const MADE_AGAIN: &str = "made again: ";

/// What the lab says when it has not made its stall, and its exit code then (main.rs).
const CANNOT: &str = "stall-lab: cannot make the stall ";
const FAILED: i32 = 2;

/// How long the lab may take to build its stall.
const RAISE: Duration = Duration::from_secs(60);

/// How long it may take to clear it, once told to.
const CLEAR: Duration = Duration::from_secs(30);

/// How long it may take to end at a signal: all its own ways of clearing up.
const LAST: Duration = Duration::from_secs(15);

/// Names of scenarios that this kernel is known not to have, with commas between them;
/// unset for none.
const MAY_SKIP: &str = "LOCKWATCH_MAY_SKIP";

/// The running kernel cannot have the stall.
#[derive(Debug)]
struct NotHere(String);

impl fmt::Display for NotHere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for NotHere {}

/// The stall came out otherwise than meant, as the lab itself says.
#[derive(Debug)]
struct Otherwise(String);

impl fmt::Display for Otherwise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the lab made no stall: {}", self.0)
    }
}

impl Error for Otherwise {}

/// A lab whose stall stands. Dropped, the stall is ended, whatever it takes.
pub struct Lab {
    program: Program,
    /// What stands.
    pub truth: Ready,
}

impl Lab {
    /// Makes a stall with so many waiters. It stands until [`Lab::finish`],
    /// or as long as the lab's default allows.
    ///
    /// # Errors
    /// When the stall cannot be made.
    pub fn raise(scenario: Scenario, waiters: u32) -> Result<Self> {
        Self::raise_with(scenario, waiters, &["--until-eof"])
    }

    /// As [`Lab::raise`], without the tasks that only look guilty.
    ///
    /// # Errors
    /// When the stall cannot be made.
    pub fn raise_bare(scenario: Scenario, waiters: u32) -> Result<Self> {
        Self::raise_with(scenario, waiters, &["--until-eof", "--no-decoys"])
    }

    /// As [`Lab::raise`], after another task has held the same lock for this long.
    ///
    /// # Errors
    /// When the stall cannot be made.
    pub fn raise_after(scenario: Scenario, waiters: u32, before: Duration) -> Result<Self> {
        let before = format!("{}ms", before.as_millis());
        Self::raise_with(scenario, waiters, &["--until-eof", "--before", &before])
    }

    /// Makes a stall that stands until [`Lab::finish`], or for this long.
    ///
    /// # Errors
    /// When the stall cannot be made.
    pub fn raise_at_most(scenario: Scenario, waiters: u32, most: Duration) -> Result<Self> {
        let hold = format!("{}ms", most.as_millis());
        Self::raise_with(scenario, waiters, &["--until-eof", "--hold", &hold])
    }

    /// Makes a stall that stands for this long, whoever looks.
    ///
    /// # Errors
    /// When the stall cannot be made.
    pub fn raise_for(scenario: Scenario, waiters: u32, hold: Duration) -> Result<Self> {
        let hold = format!("{}ms", hold.as_millis());
        Self::raise_with(scenario, waiters, &["--hold", &hold])
    }

    /// As [`Lab::raise`]; `None`, and a line that says why, if the running kernel cannot have
    /// the stall and `LOCKWATCH_MAY_SKIP` lists the scenario.
    ///
    /// # Errors
    /// When the stall cannot be made otherwise.
    pub fn raise_or_skip(scenario: Scenario, waiters: u32) -> Result<Option<Self>> {
        or_skip(scenario, Self::raise(scenario, waiters))
    }

    /// As [`Lab::raise_bare`]; `None` as in [`Lab::raise_or_skip`].
    ///
    /// # Errors
    /// When the stall cannot be made otherwise.
    pub fn raise_bare_or_skip(scenario: Scenario, waiters: u32) -> Result<Option<Self>> {
        or_skip(scenario, Self::raise_bare(scenario, waiters))
    }

    /// As [`Lab::raise_for`]; `None` as in [`Lab::raise_or_skip`].
    ///
    /// # Errors
    /// When the stall cannot be made otherwise.
    pub fn raise_for_or_skip(
        scenario: Scenario,
        waiters: u32,
        hold: Duration,
    ) -> Result<Option<Self>> {
        or_skip(scenario, Self::raise_for(scenario, waiters, hold))
    }

    /// A stall that comes out otherwise than meant is cleared, and tried again: on 5.10 a
    /// reader can get a read-held lock past a queued writer (kernel/locking/rwsem.c,
    /// `rwsem_try_read_lock_unqueued`). It says nothing of lockwatch. Whatever else goes
    /// wrong is an error at once.
    fn raise_with(scenario: Scenario, waiters: u32, options: &[&str]) -> Result<Self> {
        let mut attempt = 1;
        loop {
            match Self::try_to_raise(scenario, waiters, options) {
                Err(error) if attempt < ATTEMPTS && error.is::<Otherwise>() => {
                    eprintln!("{MADE_AGAIN}attempt {attempt} of {ATTEMPTS}: {error:#}");
                    attempt += 1;
                }
                raised => return raised,
            }
        }
    }

    fn try_to_raise(scenario: Scenario, waiters: u32, options: &[&str]) -> Result<Self> {
        let mut command = Command::new(stall_lab()?);
        command
            .arg(scenario.name())
            .args(["--waiters", &waiters.to_string()])
            .args(options)
            .stdin(Stdio::piped());
        let mut lab = Making(Some(Program::start(&mut command)?));
        let line = lab.program()?.out_line(RAISE)?;
        match line.as_deref().map(serde_json::from_str) {
            Some(Ok(Event::Ready(truth))) => Ok(Self {
                program: lab.0.take().context("the lab was started")?,
                truth: *truth,
            }),
            Some(Ok(Event::Hung(_))) => bail!("{} is no stall of a lock", scenario.name()),
            Some(Ok(Event::Cleared(_))) => bail!("the lab cleared a stall it did not make"),
            Some(Err(error)) => Err(error).context("the lab's first line is no event"),
            None => {
                let program = lab.program()?;
                while program.err_line(LAST)?.is_some() {}
                let status = program.wait(LAST)?.map(|(status, _)| status);
                let said = program.stderr_so_far().trim_end();
                let code = status.and_then(|status| status.code());
                Err(no_stall(code, said))
            }
        }
    }

    /// Ends the stall; the lab says how long it stood.
    ///
    /// # Errors
    /// When the lab had to use force, or did not end.
    pub fn finish(mut self) -> Result<Cleared> {
        self.program.close_stdin();
        self.cleared(CLEAR)
    }

    /// Waits for the stall to end by itself.
    ///
    /// # Errors
    /// When the lab had to use force, or did not end.
    pub fn outlast(mut self) -> Result<Cleared> {
        self.cleared(CLEAR + Duration::from_secs(60))
    }

    fn cleared(&mut self, limit: Duration) -> Result<Cleared> {
        let cleared = cleared(&mut self.program, limit)?;
        if self.program.wait(LAST)?.is_none() {
            bail!("the lab has cleared its stall and does not end");
        }
        Ok(cleared)
    }
}

/// What a lab says when what it made is over: both labs say it in the same way.
pub(super) fn cleared(program: &mut Program, limit: Duration) -> Result<Cleared> {
    let line = program.out_line(limit)?;
    let line = line.context("the lab ended without a word")?;
    let Event::Cleared(cleared) =
        serde_json::from_str(&line).with_context(|| format!("the lab says `{line}`"))?
    else {
        bail!("the lab says `{line}` when what it made should be over");
    };
    if !cleared.clean {
        bail!("the lab had to use force: {}", program.stderr_so_far());
    }
    Ok(cleared)
}

impl Drop for Lab {
    fn drop(&mut self) {
        end(&mut self.program);
    }
}

/// What a lab means that ends before its stall stands.
fn no_stall(code: Option<i32>, said: &str) -> anyhow::Error {
    let is_otherwise = || said.lines().any(|line| line.starts_with(CANNOT));
    match code {
        Some(code) if code == i32::from(NOT_HERE) => NotHere(said.to_owned()).into(),
        Some(FAILED) if is_otherwise() => Otherwise(said.to_owned()).into(),
        _ => anyhow!("the lab made no stall, and does not say why: {said}"),
    }
}

/// A stall that is missing must be expected: a skipped test looks like a passed one.
fn or_skip(scenario: Scenario, raised: Result<Lab>) -> Result<Option<Lab>> {
    let error = match raised {
        Ok(lab) => return Ok(Some(lab)),
        Err(error) => error,
    };
    if !error.is::<NotHere>() {
        return Err(error);
    }
    if !is_expected(&scenario.name()) {
        let expected = env::var(MAY_SKIP).unwrap_or_default();
        return Err(error.context(format!(
            "{MAY_SKIP} is `{expected}`, without {}",
            scenario.name()
        )));
    }
    eprintln!("skipped: {}: {error:#}", scenario.name());
    Ok(None)
}

/// Whether `LOCKWATCH_MAY_SKIP` has what is called so.
pub fn is_expected(name: &str) -> bool {
    lists(&env::var(MAY_SKIP).unwrap_or_default(), name)
}

/// Whether the list has the name.
fn lists(expected: &str, name: &str) -> bool {
    expected.split(',').any(|one| one.trim() == name)
}

/// A lab that has not said anything yet.
struct Making(Option<Program>);

impl Making {
    fn program(&mut self) -> Result<&mut Program> {
        self.0.as_mut().context("the lab was started")
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        if let Some(program) = &mut self.0 {
            end(program);
        }
    }
}

/// Asks it to end in ways that get ruder. The last one is `Program`'s own
/// SIGKILL; then the lab's watchdog clears up.
fn end(program: &mut Program) {
    let ended = |program: &mut Program| !matches!(program.wait(LAST), Ok(None));
    program.close_stdin();
    if !ended(program) {
        program.signal(Signal::SIGTERM);
        let _ = ended(program);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_listed_may_be_missing() {
        let list = "granted, vma-read-held";
        assert!(lists(list, "granted"));
        assert!(lists(list, "vma-read-held"));
        assert!(!lists(list, "mmap-read-held"));
        assert!(!lists("", "granted"));
        let raised = || Err(NotHere("no loop device".into()).into());
        assert!(or_skip(Scenario::MmapReadHeld, raised()).is_err());
    }

    #[test]
    fn only_a_stall_that_came_out_otherwise_is_made_again() {
        let said = "a word\nstall-lab: cannot make the stall Granted: a reader got past it";
        assert!(no_stall(Some(FAILED), said).is::<Otherwise>());
        for (code, said) in [
            (Some(FAILED), "stall-lab: cannot start a child"),
            (Some(FAILED), ""),
            (Some(101), said),
            (None, said),
            (Some(i32::from(NOT_HERE)), said),
        ] {
            assert!(!no_stall(code, said).is::<Otherwise>(), "{code:?} {said}");
        }
        assert!(no_stall(Some(i32::from(NOT_HERE)), said).is::<NotHere>());
    }
}
