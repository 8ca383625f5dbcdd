//! Writing a log where nobody waits for the disk.

use std::{
    io,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel},
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::{Progress, RunLog};
use crate::latency::Snapshot;

/// All that was counted by some time.
#[derive(Debug)]
struct Update {
    now: Snapshot,
    at: Timestamp,
    elapsed: Duration,
}

/// A [`RunLog`] with a thread of its own: a disk that hangs does not make lockwatch hang. What
/// comes while the thread is still at the interval before is written with the next one.
#[derive(Debug)]
pub struct Background {
    updates: SyncSender<Update>,
    progress: Receiver<Progress>,
    /// Since the last update that the thread took.
    untaken: Duration,
}

impl Background {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there can be none.
    pub fn start(mut log: RunLog) -> io::Result<Self> {
        Self::start_with(move |update| log.update(&update.now, update.at, update.elapsed))
    }

    fn start_with(mut write: impl FnMut(&Update) -> Progress + Send + 'static) -> io::Result<Self> {
        // One is written, one waits.
        let (updates, taken) = sync_channel::<Update>(1);
        let (said, progress) = channel();
        thread::Builder::new()
            .name("hdr-log".to_owned())
            .spawn(move || {
                for update in taken {
                    // Nobody listens any more: there is nothing more to write, either.
                    if said.send(write(&update)).is_err() {
                        break;
                    }
                }
            })?;
        Ok(Self {
            updates,
            progress,
            untaken: Duration::ZERO,
        })
    }

    /// As [`RunLog::update`], but does not wait: what became of this and earlier updates is
    /// told by the next calls.
    pub fn update(
        &mut self,
        now: Snapshot,
        at: Timestamp,
        elapsed: Duration,
    ) -> impl Iterator<Item = Progress> {
        self.untaken += elapsed;
        let elapsed = self.untaken;
        if self.updates.try_send(Update { now, at, elapsed }).is_ok() {
            self.untaken = Duration::ZERO;
        }
        self.progress.try_iter()
    }

    /// Writes the last interval and ends the thread, but waits no longer than `limit`. What is
    /// told is all that was not told yet, and whether everything was written in time.
    pub fn finish(
        self,
        now: Snapshot,
        at: Timestamp,
        elapsed: Duration,
        limit: Duration,
    ) -> (Vec<Progress>, bool) {
        const PAUSE: Duration = Duration::from_millis(5);
        let deadline = Instant::now() + limit;
        let mut all = Vec::new();
        let mut update = Update {
            now,
            at,
            elapsed: self.untaken + elapsed,
        };
        loop {
            match self.updates.try_send(update) {
                Ok(()) => break,
                Err(TrySendError::Disconnected(_)) => return (all, false),
                Err(TrySendError::Full(_)) if Instant::now() >= deadline => {
                    all.extend(self.progress.try_iter());
                    return (all, false);
                }
                Err(TrySendError::Full(back)) => update = back,
            }
            thread::sleep(PAUSE);
        }
        drop(self.updates);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.progress.recv_timeout(left) {
                Ok(progress) => all.push(progress),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => return (all, false),
            }
        }
        let is_written = !matches!(
            all.last(),
            Some(Progress::Failed(_) | Progress::StillFailing)
        );
        (all, is_written)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn who_cannot_write_is_not_waited_for() {
        let (go_on, may_go_on) = channel::<()>();
        let written = Arc::new(Mutex::new(Vec::new()));
        let lengths = Arc::clone(&written);
        let mut log = Background::start_with(move |update| {
            // A disk that takes nothing until it is told to.
            may_go_on.recv().unwrap();
            lengths.lock().unwrap().push(update.elapsed);
            Progress::Written
        })
        .unwrap();
        let at = Timestamp::UNIX_EPOCH;
        for _ in 0..20 {
            assert_eq!(log.update(Snapshot::default(), at, SECOND).count(), 0);
        }
        for _ in 0..3 {
            go_on.send(()).unwrap();
        }
        let (said, is_written) = log.finish(Snapshot::default(), at, SECOND, LONG);
        assert!(is_written);
        let lengths = written.lock().unwrap();
        // Three, or two where the thread began late.
        assert_eq!(said.len(), lengths.len());
        assert_eq!(lengths.iter().sum::<Duration>(), 21 * SECOND);
    }

    #[test]
    fn the_end_does_not_wait_for_ever() {
        let (go_on, may_go_on) = channel::<()>();
        let log = Background::start_with(move |_| {
            let _ = may_go_on.recv();
            Progress::Written
        })
        .unwrap();
        let limit = Duration::from_millis(50);
        let (said, is_written) =
            log.finish(Snapshot::default(), Timestamp::UNIX_EPOCH, SECOND, limit);
        assert!(said.is_empty() && !is_written);
        drop(go_on);
    }
}
