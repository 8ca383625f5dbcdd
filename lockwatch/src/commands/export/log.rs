//! The log of a run, in a thread of its own: a disk may hang while lockwatch must not.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use jiff::Timestamp;

use crate::{
    cli::ExportArgs,
    commands::watch::say,
    export::hdr_log::{Background, HdrLog, Header, Progress, Rotation, RunLog},
    figures::Span,
    latency::Snapshot,
    report::Host,
    task::Nanos,
};

/// At the end of a run nobody waits longer than that for a disk.
const FAREWELL: Duration = Duration::from_secs(3);

/// Writes what is counted from its start on.
#[derive(Debug)]
pub(super) struct LogSink {
    log: Background,
    before: Instant,
}

impl LogSink {
    /// Opens the log that is asked for, if one is.
    ///
    /// # Errors
    /// When it cannot be opened or written to.
    pub(super) fn open(args: &ExportArgs) -> anyhow::Result<Option<Self>> {
        let Some(path) = &args.hdr_log else {
            return Ok(None);
        };
        let header = Header {
            hosts: vec![Host::this().hostname],
            start: Timestamp::now(),
        };
        let rotation = Rotation {
            max_bytes: args.rotate_at << 20,
            keep: args.keep,
        };
        let log = RunLog::new(HdrLog::open(path, &header, rotation)?, Snapshot::default());
        Ok(Some(Self {
            log: Background::start(log).context("cannot start a thread")?,
            before: Instant::now(),
        }))
    }

    /// Has written what was counted until `at`.
    pub(super) fn write(&mut self, counted: Snapshot, at: Timestamp) {
        let elapsed = self.elapsed();
        for progress in self.log.update(counted, at, elapsed) {
            say_of(&progress);
        }
    }

    /// Writes the rest and ends.
    pub(super) fn finish(mut self, counted: Snapshot, at: Timestamp) {
        let elapsed = self.elapsed();
        let (said, is_written) = self.log.finish(counted, at, elapsed, FAREWELL);
        said.iter().for_each(say_of);
        if !is_written {
            say("the end of the log could not be written");
        }
    }

    fn elapsed(&mut self) -> Duration {
        let now = Instant::now();
        now.saturating_duration_since(std::mem::replace(&mut self.before, now))
    }
}

fn say_of(progress: &Progress) {
    match progress {
        Progress::Written | Progress::StillFailing => {}
        Progress::Recovered(after) => say(&format!(
            "the log can be written again, after {}: nothing is missing in it",
            Span(Nanos::from_duration(*after))
        )),
        Progress::Failed(error) => say(&format!(
            "cannot write to the log: {error}; counting goes on, and the next interval that can \
             be written will have all"
        )),
    }
}
