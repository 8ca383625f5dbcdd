//! Reading logs: ours and those of other tools.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, BufRead, Read as _},
    ops::Range,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use flate2::read::ZlibDecoder;
use hdrhistogram::{
    Histogram,
    serialization::{
        DeserializeError, Deserializer,
        interval_log::{IntervalLogHistogram, IntervalLogIterator, LogEntry},
    },
};
use jiff::Timestamp;

use super::{
    mark::{Interval, Mark},
    sum::Sum,
};
use crate::latency::CountsLost;

/// A longer line is none of a log.
const LONGEST_LINE: u64 = 64 << 20;
/// The largest histogram there can be, unpacked: 5 digits of all 64 bits.
const LARGEST_HISTOGRAM: u64 = 64 << 20;
/// What a log's times lie before its start if they are no Unix times but counted from there
/// (the rule of the Java, Python and JavaScript readers).
const YEAR: Duration = Duration::from_secs(365 * 24 * 3_600);

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What a line holds is none of a log.
    #[error("line {line}: {what}")]
    Line {
        /// Its number, from 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
}

/// Which intervals are read: those that begin at `from` or later, and before `to`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Within {
    /// None: from the first one on.
    pub from: Option<Timestamp>,
    /// None: to the last one.
    pub to: Option<Timestamp>,
}

impl Within {
    fn has(self, start: Timestamp) -> bool {
        self.from.is_none_or(|from| from <= start) && self.to.is_none_or(|to| start < to)
    }
}

/// What one or more logs hold, all their intervals together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// Histograms by tag; of ours each is one of [`super::tag()`].
    pub series: BTreeMap<Option<String>, Sum>,
    /// What is in none of them, as far as a log tells it: ours do.
    pub lost: CountsLost,
    /// Where it was counted, as far as it is told.
    pub hosts: BTreeSet<String>,
    /// When the first interval began, and the last one ended.
    pub span: Option<(Timestamp, Timestamp)>,
    /// Beginnings of intervals.
    starts: BTreeSet<Timestamp>,
    /// What is not there though it should be, in words, with line numbers.
    pub cut_off: Vec<String>,
}

/// What is known at a line from those before it.
#[derive(Debug, Default)]
struct Times {
    start: Option<Duration>,
    base: Option<Duration>,
}

impl Times {
    /// The Unix time of an interval's timestamp.
    fn absolute(&self, time: Duration) -> Option<Timestamp> {
        let base = match (self.base, self.start) {
            (Some(base), _) => base,
            (None, Some(start)) if time + YEAR < start => start,
            (None, _) => Duration::ZERO,
        };
        Timestamp::from_duration((base + time).try_into().ok()?).ok()
    }
}

/// An interval of ours whose lines have not all come.
#[derive(Debug)]
struct Open {
    line: u64,
    interval: Interval,
    series: u64,
}

impl Log {
    /// Adds all that a log holds. A last line that was cut off is told, and no error.
    ///
    /// # Errors
    /// When the file cannot be read or a line is none of a log.
    pub fn read(&mut self, input: impl BufRead, within: Within) -> Result<(), ReadError> {
        let mut input = input;
        let mut times = Times::default();
        let mut decoder = Deserializer::new();
        let mut open: Option<Open> = None;
        let mut bytes = Vec::new();
        for line in 1.. {
            bytes.clear();
            let length = (&mut input)
                .take(LONGEST_LINE)
                .read_until(b'\n', &mut bytes)?;
            if length == 0 {
                break;
            }
            let is_whole = bytes.ends_with(b"\n");
            if !is_whole {
                bytes.push(b'\n');
            }
            let read = self.line(line, &bytes, within, &mut times, &mut decoder, &mut open);
            match read {
                Err(_) if !is_whole => self.cut_off.push(format!("line {line} is cut off")),
                read => read.map_err(|what| ReadError::Line { line, what })?,
            }
        }
        self.close(open.as_ref());
        Ok(())
    }

    /// How many intervals there are, of all hosts.
    pub fn intervals(&self) -> usize {
        self.starts.len()
    }

