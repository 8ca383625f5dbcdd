//! Lockups and hanging tasks: the labs that make them, and what `watch` says of them.

use std::{
    env,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{sys::signal::Signal, unistd::Pid};
use serde::Deserialize;

use super::{
    Program, binary,
    lab::{cleared, is_expected},
    stall_lab,
};
use crate::truth::{
    Cleared, Context, Event, Hung, LockedUp, LockupEvent, LockupScenario, NOT_HERE, Scenario, Tid,
};

/// How long a lab may take until it has made something.
const RAISE: Duration = Duration::from_secs(60);
/// How long it may take to end after that is over.
const LAST: Duration = Duration::from_secs(90);

/// A lab that runs, and what it has made. Dropped, it is told to end.
pub struct Made<T> {
    program: Program,
    /// What it has made.
    pub truth: T,
}

impl Made<LockedUp> {
    /// Locks a CPU up for that long; `None`, and a line that says why, if the running kernel
    /// cannot have that and is known not to.
    ///
    /// # Errors
    /// When the lab fails otherwise.
    pub fn lock_up(scenario: LockupScenario, hold: Duration) -> Result<Option<Self>> {
        let mut command = lockup_lab(scenario, hold)?;
        let made = make(command.stdin(Stdio::null()), &scenario.name(), locked_up)?;
        Ok(made.map(Self::of))
    }
}

/// A lockup for which everything is prepared: what is left to do takes a moment. Dropped, it
/// is not made.
pub struct Prepared(Program);

impl Prepared {
    /// Prepares what [`Made::lock_up`] makes.
    ///
    /// # Errors
    /// The same.
    pub fn lockup(scenario: LockupScenario, hold: Duration) -> Result<Option<Self>> {
        let mut command = lockup_lab(scenario, hold)?;
        command.arg("--on-eof").stdin(Stdio::piped());
        let made = make(
            &mut command,
            &scenario.name(),
            |line| match serde_json::from_str(line)? {
                LockupEvent::Prepared => Ok(()),
                LockupEvent::Ready(_) | LockupEvent::Cleared(_) => bail!("nobody has asked for it"),
            },
        )?;
        Ok(made.map(|(program, ())| Self(program)))
    }

    /// Process id of the lab.
    pub fn pid(&self) -> Pid {
        self.0.pid()
    }

    /// Makes it.
    ///
    /// # Errors
    /// When the lab cannot.
    pub fn set_off(mut self) -> Result<Made<LockedUp>> {
        self.0.close_stdin();
        let line = self.0.out_line(RAISE)?.context("the lab made nothing")?;
        let truth = locked_up(&line).with_context(|| format!("the lab says `{line}`"))?;
        Ok(Made::of((self.0, truth)))
    }
}

fn lockup_lab(scenario: LockupScenario, hold: Duration) -> Result<Command> {
    let mut command = Command::new(binary("LOCKUP_LAB_BIN", "lockup-lab")?);
    let hold = format!("{}ms", hold.as_millis());
    command.arg(scenario.name()).args(["--hold", &hold]);
    Ok(command)
}

fn locked_up(line: &str) -> Result<LockedUp> {
    match serde_json::from_str(line)? {
        LockupEvent::Ready(truth) => Ok(*truth),
        LockupEvent::Prepared | LockupEvent::Cleared(_) => bail!("it is over before it has begun"),
    }
}

impl Made<Hung> {
    /// Makes so many tasks hang for that long.
    ///
    /// # Errors
    /// When the lab fails.
    pub fn hang(scenario: Scenario, tasks: u32, hold: Duration) -> Result<Option<Self>> {
        let mut command = Command::new(stall_lab()?);
        let hold = format!("{}ms", hold.as_millis());
        command
            .arg(scenario.name())
            .args(["--waiters", &tasks.to_string(), "--hold", &hold]);
        let made =
            make(
                command.stdin(Stdio::null()),
                &scenario.name(),
                |line| match serde_json::from_str(line)? {
                    Event::Hung(truth) => Ok(*truth),
                    Event::Ready(_) | Event::Cleared(_) => bail!("nothing hangs without a lock"),
                },
            )?;
        Ok(made.map(Self::of))
    }
}

/// Starts a lab, and reads what it says first.
fn make<T>(
    command: &mut Command,
    name: &str,
    read: impl FnOnce(&str) -> Result<T>,
) -> Result<Option<(Program, T)>> {
    let mut program = Program::start(command)?;
    if let Some(line) = program.out_line(RAISE)? {
        let truth = read(&line).with_context(|| format!("the lab says `{line}`"))?;
        return Ok(Some((program, truth)));
    }
    let ended = program.end(LAST)?;
    if ended.code() == Some(i32::from(NOT_HERE)) && is_expected(name) {
        eprintln!("skipped: {name}: {}", ended.stderr.trim_end());
        return Ok(None);
    }
    bail!("the lab made nothing: {}", ended.describe())
}

impl<T> Made<T> {
    fn of((program, truth): (Program, T)) -> Self {
        Self { program, truth }
    }

    /// Ends what was made before its time.
    ///
    /// # Errors
    /// As [`Self::outlast`].
    pub fn finish(self) -> Result<Cleared> {
        self.program.signal(Signal::SIGTERM);
        self.outlast()
    }

    /// Waits for the end of what was made.
    ///
    /// # Errors
    /// When the lab had to use force, or says nothing of an end.
    pub fn outlast(mut self) -> Result<Cleared> {
        cleared(&mut self.program, LAST)
    }
}

impl<T> Drop for Made<T> {
    fn drop(&mut self) {
        self.program.signal(Signal::SIGTERM);
        let _ = self.program.wait(LAST);
    }
}

/// The kernel's own `test_lockup`, or why there is none here.
///
/// # Errors
/// The reason.
pub fn generator() -> Result<String, String> {
    env::var("LOCKWATCH_TEST_LOCKUP").map_err(|_| {
        env::var("LOCKWATCH_NO_TEST_LOCKUP")
            .unwrap_or_else(|_| "it is only built for virtual machines".to_owned())
    })
}

/// A line of `watch --format json` about tasks or CPUs that hang; others are [`Line::Other`].
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Line {
    /// Something hangs.
    Finding(Box<Finding>),
    /// It does no more.
    FindingEnded {
        /// Its number.
        finding: u64,
        /// Its detector.
        detector: String,
        /// How long it was.
        length_ns: u64,
    },
    /// Watching is over.
    Summary {
        /// Findings that were reported.
        findings: u64,
    },
    /// Anything else.
    #[serde(other)]
    Other,
}

/// What a detector says.
#[derive(Clone, Debug, Deserialize)]
pub struct Finding {
    /// Its number.
    pub finding: u64,
    /// `found` or `stands`.
    pub reason: String,
    /// How long it has lasted.
    pub age_ns: u64,
    /// The detector.
    pub detector: String,
    /// In words.
    pub sentence: String,
    /// What the kernel's own detector said, laid beside it.
    #[serde(default)]
    pub second_opinion: Option<String>,
    /// Tasks that it is about.
    #[serde(default)]
    pub tasks: Vec<Tid>,
    /// The CPU.
    #[serde(default)]
    pub lockup: Option<Lockup>,
    /// The tasks, and what they wait for.
    #[serde(default)]
    pub hung: Option<serde_json::Value>,
    /// Stacks that others refer to.
    #[serde(default)]
    pub stacks: Vec<Vec<String>>,
}

/// A CPU that does not go on.
#[derive(Clone, Debug, Deserialize)]
pub struct Lockup {
    /// Its number.
    pub cpu: u32,
    /// `soft` or `hard`.
    pub kind: String,
    /// The task on it.
    pub task: Option<OnCpu>,
    /// What runs there.
    pub context: Where,
    /// The task is not to blame.
    #[serde(default)]
    pub interrupted: bool,
    /// Where it spins.
    #[serde(default)]
    pub profile: Vec<Spin>,
    /// Who could run.
    #[serde(default)]
    pub starved: Vec<Starved>,
    /// Locks that the task holds.
    #[serde(default)]
    pub holds: Vec<String>,
    /// Who waits behind these.
    #[serde(default)]
    pub blocked_tasks: u32,
    /// Who may share a spinlock.
    #[serde(default)]
    pub sharers: Vec<Sharer>,
}

/// A task on a CPU.
#[derive(Clone, Debug, Deserialize)]
pub struct OnCpu {
    /// Its thread.
    pub tid: Tid,
    /// Its comm.
    pub comm: String,
}

/// A stack of the profile.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Spin {
    /// Its index.
    pub stack: usize,
    /// Samples.
    pub count: u32,
}

