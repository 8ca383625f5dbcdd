//! The lockup lab: a CPU that is kept busy in the kernel, bounded, with known truth.
//!
//! It locks a CPU up on the running kernel, prints what it has made as one line of JSON,
//! and prints when it is over. What spins is a BPF program, which ends by itself. Exit
//! codes: 0 the lockup stood and everything ended by itself, 2 it did not, 3 this kernel
//! cannot have it.

mod actor;
mod cast;
#[path = "../signals.rs"]
mod signals;
mod spin;

use std::{
    fs,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use lockwatch_tests::{
    clock, lab,
    truth::{
        Cleared, Context, LockedUp, LockupEvent, LockupScenario, NOT_HERE, Second, Someone, Tgid,
        Tid,
    },
};
use nix::{
    sched::{CpuSet, sched_getaffinity},
    unistd::Pid,
};

use crate::{
    actor::{Actor, bind},
    cast::Cast,
    signals::Signals,
    spin::{Met, Place, Spin},
};

/// Set where the machine is ours alone, and may lose a CPU for longer.
const OWN_MACHINE: &str = "LOCKWATCH_OWN_MACHINE";
/// Longest lockup of a machine that others use, too.
const MOST: Duration = Duration::from_secs(7);
const MOST_OF_OUR_OWN: Duration = Duration::from_secs(60);
/// Everything stands prepared for so long at most: the actors live for both.
const MOST_PREPARED: Duration = Duration::from_secs(60);
/// Of each callback of a timer.
const CALLBACK: Duration = Duration::from_millis(250);

/// How long a step may take that takes a moment.
const STEP: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(1);

const SPINNER: &str = "lab-spinner";
/// Tasks that could run on the CPU.
const BUSY: usize = 2;

/// Lock a CPU up, say exactly how, and let it go
///
/// It ends after --hold, on SIGINT, SIGTERM or SIGHUP, and also when the lab is killed: what
/// spins looks at the clock. Everything that spins or could run there are the lab's own
/// processes, but whatever else is bound to that CPU waits, too. Needs root.
#[derive(Parser)]
#[command(name = "lockup-lab", version)]
struct Options {
    /// Which lockup to make
    scenario: LockupScenario,

    /// The CPU [default: the last one]
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,

    /// How long, such as 500ms or 4s [at most 7s; 60s with $LOCKWATCH_OWN_MACHINE]
    #[arg(long, value_name = "TIME", value_parser = parse_hold, default_value = "4s")]
    hold: Duration,

    /// Tasks that wait for the lock that is held there, if there is one that they can wait for
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=1000))]
    waiters: u32,

    /// Prepare everything, say so, and begin when standard input ends, within 60 s
    ///
    /// A machine that has much else to do needs a minute to prepare it.
    #[arg(long, conflicts_with = "until_eof")]
    on_eof: bool,

    /// End it when standard input ends, too
    #[arg(long)]
    until_eof: bool,
}

/// This kernel or machine cannot have it.
#[derive(Debug)]
struct NotHere(String);

impl std::fmt::Display for NotHere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot be made here: {}", self.0)
    }
}

impl std::error::Error for NotHere {}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(error) => {
            eprintln!("lockup-lab: {error:#}");
            ExitCode::from(if error.is::<NotHere>() { NOT_HERE } else { 2 })
        }
    }
}

/// The CPU that is locked up, and those where everybody else is.
struct Cpus {
    locked: usize,
    others: Vec<usize>,
}

fn run(options: &Options) -> Result<bool> {
    check_bounds(options)?;
    let cpus = cpus(options.cpu)?;
    let signals = Signals::catch()?;
    bind(&cpus.others)?;
    let mut cast = Cast::start(options.scenario, &cpus)?;
    let spin = Spin::attach(&place(options.scenario, &cpus, &cast))?;
    if options.on_eof {
        lab::print(&LockupEvent::Prepared)?;
        wait_for_eof(&signals)?;
    }

    announce("a CPU is locked up on purpose");
    let outcome = perform(options, &cpus, &mut cast, &spin, &signals);
    spin.disarm();
    let mut clean = wait_until(|| !spin.spins());
    let over_ns = clock::monotonic_ns();
    announce("the lockup is over");
    clean &= cast.end();
    let begun_ns = outcome?;
    let held_ns = over_ns.saturating_sub(begun_ns);
    lab::print(&LockupEvent::Cleared(Cleared { held_ns, clean }))?;
    Ok(clean)
}