    fn line(
        &mut self,
        line: u64,
        bytes: &[u8],
        within: Within,
        times: &mut Times,
        decoder: &mut Deserializer,
        open: &mut Option<Open>,
    ) -> Result<(), String> {
        if bytes.trim_ascii().is_empty() {
            return Ok(());
        }
        let text = std::str::from_utf8(bytes).ok();
        if let Some(mark) = text.and_then(|text| Mark::of_line(text.trim_end())) {
            self.mark(line, mark, within, open);
            return Ok(());
        }
        match IntervalLogIterator::new(bytes).next() {
            // A comment or the legend.
            None => {}
            Some(Ok(LogEntry::StartTime(start))) => times.start = Some(start),
            Some(Ok(LogEntry::BaseTime(base))) => times.base = Some(base),
            Some(Ok(LogEntry::Interval(interval))) => {
                let (start, length) = (interval.start_timestamp(), interval.duration());
                let start = times.absolute(start).ok_or("no such time")?;
                let histogram = decode(decoder, &interval)?;
                if let Some(open) = open {
                    open.series += 1;
                }
                if within.has(start) {
                    let tag = interval.tag().map(|tag| tag.as_str().to_owned());
                    self.series.entry(tag).or_default().add(&histogram);
                    self.covers(start, length);
                }
            }
            Some(Err(_)) => {
                return Err("expected [Tag=TAG,]start,length,max,histogram".to_owned());
            }
        }
        Ok(())
    }

    fn mark(&mut self, line: u64, mark: Mark, within: Within, open: &mut Option<Open>) {
        match mark {
            Mark::Host(name) => {
                self.hosts.insert(name);
            }
            Mark::Interval(interval) => {
                self.close(open.as_ref());
                *open = Some(Open {
                    line,
                    interval,
                    series: 0,
                });
                // Ours are Unix times, whatever comes before them.
                let start = Times::default().absolute(interval.start);
                if let Some(start) = start.filter(|&start| within.has(start)) {
                    self.lost.waits = self.lost.waits.saturating_add(interval.lost.waits);
                    self.lost.holds = self.lost.holds.saturating_add(interval.lost.holds);
                    self.covers(start, interval.length);
                }
            }
        }
    }

    /// The interval is over: what of it is missing?
    fn close(&mut self, open: Option<&Open>) {
        let Some(Open {
            line,
            interval,
            series,
        }) = open
        else {
            return;
        };
        if *series < interval.series {
            self.cut_off.push(format!(
                "the interval that begins at line {line} is cut off: {series} of {} series",
                interval.series
            ));
        }
    }

    fn covers(&mut self, start: Timestamp, length: Duration) {
        let end = start.checked_add(length).unwrap_or(Timestamp::MAX);
        self.starts.insert(start);
        self.span = Some(match self.span {
            None => (start, end),
            Some((first, last)) => (first.min(start), last.max(end)),
        });
    }
}

fn decode(
    decoder: &mut Deserializer,
    interval: &IntervalLogHistogram<'_>,
) -> Result<Histogram<u64>, String> {
    let bytes = STANDARD
        .decode(interval.encoded_histogram().trim())
        .map_err(|error| format!("the histogram is no base64: {error}"))?;
    let bytes =
        unpacked(bytes).map_err(|error| format!("the histogram cannot be unpacked: {error}"))?;
    decoder
        .deserialize(&mut bytes.as_slice())
        .map_err(|error| match error {
            DeserializeError::InvalidCookie => {
                "the histogram is of no version that lockwatch reads: V2".to_owned()
            }
            error => format!("the histogram cannot be read: {error}"),
        })
}

/// An encoded histogram without its compression. A few bytes can say that gigabytes follow, or
/// unpack to them: no room is made for that.
fn unpacked(bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    const PACKED: [u8; 4] = [0x1c, 0x84, 0x93, 0x14];
    const PLAIN: [u8; 4] = [0x1c, 0x84, 0x93, 0x13];
    /// A cookie and the packed length are in front of what is packed.
    const PACKED_FROM: usize = 8;
    /// Where the length of the counts, their offset, and the ratio to values of another kind
    /// are.
    const LENGTH: Range<usize> = 4..8;
    const OFFSET: Range<usize> = 8..12;
    const RATIO: Range<usize> = 32..40;
    let mut plain = match bytes.get(PACKED_FROM..) {
        Some(packed) if bytes.starts_with(&PACKED) => {
            let mut plain = Vec::new();
            let packed = ZlibDecoder::new(packed);
            packed.take(LARGEST_HISTOGRAM).read_to_end(&mut plain)?;
            plain
        }
        _ => bytes,
    };
    let word = |at: Range<usize>| plain.get(at).map(<[u8]>::to_vec);
    if plain.starts_with(&PLAIN)
        && let (Some(length), Some(ratio)) = (word(LENGTH), word(RATIO))
    {
        let length = length
            .iter()
            .fold(0, |sum, &byte| sum << 8 | u64::from(byte));
        if length > plain.len() as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // hdr-histogram-js writes the integer 1, which as a float is next to nothing, and an
        // offset of 1 that it does not mean.
        if ratio == 1_u64.to_be_bytes() {
            plain[OFFSET].fill(0);
            plain[RATIO].copy_from_slice(&1_f64.to_be_bytes());
        }
    }
    Ok(plain)
}
