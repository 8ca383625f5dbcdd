//! The lines of a recording, as serde writes them.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize, de::IgnoredAny};

use super::{
    Record,
    scans::{ScanChange, Scans},
};
use crate::{
    clock::now_ns,
    detect::Thresholds,
    graph::Input,
    report::Host,
    stream::{Event, Lost, Wait},
    survey::Survey,
    task::Nanos,
};

/// Name and version of the format.
pub const CONTRACT: &str = "lockwatch.recording/1";
/// What every version's name begins with.
pub(super) const FAMILY: &str = "lockwatch.recording/";

/// A longer line is not written, and not read: a survey of 50,000 waiters fits.
pub(super) const LINE_MAX: usize = 32 << 20;

/// The first line: what was recorded, where and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Name and version of the format.
    pub recording: String,
    /// Version of lockwatch that recorded it.
    pub lockwatch: String,
    /// The host.
    pub host: Host,
    /// When it began.
    pub began_at: jiff::Timestamp,
    /// The same on `CLOCK_MONOTONIC`, in ns: the clock of everything else.
    pub began_ns: u64,
    /// Waits this long or longer were stalls.
    pub threshold_ns: Nanos,
    /// From when on everything counted. `None` in recordings of 0.1.0 and before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thresholds: Option<Thresholds>,
    /// Where the knowledge came from, in words.
    pub sources: Vec<String>,
    /// What could not be known, one line each.
    pub gaps: Vec<String>,
}

impl Header {
    /// The header of a recording that this lockwatch begins now, on this host.
    pub fn now(thresholds: Thresholds, sources: Vec<String>, gaps: Vec<String>) -> Self {
        Self {
            recording: CONTRACT.to_owned(),
            lockwatch: env!("CARGO_PKG_VERSION").to_owned(),
            host: Host::this(),
            began_at: jiff::Timestamp::now(),
            began_ns: now_ns(),
            threshold_ns: thresholds.wait,
            thresholds: Some(thresholds),
            sources,
            gaps,
        }
    }

    /// From when on something counted.
    pub fn thresholds(&self) -> Thresholds {
        let of_waits = || Thresholds::of_waits(self.threshold_ns);
        self.thresholds.unwrap_or_else(of_waits)
    }

    /// What a reading of `CLOCK_MONOTONIC` is for people.
    pub fn time_of(&self, at_ns: u64) -> jiff::Timestamp {
        let nanos = i128::from(at_ns) - i128::from(self.began_ns);
        let span = jiff::SignedDuration::from_nanos_i128(nanos);
        self.began_at.saturating_add(span).unwrap_or(self.began_at)
    }
}

/// The last line of a recording that ended as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// `CLOCK_MONOTONIC` ns.
    pub at_ns: u64,
    /// Waits that the kernel's programs recorded, long or short. `None` where none count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<u64>,
    /// Records before this one, the header not counted.
    pub records: u64,
}

/// One line: an object with one key.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line<'a> {
    Event(Cow<'a, Event>),
    Scan(ScanChange),
    Refuted(Cow<'a, Wait>),
    Survey(Box<Cow<'a, Survey>>),
    Clock(u64),
    Lost(Lost),
    Missing(u64),
    End(End),
}

/// The keys that this version knows.
const KNOWN: [&str; 8] = [
    "event", "scan", "refuted", "survey", "clock", "lost", "missing", "end",
];

impl<'a> Line<'a> {
    pub(super) fn of(record: &'a Record, scans: &mut Scans) -> Self {
        match record {
            Record::Input(Input::Event(event)) => Self::Event(Cow::Borrowed(event)),
            Record::Input(Input::Scan(scan)) => Self::Scan(scans.change_to(scan)),
            Record::Input(Input::Refuted(wait)) => Self::Refuted(Cow::Borrowed(wait)),
            Record::Input(Input::Survey(survey)) => Self::Survey(Box::new(Cow::Borrowed(survey))),
            Record::Input(Input::Clock(at_ns)) => Self::Clock(*at_ns),
            Record::Lost(lost) => Self::Lost(*lost),
            Record::Missing(count) => Self::Missing(*count),
            Record::End(end) => Self::End(*end),
        }
    }
}

/// What a line says.
#[derive(Debug)]
pub(super) enum Parsed {
    Record(Record),
    /// Something that a newer lockwatch writes and this one can do without.
    Unknown,
}

/// Reads a line; the error is fit to be printed.
pub(super) fn parse(text: &[u8], scans: &mut Scans) -> Result<Parsed, String> {
    let line: Line<'_> = match serde_json::from_slice(text) {
        Ok(line) => line,
        Err(error) => {
            let keys: BTreeMap<String, IgnoredAny> =
                serde_json::from_slice(text).map_err(|_| error.to_string())?;
            let is_news = !keys.is_empty() && keys.keys().all(|key| !KNOWN.contains(&&**key));
            return if is_news {
                Ok(Parsed::Unknown)
            } else {
                Err(error.to_string())
            };
        }
    };
    let input = match line {
        Line::Event(event) => Input::Event(event.into_owned()),
        Line::Scan(change) => Input::Scan(scans.scan_of(change)?),
        Line::Refuted(wait) => Input::Refuted(wait.into_owned()),
        Line::Survey(survey) => Input::Survey(Arc::new(survey.into_owned())),
        Line::Clock(at_ns) => Input::Clock(at_ns),
        Line::Lost(lost) => return Ok(Parsed::Record(Record::Lost(lost))),
        Line::Missing(count) => return Ok(Parsed::Record(Record::Missing(count))),
        Line::End(end) => return Ok(Parsed::Record(Record::End(end))),
    };
    Ok(Parsed::Record(Record::Input(input)))
}