/// An error: it has not ended in time, or a signal came.
fn wait_for_eof(signals: &Signals) -> Result<()> {
    let deadline = Instant::now() + MOST_PREPARED;
    signals.sleep_until(deadline, true)?;
    if signals.arrived() || Instant::now() >= deadline {
        bail!("nothing was made: standard input has not ended");
    }
    Ok(())
}

/// Makes the lockup and holds it; gives the time of its beginning.
fn perform(
    options: &Options,
    cpus: &Cpus,
    cast: &mut Cast,
    spin: &Spin,
    signals: &Signals,
) -> Result<u64> {
    let scenario = options.scenario;
    let until = Instant::now() + options.hold;
    let ends_at_ns = clock::monotonic_ns() + options.hold.as_nanos() as u64;
    spin.arm(ends_at_ns);
    let deadline = Instant::now() + STEP.min(options.hold / 2);
    cast.spinner.go()?;
    let met = loop {
        if let Some(met) = spin.met() {
            break met;
        }
        if Instant::now() >= deadline || signals.arrived() {
            bail!(
                "cannot make the lockup {}: nothing has spun",
                scenario.name()
            );
        }
        thread::sleep(TICK);
        if matches!(scenario, LockupScenario::SoftLockupSoftirq) {
            cast.spinner.go()?;
        }
    };
    let lock = match scenario {
        LockupScenario::SoftLockupTask => Some(cast.queue(options.waiters)?),
        LockupScenario::SoftLockupSoftirq | LockupScenario::SoftLockupTimers => None,
        LockupScenario::HardLockup => Some(cast.siglock()),
    };
    if let Some((second, _)) = &mut cast.second {
        second.go()?;
    }
    let begun_ns = met.began_ns;
    lab::print(&LockupEvent::Ready(Box::new(LockedUp {
        scenario,
        pid: Tgid(nix::unistd::getpid().as_raw()),
        cpu: cpus.locked as u32,
        context: context(scenario),
        task: someone(met),
        lock,
        runnable: cast.busy.iter().map(Actor::name).collect(),
        second: cast.second.as_ref().map(|(second, cpu)| Second {
            task: second.name(),
            cpu: *cpu as u32,
        }),
        spins_in: spins_in(scenario),
        begun_ns,
        ends_at_ns,
    })))?;
    signals.sleep_until(until, options.until_eof)?;
    if matches!(scenario, LockupScenario::SoftLockupTimers)
        && Instant::now() >= until
        && spin.hits() < options.hold.as_nanos() as u64 / CALLBACK.as_nanos() as u64 / 2
    {
        bail!("only {} timers have expired there", spin.hits());
    }
    Ok(begun_ns)
}

/// Where its program spins.
fn place(scenario: LockupScenario, cpus: &Cpus, cast: &Cast) -> Place {
    let tid = Some(cast.spinner.pid.as_raw());
    let cpu = cpus.locked as u32;
    let (tracepoint, tid, at_a_stretch) = match scenario {
        LockupScenario::SoftLockupTask => (c"vm_unmapped_area", tid, MOST_OF_OUR_OWN),
        LockupScenario::SoftLockupSoftirq => (c"netif_receive_skb", tid, MOST_OF_OUR_OWN),
        LockupScenario::SoftLockupTimers => (c"timer_expire_entry", None, CALLBACK),
        LockupScenario::HardLockup => (c"signal_generate", tid, MOST_OF_OUR_OWN),
    };
    Place {
        tracepoint,
        cpu,
        tid,
        at_a_stretch,
    }
}

fn context(scenario: LockupScenario) -> Context {
    match scenario {
        LockupScenario::SoftLockupTask => Context::Task,
        LockupScenario::SoftLockupSoftirq => Context::NetRx,
        LockupScenario::SoftLockupTimers => Context::Timer,
        LockupScenario::HardLockup => Context::TaskIrqsOff,
    }
}

