//! A recording that is being made: on a thread of its own, so that a file that takes
//! nothing does not stop the run.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};

use crate::{
    clock::now_ns,
    graph::Input,
    recording::{Header, Record, Writer},
    stream::Lost,
};

/// Waits and tasks in records that the file has not taken yet: some 50 MB. What comes
/// beyond that is missing from the recording, which says so.
const QUEUE_MAX: usize = 1 << 18;
/// How long the end of the run waits for the file to take the rest.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the thread is told.
enum Message {
    Record(Record),
    End { at_ns: u64, waits: Option<u64> },
}

/// A recording that is being made.
#[derive(Debug)]
pub(super) struct Recorder {
    path: PathBuf,
    messages: Sender<Message>,
    queued: Arc<AtomicUsize>,
    missing: u64,
    failed: bool,
    done: Receiver<io::Result<u64>>,
}

/// Creates the file of a recording, for its owner only.
///
/// # Errors
/// When it exists and is not to be replaced, or cannot be created; for `-`, which elsewhere
/// means standard output.
pub(super) fn create(path: &Path, force: bool) -> anyhow::Result<File> {
    ensure!(
        path != Path::new("-"),
        "a recording needs a file, not standard output: name one (./- for a file of that name)"
    );
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    if force {
        options.create(true).truncate(true);
    } else {
        options.create_new(true);
    }
    options.open(path).map_err(|error| {
        let path = path.display();
        let what = match error.kind() {
            io::ErrorKind::AlreadyExists => format!("create {path} (--force replaces a file)"),
            _ => format!("create {path}"),
        };
        anyhow::Error::new(error).context(what)
    })
}

impl Recorder {
    /// Begins a recording in this file.
    ///
    /// # Errors
    /// When its header cannot be written.
    pub(super) fn start(path: &Path, file: File, header: &Header) -> anyhow::Result<Self> {
        let mut writer =
            Writer::new(file, header).with_context(|| format!("write {}", path.display()))?;
        let (messages, told) = mpsc::channel();
        let (tell, done) = mpsc::channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let taken = Arc::clone(&queued);
        thread::Builder::new()
            .name("record".to_owned())
            .spawn(move || {
                let result = write_all(&mut writer, &told, &taken);
                // What is in its hands may still find room.
                let result = result.and_then(|(at_ns, waits)| {
                    writer.finish(at_ns, waits).and_then(|file| length(&file))
                });
                // The receiver is gone once it has lost its patience.
                let _ = tell.send(result);
            })
            .context("cannot start a thread")?;
        Ok(Self {
            path: path.to_owned(),
            messages,
            queued,
            missing: 0,
            failed: false,
            done,
        })
    }

    /// Records what the graph is about to take in.
    pub(super) fn input(&mut self, input: &Input) {
        let weight = weight(input);
        if self.queued.load(Ordering::Relaxed) + weight > QUEUE_MAX {
            self.missing += 1;
            return;
        }
        if self.missing > 0 {
            tracing::warn!(
                "{} records are missing: the file takes them too slowly",
                self.missing
            );
            let missing = std::mem::take(&mut self.missing);
            self.send(Message::Record(Record::Missing(missing)));
        }
        self.queued.fetch_add(weight, Ordering::Relaxed);
        self.send(Message::Record(Record::Input(input.clone())));
    }

    /// Records what the stream has lost so far.
    pub(super) fn lost(&mut self, lost: Lost) {
        self.send(Message::Record(Record::Lost(lost)));
    }

    fn send(&mut self, message: Message) {
        // The thread has ended: it could not write.
        self.failed |= self.messages.send(message).is_err();
    }

    /// True if nothing more can be recorded; [`Self::finish`] says why.
    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Ends the recording; returns the length of the file in bytes.
    ///
    /// # Errors
    /// When it is not whole: the disk is full, or takes nothing.
    pub(super) fn finish(mut self, waits: Option<u64>) -> anyhow::Result<u64> {
        if self.missing > 0 {
            let missing = std::mem::take(&mut self.missing);
            self.send(Message::Record(Record::Missing(missing)));
        }
        let at_ns = now_ns();
        self.send(Message::End { at_ns, waits });
        let path = self.path.display();
        let kept = "what was recorded before can be read from it";
        match self.done.recv_timeout(PATIENCE) {
            Ok(Ok(length)) => Ok(length),
            Ok(Err(error)) => {
                Err(error).with_context(|| format!("cannot write {path} any more ({kept})"))
            }
            Err(RecvTimeoutError::Timeout) => {
                bail!("writing {path} does not come back within {PATIENCE:?}: {kept}")
            }
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the thread that writes {path} ended early")
            }
        }
    }
}

/// Writes until the end is told.
fn write_all(
    writer: &mut Writer<File>,
    told: &Receiver<Message>,
    taken: &AtomicUsize,
) -> io::Result<(u64, Option<u64>)> {
    loop {
        match told.recv() {
            Ok(Message::Record(record)) => {
                writer.write(&record)?;
                if let Record::Input(input) = &record {
                    taken.fetch_sub(weight(input), Ordering::Relaxed);
                }
            }
            Ok(Message::End { at_ns, waits }) => return Ok((at_ns, waits)),
            // The run ended with an error of its own.
            Err(mpsc::RecvError) => return Ok((now_ns(), None)),
        }
    }
}

/// How many waits and tasks an input is about, itself counted as one.
fn weight(input: &Input) -> usize {
    1 + match input {
        Input::Scan(scan) => scan.waits.len(),
        Input::Survey(survey) => {
            let tasks = survey.locks.iter().map(|lock| lock.waiters.len());
            tasks.sum::<usize>() * 4
        }
        Input::Event(_) | Input::Refuted(_) | Input::Clock(_) => 0,
    }
}

fn length(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(path: &Path) -> String {
        format!("{:#}", create(path, false).unwrap_err())
    }

    #[test]
    fn only_a_file_that_exists_can_be_replaced_by_force() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stall.lwr");
        create(&path, false).unwrap();
        let there = refusal(&path);
        assert!(there.contains("--force replaces a file"), "{there}");
        create(&path, true).unwrap();
        let missing = refusal(&folder.path().join("none/stall.lwr"));
        assert!(!missing.contains("--force"), "{missing}");
    }

    #[test]
    fn standard_output_is_no_file_for_a_recording() {
        let refused = refusal(Path::new("-"));
        assert!(refused.starts_with("a recording needs a file"), "{refused}");
    }
}
