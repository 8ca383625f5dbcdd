//! The stall lab: real, bounded, self-clearing kernel-lock stalls with known truth.
//!
//! It makes a stall on the running kernel, prints what it has made as one line
//! of JSON, holds it, clears it, and prints that it has. Exit codes: 0 the
//! stall stood and everything ended by itself, 2 it did not, 3 this kernel
//! cannot have it.

mod beside;
mod crowd;
mod device;
mod ext2;
mod freeze;
mod fuse;
mod inherit;
mod iterator;
mod mapping;
mod nfs;
mod scenario;
mod signals;
mod stage;
mod target;
mod task;
mod watchdog;
mod worker;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use lockwatch_tests::{
    clock, lab,
    truth::{Cleared, Event, NOT_HERE, Ready, Scenario},
};

use crate::{
    scenario::{Cast, NotHere, Standing},
    stage::Stage,
    task::Task,
};

/// More threads than this exhaust pids on a small machine, whose limit is 32,768.
const MOST_WAITERS: i64 = 30_000;

/// Make a real kernel-lock stall, say exactly what it is, and clear it
///
/// The stall stays among the lab's own tasks, except that super-read-held and
/// super-read-held-sync also stop whoever calls sync; the latter calls it
/// itself. It ends after --hold, on SIGINT, SIGTERM or SIGHUP,
/// and also when the lab is killed. Needs root and FUSE.
#[derive(Parser)]
#[command(name = "stall-lab", version)]
struct Options {
    /// Which stall to make
    scenario: Scenario,

    /// Tasks that wait for the lock, queued one after another; those of incident come all
    /// at once. A daemon that waits is one more [default: 3; incident: 1469]
    #[arg(long, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=MOST_WAITERS))]
    waiters: Option<u32>,

    /// How long the stall stands, such as 500ms or 20s [default: 20s, at most
    /// 60s, incident: 10min; granted: 5s at most, times $LOCKWATCH_SLOWNESS]
    #[arg(long, value_name = "TIME", value_parser = parse_hold)]
    hold: Option<Duration>,

    /// End the stall when standard input ends, too
    #[arg(long)]
    until_eof: bool,

    /// Leave out the tasks that only look guilty
    #[arg(long)]
    no_decoys: bool,

    /// Have another task hold the lock this long, and let go, before the stall is made
    /// (mmap-read-held and inode-write-held; at most 5s)
    #[arg(long, value_name = "TIME", value_parser = parse_hold)]
    before: Option<Duration>,
}

/// The longest --before.
const MOST_BEFORE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(error) => {
            eprintln!("stall-lab: {error:#}");
            ExitCode::from(if error.is::<NotHere>() { NOT_HERE } else { 2 })
        }
    }
}

fn run(options: &Options) -> Result<bool> {
    let hold = hold_time(options.scenario, options.hold)?;
    let cast = Cast {
        waiters: options
            .waiters
            .unwrap_or_else(|| scenario::waiters(options.scenario)),
        decoys: !options.no_decoys,
        before: before(options)?,
    };
    let scenery = scenario::scenery(options.scenario, cast);
    let mut stage = Stage::set(scenery, hold, cast.waiters)?;
    let mut stood = None;
    let outcome = perform(options, cast, &mut stage, &mut stood);
    let held_ns = stood.map_or(0, |since: Instant| since.elapsed().as_nanos() as u64);
    let clean = stage.clear();
    outcome?;
    lab::print(&Event::Cleared(Cleared { held_ns, clean }))?;
    Ok(clean)
}

fn before(options: &Options) -> Result<Option<Duration>> {
    let has_one = matches!(
        options.scenario,
        Scenario::MmapReadHeld | Scenario::InodeWriteHeld
    );
    match options.before {
        Some(_) if !has_one => bail!("nobody holds that lock before: leave out --before"),
        Some(time) if time > MOST_BEFORE => {
            bail!("the lock may be held for {MOST_BEFORE:?} before, not for {time:?}")
        }
        before => Ok(before),
    }
}

/// Makes the stall and holds it; the caller clears it, whatever happens here.
fn perform(
    options: &Options,
    cast: Cast,
    stage: &mut Stage,
    stood: &mut Option<Instant>,
) -> Result<()> {
    if let Some(hanging) = scenario::hang(options.scenario, stage, cast) {
        let hanging =
            hanging.with_context(|| format!("cannot make the stall {:?}", options.scenario))?;
        stage.rearm()?;
        let ends = *stood.insert(Instant::now()) + stage.hold;
        let ends_at_ns = clock::monotonic_ns() + stage.hold.as_nanos() as u64;
        let hung = hanging.told(options.scenario, ends_at_ns)?;
        lab::print(&Event::Hung(Box::new(hung)))?;
        return stage.hold_until(ends, options.until_eof);
    }
    let standing = scenario::raise(options.scenario, stage, cast)
        .with_context(|| format!("cannot make the stall {:?}", options.scenario))?;
    stage.rearm()?;
    let since = *stood.insert(Instant::now());
    let ends = standing
        .ends
        .map_or(since + stage.hold, |ends| ends.min(since + stage.hold));
    lab::print(&ready(options.scenario, stage, standing, ends))?;
    stage.hold_until(ends, options.until_eof)
}

fn ready(scenario: Scenario, stage: &mut Stage, standing: Standing, ends: Instant) -> Event {
    let left = ends.saturating_duration_since(Instant::now());
    Event::Ready(Box::new(Ready {
        scenario,
        pid: Task::current().tgid,
        mount: stage.mount.display().to_string(),
        lock: standing.lock,
        state: standing.state,
        reader_count: standing.reader_count,
        holders: standing.holders,
        waiters: std::mem::take(&mut stage.waiters),
        decoys: std::mem::take(&mut stage.decoys),
        owner_hidden: stage.owner_hidden,
        next: standing.next,
        device: stage.device.take(),
        cycle: stage.cycle.take(),
        crowd: std::mem::take(&mut stage.crowd),
        before: stage.before.take(),
        ends_at_ns: clock::monotonic_ns() + left.as_nanos() as u64,
    }))
}

/// `500ms`, `20s` or bare seconds.
fn parse_hold(text: &str) -> Result<Duration> {
    lab::parse_hold(text, "stall", "20s")
}

fn hold_time(scenario: Scenario, asked: Option<Duration>) -> Result<Duration> {
    let (default, most) = scenario::hold_times(scenario);
    let hold = asked.unwrap_or(default);
    if hold > most {
        bail!(
            "this stall may stand for {most:?} at most, not for {hold:?}: ask for a shorter --hold"
        );
    }
    Ok(hold)
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
    fn holds_are_bounded() {
        assert_eq!(parse_hold("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(parse_hold("20s").unwrap(), Duration::from_secs(20));
        assert_eq!(parse_hold("7").unwrap(), Duration::from_secs(7));
        for bad in ["0s", "", "s", "-1s", "99999999999999999999s"] {
            assert!(parse_hold(bad).is_err(), "{bad}");
        }
        let minute = Some(Duration::from_secs(60));
        assert!(hold_time(Scenario::MmapReadHeld, minute).is_ok());
        assert!(hold_time(Scenario::Granted, minute).is_err());
        assert!(hold_time(Scenario::InodeWriteHeld, Some(Duration::MAX)).is_err());
    }
}
