//! Writing a log.

use std::{
    io::{self, Write},
    path::Path,
    time::{Duration, SystemTime},
};

use hdrhistogram::{
    Histogram,
    serialization::{
        V2DeflateSerializer,
        interval_log::{IntervalLogWriterBuilder, IntervalLogWriterError, Tag},
    },
};
use jiff::Timestamp;

use super::{
    MAX_VALUE_DIVISOR,
    file::{LogFile, OpenError, Rotation},
    mark::{Interval, Mark},
    tag,
};
use crate::latency::{CountsLost, Snapshot};

/// The version of the format: HdrHistogram 2.1.12 writes the same.
const FORMAT: &str = "[Histogram log format version 1.3]";
/// The columns of the lines that follow.
const LEGEND: &[u8] =
    b"\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n";

/// What stands at the beginning of each file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Where it was counted; a merged log has several.
    pub hosts: Vec<String>,
    /// When counting began.
    pub start: Timestamp,
}

impl Header {
    /// As text.
    ///
    /// # Errors
    /// None that memory does not give.
    fn text(&self) -> io::Result<Vec<u8>> {
        let mut builder = builder();
        let made_by = format!("[Logged with lockwatch {}]", env!("CARGO_PKG_VERSION"));
        builder.add_comment(FORMAT).add_comment(&made_by);
        builder.add_comment("[Values are ns, Interval_Max is ms]");
        for host in &self.hosts {
            builder.add_comment(&Mark::Host(host.clone()).to_string());
        }
        // Times of intervals are absolute, which is said, so that no reader has to guess.
        builder
            .with_start_time(self.start.into())
            .with_base_time(SystemTime::UNIX_EPOCH);
        let mut text = Vec::new();
        builder.begin_log_with(&mut text, &mut V2DeflateSerializer::new())?;
        text.extend_from_slice(LEGEND);
        Ok(text)
    }
}

fn builder() -> IntervalLogWriterBuilder {
    let mut builder = IntervalLogWriterBuilder::new();
    builder.with_max_value_divisor(MAX_VALUE_DIVISOR);
    builder
}

/// The lines of one interval.
fn lines<'a>(
    series: impl ExactSizeIterator<Item = (Option<String>, Histogram<u64>)> + 'a,
    start: Timestamp,
    length: Duration,
    lost: CountsLost,
) -> io::Result<Vec<u8>> {
    let start = Duration::try_from(start.as_duration()).unwrap_or_default();
    // What begins every log; here it has begun already.
    let mut beginning = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    builder().begin_log_with(&mut beginning, &mut serializer)?;
    let mut text = Vec::new();
    let mut writer = builder().begin_log_with(&mut text, &mut serializer)?;
    let interval = Interval {
        start,
        length,
        series: series.len() as u64,
        lost,
    };
    writer.write_comment(&Mark::Interval(interval).to_string())?;
    for (tag, histogram) in series {
        let tag = tag.as_deref().and_then(Tag::new);
        let written = writer.write_histogram(&histogram, start, length, tag);
        written.map_err(|error| match error {
            IntervalLogWriterError::IoError(error) => error,
            IntervalLogWriterError::SerializeError(error) => io::Error::other(error),
        })?;
    }
    Ok(text.split_off(beginning.len()))
}

/// Writes a log of one interval: what was added up from others.
///
/// `series` are histograms by tag. A tag must have no comma, space or line break: it has none
/// if it was read from a log.
///
/// # Errors
/// When `out` does.
pub fn write_once(
    out: &mut dyn Write,
    header: &Header,
    series: impl ExactSizeIterator<Item = (Option<String>, Histogram<u64>)>,
    length: Duration,
    lost: CountsLost,
) -> io::Result<()> {
    out.write_all(&header.text()?)?;
    out.write_all(&lines(series, header.start, length, lost)?)
}

/// A log that is being written. All that was written is in the file: a kill loses nothing.
#[derive(Debug)]
pub struct HdrLog {
    file: LogFile,
    header: Vec<u8>,
}

impl HdrLog {
    /// Opens a log: makes the file, or continues one, of which a last line that was cut off is
    /// removed. The header is in the file at once.
    ///
    /// # Errors
    /// When the file cannot be opened or written to, is no log, or is written to by another
    /// process.
    pub fn open(path: &Path, header: &Header, rotation: Rotation) -> Result<Self, OpenError> {
        let mut file = LogFile::open(path, rotation)?;
        let failed = |error| OpenError::Io {
            path: path.display().to_string(),
            error,
        };
        let header = header.text().map_err(failed)?;
        file.begin(&header).map_err(failed)?;
        Ok(Self { file, header })
    }

    /// Writes what was counted in `length` from `start` on, the whole of it or nothing. With
    /// nothing counted it is still told that this was so.
    ///
    /// # Errors
    /// When the file cannot be written to or rotated, a full disk for example. Nothing of the
    /// interval is in the log then, and the next one can be written as soon as that works
    /// again.
    pub fn interval(
        &mut self,
        interval: &Snapshot,
        start: Timestamp,
        length: Duration,
    ) -> io::Result<()> {
        let series = interval.series.iter();
        let series = series.map(|(key, counted)| (Some(tag(key)), counted.histogram()));
        let text = lines(series, start, length, interval.lost)?;
        self.file.append(&self.header, &text)
    }
}

/// What became of an interval.
#[derive(Debug)]
pub enum Progress {
    /// It is in the log.
    Written,
    /// It is in the log, together with what could not be written for so long before.
    Recovered(Duration),
    /// It could not be written, for the first time. Nothing is lost yet: it is kept for the
    /// next one.
    Failed(io::Error),
    /// It still cannot be written, which has been said.
    StillFailing,
}

/// The log of a run, which counts from its start on: knows what is in the log already, so
/// that what could not be written at one time is written at the next.
#[derive(Debug)]
pub struct RunLog {
    log: HdrLog,
    /// All that is in the log, or was counted before the run.
    written: Snapshot,
    /// How long ago that was, at the last try.
    since_written: Duration,
    is_failing: bool,
}

impl RunLog {
    /// Goes on in `log` with what is counted after `before`.
    pub fn new(log: HdrLog, before: Snapshot) -> Self {
        Self {
            log,
            written: before,
            since_written: Duration::ZERO,
            is_failing: false,
        }
    }

    /// Writes what was counted since the last time that worked. `now` is all that was counted
    /// by `at`; `elapsed` is the time since the last call, or since [`RunLog::new`], by a clock
    /// that nobody sets.
    ///
    /// Writing can take as long as the disk does: [`super::Background`] calls it where nobody
    /// waits.
    pub fn update(&mut self, now: &Snapshot, at: Timestamp, elapsed: Duration) -> Progress {
        let before = self.since_written;
        self.since_written += elapsed;
        let interval = now.since(&self.written);
        let start = at.checked_sub(self.since_written).unwrap_or(at);
        match self.log.interval(&interval, start, self.since_written) {
            Ok(()) => {
                self.written = now.clone();
                self.since_written = Duration::ZERO;
                if std::mem::take(&mut self.is_failing) {
                    Progress::Recovered(before)
                } else {
                    Progress::Written
                }
            }
            Err(_) if self.is_failing => Progress::StillFailing,
            Err(error) => {
                self.is_failing = true;
                Progress::Failed(error)
            }
        }
    }
}
