//! The log's writer: a thread, for a disk may hang while lockwatch must not.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use jiff::Timestamp;

use crate::{
    commands::watch::say,
    export::hdr_log::{HdrLog, Header, Progress, RunLog},
    figures::Span,
    latency::Snapshot,
    report::Host,
    task::Nanos,
};

/// At the end of a run nobody waits longer than that for a disk.
const FAREWELL: Duration = Duration::from_secs(3);

/// All that was counted by some time.
struct Entry {
    counted: Snapshot,
    at: Timestamp,
    at_instant: Instant,
}

/// Writes a log beside the run.
#[derive(Debug)]
pub(super) struct LogWriter {
    entries: SyncSender<Entry>,
    /// Says when all is written.
    over: Receiver<()>,
    thread: JoinHandle<()>,
}

impl LogWriter {
    /// Starts it; what is counted from here on is written.
    pub(super) fn start(log: HdrLog) -> anyhow::Result<Self> {
        // One that waits is enough: what it does not have, the next one has.
        let (entries, received) = sync_channel(1);
        let (done, over) = sync_channel(1);
        let thread = thread::Builder::new()
            .name("hdr-log".to_owned())
            .spawn(move || {
                write(log, &received);
                // Nobody waits for it any more if this fails.
                let _ = done.send(());
            })
            .context("cannot start a thread")?;
        Ok(Self {
            entries,
            over,
            thread,
        })
    }

    /// What a log begins with.
    pub(super) fn header() -> Header {
        Header {
            hosts: vec![Host::this().hostname],
            start: Timestamp::now(),
        }
    }

    /// Has written what was counted until now. If the disk is still busy with the interval
    /// before, it is written with the next one.
    pub(super) fn write(&self, counted: Snapshot, at: Timestamp) {
        let entry = Entry {
            counted,
            at,
            at_instant: Instant::now(),
        };
        if let Err(TrySendError::Full(_)) = self.entries.try_send(entry) {
            tracing::debug!("the log's disk is busy");
        }
    }

    /// Writes the rest and ends; waits for the disk for a bounded time.
    pub(super) fn finish(self, counted: Snapshot, at: Timestamp) {
        let entry = Entry {
            counted,
            at,
            at_instant: Instant::now(),
        };
        let deadline = Instant::now() + FAREWELL;
        let mut waiting = Some(entry);
        while let Some(entry) = waiting.take() {
            match self.entries.try_send(entry) {
                Err(TrySendError::Full(entry)) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(10));
                    waiting = Some(entry);
                }
                _ => {}
            }
        }
        drop(self.entries);
        let left = deadline.saturating_duration_since(Instant::now());
        match self.over.recv_timeout(left) {
            Err(RecvTimeoutError::Timeout) => {
                say("the end of the log is not written: its disk does not answer");
            }
            // Over, or it has panicked, which has been said.
            _ => drop(self.thread.join()),
        }
    }
}

fn write(log: HdrLog, entries: &Receiver<Entry>) {
    let mut log = RunLog::new(log, Snapshot::default());
    let mut before = Instant::now();
    while let Ok(entry) = entries.recv() {
        let elapsed = entry.at_instant.saturating_duration_since(before);
        before = entry.at_instant;
        match log.update(&entry.counted, entry.at, elapsed) {
            Progress::Written | Progress::StillFailing => {}
            Progress::Recovered(after) => say(&format!(
                "the log can be written again after {}: nothing is missing in it",
                Span(Nanos::from_duration(after))
            )),
            Progress::Failed(error) => say(&format!(
                "cannot write to the log: {error}; counting goes on, and the next interval that \
                 can be written will have all"
            )),
        }
    }
}
