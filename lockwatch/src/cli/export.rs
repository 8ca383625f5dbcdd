//! Options of `export`, and what is counted.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, builder::NonEmptyStringValueParser};

use super::{HangArgs, LockupArgs, SourceArgs, duration, tgid};
use crate::{
    export::{CALLERS_DEFAULT, otlp::Header},
    kernel::cgroup,
    stream::counts::{CountOptions, CountsWanted},
    task::{Nanos, Tgid},
};

/// Options of `export`.
#[derive(Clone, Debug, Args)]
pub struct ExportArgs {
    /// Serve OpenMetrics for Prometheus at this address: http://ADDRESS/metrics
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Append HdrHistogram interval logs (V2) to FILE
    #[arg(long, value_name = "FILE")]
    pub hdr_log: Option<PathBuf>,
    /// Push metrics to an OpenTelemetry receiver at URL (OTLP over HTTP); without a URL, where
    /// OTEL_EXPORTER_OTLP_ENDPOINT says, else http://localhost:4318
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = "")]
    pub otlp: Option<String>,
    /// Send this header with each push, for an API key; may be repeated
    #[arg(long, value_name = "NAME=VALUE", requires = "otlp")]
    pub otlp_header: Vec<Header>,
    /// Tell this many callers apart in metrics, those that waited longest; 0: none
    ///
    /// The others are `other`. In the course of a run up to four times as many can be told
    /// apart, as those that wait longest change: a series that was begun is never taken back.
    #[arg(long, value_name = "N", default_value_t = CALLERS_DEFAULT, value_parser = callers)]
    pub top_callers: usize,
    /// How much time each interval of the log, and each push, has: a kill loses at most this
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = interval)]
    pub interval: Duration,
    /// Begin a new log when it is larger than this many MiB; the old one becomes FILE.1
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    pub rotate_at: u64,
    /// Keep this many old logs
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub keep: u32,
    /// A wait of this length or longer is a stall
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    pub threshold: Duration,
    /// Stop after this long; without it, when interrupted
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub duration: Option<Duration>,
    /// From when on tasks hang.
    #[command(flatten)]
    pub hang: HangArgs,
    /// From when on CPUs hang.
    #[command(flatten)]
    pub lockup: LockupArgs,
    /// What is counted.
    #[command(flatten)]
    pub counts: CountArgs,
    /// What is attached.
    #[command(flatten)]
    pub sources: SourceArgs,
}

/// What is counted.
#[derive(Clone, Debug, Args)]
pub struct CountArgs {
    /// Count only waits and holds of this process or thread; may be repeated
    #[arg(long, value_name = "PID", value_parser = tgid)]
    pub pid: Vec<Tgid>,
    /// Count only those of tasks with this name; may be repeated
    #[arg(long, value_name = "COMM", value_parser = NonEmptyStringValueParser::new())]
    pub comm: Vec<String>,
    /// Count only those of tasks in this control group (v2), a folder such as
    /// /sys/fs/cgroup/system.slice/x.service, not in those below it; may be repeated
    #[arg(long, value_name = "FOLDER", value_parser = cgroup::id_of)]
    pub cgroup: Vec<u64>,
    /// Count only locks of this class (mmap_lock, i_rwsem, s_umount, …); may be repeated
    #[arg(long, value_name = "CLASS", value_parser = NonEmptyStringValueParser::new())]
    pub class: Vec<String>,
    /// Count only what is asked for in this function of the kernel; may be repeated
    #[arg(long, value_name = "FUNCTION", value_parser = NonEmptyStringValueParser::new())]
    pub caller: Vec<String>,
    /// Tell callers apart from this length on; 0s: always
    ///
    /// Who asked for a lock is read off the stack, which costs some µs: little beside a long
    /// wait, much beside a short one. What is shorter has the caller "short". With --caller, and
    /// with a --class that only callers tell (pipe, vma_lock, unknown), it is 0s.
    #[arg(long, value_name = "DURATION", default_value = "10us", value_parser = duration)]
    pub callers_from: Duration,
    /// Room for this many buckets of histograms in the kernel, at about 100 bytes each
    ///
    /// Each class, mode and caller is a series with some 60 buckets in use. What finds no room
    /// is counted as lost.
    #[arg(long, value_name = "N", default_value_t = lockwatch_ebpf::counts::COUNTS_DEFAULT,
        value_parser = clap::value_parser!(u32).range(64..=16_777_216))]
    pub buckets: u32,
}

impl CountArgs {
    /// As the stream wants it.
    pub fn options(&self) -> CountOptions {
        // Without looking at their stacks, callers of the short ones are not known.
        let callers_from = if self.caller.is_empty() {
            self.callers_from
        } else {
            Duration::ZERO
        };
        CountOptions {
            entries: self.buckets,
            callers_from: Nanos::from_duration(callers_from),
            wanted: CountsWanted {
                pids: self.pid.clone(),
                comms: self.comm.clone(),
                cgroups: self.cgroup.clone(),
                classes: self.class.clone(),
                callers: self.caller.clone(),
            },
        }
    }
}

fn callers(text: &str) -> Result<usize, String> {
    let callers: usize = text.parse().map_err(|_| "a number from 0 to 1000")?;
    if callers > 1_000 {
        return Err("at most 1000: each is a series for every class and mode".to_owned());
    }
    Ok(callers)
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    if interval < Duration::from_millis(100) {
        return Err("an interval is 100ms or longer".to_owned());
    }
    Ok(interval)
}
