//! What surveys cost that are taken again and again with everything loaded, as `watch` takes
//! them: one line of JSON for each survey, after one for the loading.

use std::{
    num::NonZeroU32,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Parser;
use lockwatch::survey::{SurveyOptions, Surveyor};
use nix::sys::resource::{UsageWho, getrusage};
use serde::Serialize;

/// Take surveys with everything loaded, and say what each has cost
#[derive(Parser)]
#[command(name = "survey-cost", version)]
struct Options {
    /// How many
    #[arg(long, value_name = "N", default_value = "9")]
    surveys: NonZeroU32,
}

/// What something has cost.
#[derive(Debug, Serialize)]
struct Cost {
    /// `load` or `survey`
    what: &'static str,
    /// Tasks of the host.
    tasks: u32,
    /// Tasks that wait for locks.
    waiters: usize,
    /// Besides the pauses.
    wall_ns: u64,
    /// On CPUs, of user space and the kernel together.
    cpu_ns: u64,
    /// The most that this process has had in memory so far.
    peak_rss_bytes: u64,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("survey-cost: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let began = Meter::start()?;
    let mut surveyor = Surveyor::open().context("no survey can be taken on this host")?;
    print(&began.stop("load", Duration::ZERO)?)?;
    for _ in 0..options.surveys.get() {
        let began = Meter::start()?;
        let survey = surveyor.survey(&SurveyOptions::default(), &[])?;
        let paused = Duration::from_nanos(survey.paused.0);
        print(&Cost {
            tasks: survey.task_count,
            waiters: survey.locks.iter().map(|lock| lock.waiters.len()).sum(),
            ..began.stop("survey", paused)?
        })?;
    }
    Ok(())
}

fn print(cost: &Cost) -> Result<()> {
    println!("{}", serde_json::to_string(cost)?);
    Ok(())
}

/// Measures from one moment to another.
struct Meter {
    began: Instant,
    cpu: Duration,
}

impl Meter {
    fn start() -> Result<Self> {
        Ok(Self {
            began: Instant::now(),
            cpu: usage()?.0,
        })
    }

    fn stop(self, what: &'static str, paused: Duration) -> Result<Cost> {
        let (cpu, peak_rss_bytes) = usage()?;
        Ok(Cost {
            what,
            tasks: 0,
            waiters: 0,
            wall_ns: self.began.elapsed().saturating_sub(paused).as_nanos() as u64,
            cpu_ns: cpu.saturating_sub(self.cpu).as_nanos() as u64,
            peak_rss_bytes,
        })
    }
}

/// CPU time and peak memory of this process.
fn usage() -> Result<(Duration, u64)> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = |seconds: i64, micros: i64| 1_000_000 * seconds as u64 + micros as u64;
    let (user, system) = (usage.user_time(), usage.system_time());
    let cpu = micros(user.tv_sec(), user.tv_usec()) + micros(system.tv_sec(), system.tv_usec());
    Ok((Duration::from_micros(cpu), usage.max_rss() as u64 * 1024))
}