/// Functions around those tracepoints that compilers do not put into their callers.
fn spins_in(scenario: LockupScenario) -> Vec<String> {
    let functions: &[&str] = match scenario {
        LockupScenario::SoftLockupTask => &["vm_mmap_pgoff", "do_mmap"],
        LockupScenario::SoftLockupSoftirq => &["net_rx_action"],
        LockupScenario::SoftLockupTimers => &["call_timer_fn"],
        LockupScenario::HardLockup => &["do_send_sig_info"],
    };
    functions.iter().map(|name| (*name).to_owned()).collect()
}

fn someone(met: Met) -> Someone {
    Someone {
        tid: Tid(met.tid),
        tgid: Tgid(met.tgid),
        comm: met.comm,
    }
}

/// False: not within a time that is enough for anything.
fn wait_until(condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + STEP;
    while !condition() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(TICK);
    }
    true
}

fn is_our_own_machine() -> bool {
    std::env::var(OWN_MACHINE).is_ok_and(|value| value == "1")
}

fn check_bounds(options: &Options) -> Result<()> {
    let is_hard = options.scenario.is_hard();
    if is_hard && !is_our_own_machine() {
        let reason = format!(
            "a CPU without interrupts can bring a machine down: set {OWN_MACHINE}=1 in a \
             virtual machine that has no other use"
        );
        return Err(NotHere(reason).into());
    }
    if is_hard && fs::read_to_string("/sys/kernel/realtime").is_ok_and(|text| text.trim() == "1") {
        let reason = "PREEMPT_RT sends signals with interrupts on".to_owned();
        return Err(NotHere(reason).into());
    }
    let most = if is_our_own_machine() {
        MOST_OF_OUR_OWN
    } else {
        MOST
    };
    if options.hold > most {
        bail!(
            "a CPU may be locked up for {most:?} at most here, not for {:?}: ask for a shorter --hold",
            options.hold
        );
    }
    Ok(())
}

fn cpus(asked: Option<usize>) -> Result<Cpus> {
    let allowed =
        sched_getaffinity(Pid::from_raw(0)).context("cannot read the CPUs of this process")?;
    let mut others: Vec<usize> = (0..CpuSet::count())
        .filter(|cpu| allowed.is_set(*cpu).unwrap_or(false))
        .collect();
    let locked = match asked {
        Some(cpu) if others.contains(&cpu) => cpu,
        Some(cpu) => bail!("there is no CPU {cpu} among {others:?}"),
        None => *others.last().context("this process has no CPU")?,
    };
    others.retain(|cpu| *cpu != locked);
    if others.is_empty() {
        return Err(NotHere("there must be another CPU to look from".to_owned()).into());
    }
    Ok(Cpus { locked, others })
}

/// Says so in the kernel's log of our own machine: whoever watches that log for trouble
/// must not take this for it.
fn announce(what: &str) {
    if is_our_own_machine() {
        let said = fs::write("/dev/kmsg", format!("lockup-lab: {what}\n"));
        if let Err(error) = said {
            eprintln!("lockup-lab: cannot write to /dev/kmsg: {error}");
        }
    }
}

/// `500ms`, `4s` or bare seconds.
fn parse_hold(text: &str) -> Result<Duration> {
    lab::parse_hold(text, "lockup", "4s")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn a_machine_that_others_use_is_spared() {
        let options = |scenario, hold| Options {
            scenario,
            cpu: None,
            hold: Duration::from_secs(hold),
            waiters: 0,
            on_eof: false,
            until_eof: false,
        };
        if is_our_own_machine() {
            return;
        }
        assert!(check_bounds(&options(LockupScenario::SoftLockupTask, 7)).is_ok());
        assert!(check_bounds(&options(LockupScenario::SoftLockupTask, 8)).is_err());
        let hard = check_bounds(&options(LockupScenario::HardLockup, 1)).unwrap_err();
        assert!(hard.is::<NotHere>());
    }
}