/// A task that could run.
#[derive(Clone, Debug, Deserialize)]
pub struct Starved {
    /// Its thread.
    pub tid: Tid,
}

/// A task that may share a spinlock.
#[derive(Clone, Debug, Deserialize)]
pub struct Sharer {
    /// Its thread.
    pub tid: Tid,
    /// Its CPU.
    pub cpu: u32,
}

/// What runs on a CPU.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Where {
    /// The task itself.
    Task,
    /// A softirq.
    Softirq {
        /// Which.
        vector: Option<String>,
    },
    /// An interrupt.
    Interrupt {},
    /// Not known.
    Unknown,
}

impl Lockup {
    /// What is wrong with it.
    pub fn complaints(&self, truth: &LockedUp, stacks: &[Vec<String>]) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut check = |is_right: bool, what: String| {
            if !is_right {
                wrong.push(what);
            }
        };
        let kind = if truth.scenario.is_hard() {
            "hard"
        } else {
            "soft"
        };
        check(self.kind == kind, format!("it is {kind}"));
        check(self.cpu == truth.cpu, format!("it is CPU {}", truth.cpu));
        let task = self.task.as_ref();
        let is_task = task.is_some_and(|task| task.tid == truth.task.tid);
        // The timers may interrupt several in turn.
        let may_be_another = truth.context == Context::Timer;
        check(
            is_task || may_be_another,
            format!("the task is {:?}", truth.task),
        );
        let softirq = |vector: &str| Where::Softirq {
            vector: Some(vector.to_owned()),
        };
        let (context, interrupted) = match truth.context {
            Context::Task => (vec![Where::Task], false),
            // No sample can tell where no interrupt comes.
            Context::TaskIrqsOff => (vec![Where::Task, Where::Unknown], false),
            Context::NetRx => (vec![softirq("NET_RX")], true),
            Context::Timer => (vec![softirq("TIMER")], true),
        };
        check(
            context.contains(&self.context),
            format!("the context is {context:?}"),
        );
        // Softirqs that take long go on in a thread of their own, which runs them itself.
        let is_softirqd = task.is_some_and(|task| {
            task.comm.starts_with("ksoftirqd/") || task.comm.starts_with("ktimers/")
        });
        let is_interrupted = interrupted && !is_softirqd;
        check(
            self.interrupted == is_interrupted,
            format!("interrupted: {is_interrupted}"),
        );
        if !truth.scenario.is_hard() {
            let is_within = |frame: &String| {
                let function = frame.split('+').next().unwrap_or_default();
                let mut known = truth.spins_in.iter();
                known.any(|known| function == known || function.starts_with(&format!("{known}.")))
            };
            let of_spin = |spin: &Spin| {
                let stack = stacks.get(spin.stack);
                stack.is_some_and(|stack| stack.iter().any(is_within))
            };
            let all: u32 = self.profile.iter().map(|spin| spin.count).sum();
            let within = self.profile.iter().filter(|spin| of_spin(spin));
            let within: u32 = within.map(|spin| spin.count).sum();
            check(
                within > 0 && within * 2 > all,
                format!("{within} of {all} samples are in {:?}", truth.spins_in),
            );
            let ready: Vec<Tid> = truth.runnable.iter().map(|task| task.tid).collect();
            let is_starved = |tid: &Tid| self.starved.iter().any(|task| task.tid == *tid);
            let interrupted = task.map(|task| task.tid);
            let missing = ready
                .iter()
                .any(|tid| Some(*tid) != interrupted && !is_starved(tid));
            check(!missing, format!("{ready:?} could run"));
        }
        if let Some(lock) = truth.lock.as_ref().filter(|lock| !lock.waiters.is_empty()) {
            check(
                self.holds.len() == 1 && self.blocked_tasks as usize == lock.waiters.len(),
                format!("it holds {} with {} waiters", lock.name, lock.waiters.len()),
            );
        }
        if let Some(second) = &truth.second {
            let found = |sharer: &Sharer| sharer.tid == second.task.tid && sharer.cpu == second.cpu;
            check(
                self.sharers.iter().any(found),
                format!("{second:?} waits for the same spinlock"),
            );
        }
        wrong
    }
}
