//! Reading a recording: line by line, in bounded memory, as far as it goes.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use flate2::bufread::GzDecoder;

use super::{
    Header, Record,
    format::{CONTRACT, FAMILY, LINE_MAX, Parsed, parse},
    scans::Scans,
};
use crate::figures::Count;

/// A file that unfolds to more than days of recording was made to keep a reader busy.
const TEXT_MAX: u64 = 16 << 30;

/// Why a file cannot be read as a recording at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be opened or read.
    #[error("cannot read it")]
    Read(#[from] io::Error),
    /// It is something else.
    #[error("not a lockwatch recording: {0}")]
    Foreign(String),
    /// It ends before it says what it is.
    #[error("it holds no record: {0}")]
    Empty(String),
    /// Another lockwatch is needed.
    #[error(
        "it is a {0} recording, which this lockwatch ({CONTRACT}) cannot read: use the lockwatch that made it, or a newer one"
    )]
    Version(String),
}

/// Where and why reading ended before the recording did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Records that were read.
    pub records: u64,
    /// Why no more: fit to be printed.
    pub why: String,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let read = Count(self.records).nouns("record", "records");
        write!(f, "{}: {read} could be read", self.why)
    }
}

/// A recording that is being read.
#[derive(Debug)]
pub struct Reader<R> {
    lines: BufReader<io::Take<GzDecoder<R>>>,
    header: Header,
    scans: Scans,
    line: Vec<u8>,
    records: u64,
    unknown: u64,
    is_over: bool,
    damage: Option<Damage>,
}

impl Reader<BufReader<File>> {
    /// Opens a file.
    ///
    /// # Errors
    /// When it is no recording that this version can read.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::new(BufReader::new(File::open(path)?))
    }
}

impl<R: BufRead> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// When it is no recording that this version can read.
    pub fn new(mut file: R) -> Result<Self, OpenError> {
        match file.fill_buf()? {
            [] => return Err(OpenError::Empty("the file is empty".to_owned())),
            [0x1f, 0x8b, ..] | [0x1f] => {}
            _ => return Err(OpenError::Foreign("no gzip file".to_owned())),
        }
        let mut lines = BufReader::new(GzDecoder::new(file).take(TEXT_MAX));
        let mut line = Vec::new();
        if let Err(why) = next_line(&mut lines, &mut line) {
            // Cut off, or something that is no text at all.
            let same = line.iter().zip(br#"{"recording""#).all(|(a, b)| a == b);
            return Err(if same {
                OpenError::Empty(why)
            } else {
                OpenError::Foreign(why)
            });
        }
        let foreign = |_| OpenError::Foreign("its first line names no recording".to_owned());
        #[derive(serde::Deserialize)]
        struct Name {
            recording: String,
        }
        let Name { recording } = serde_json::from_slice(&line).map_err(foreign)?;
        if recording != CONTRACT {
            return Err(if recording.starts_with(FAMILY) {
                OpenError::Version(printable(&recording))
            } else {
                OpenError::Foreign("its first line names another format".to_owned())
            });
        }
        let header = serde_json::from_slice(&line)
            .map_err(|error| OpenError::Foreign(format!("its header is damaged: {error}")))?;
        Ok(Self {
            lines,
            header,
            scans: Scans::default(),
            line,
            records: 0,
            unknown: 0,
            is_over: false,
            damage: None,
        })
    }

    /// What was recorded.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Why the records ended before the recording did, once [`Iterator::next`] has returned
    /// none. `None` for a recording that is whole.
    pub fn damage(&self) -> Option<&Damage> {
        self.damage.as_ref()
    }

    /// Records of kinds that this version does not know; it can do without them.
    pub fn unknown(&self) -> u64 {
        self.unknown
    }

    /// Length in bytes of the line that the last record came from.
    pub(super) fn line_len(&self) -> usize {
        self.line.len()
    }

    fn stop(&mut self, why: String) -> Option<Record> {
        self.is_over = true;
        self.damage = Some(Damage {
            records: self.records,
            why,
        });
        None
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        while !self.is_over {
            if let Err(why) = next_line(&mut self.lines, &mut self.line) {
                return self.stop(why);
            }
            match parse(&self.line, &mut self.scans) {
                Ok(Parsed::Unknown) => self.unknown += 1,
                Ok(Parsed::Record(record)) => {
                    if let Record::End(end) = &record {
                        self.is_over = true;
                        // Behind the last line is the checksum of them all.
                        let whole = io::copy(&mut self.lines, &mut io::sink());
                        if whole.is_err() || end.records != self.records + self.unknown {
                            return self.stop("what was read is not what was written".to_owned());
                        }
                    }
                    self.records += 1;
                    return Some(record);
                }
                // Nothing behind it can be relied on: records build on each other.
                Err(why) => {
                    let number = self.records + self.unknown + 1;
                    return self.stop(format!("record {number} is damaged ({why})"));
                }
            }
        }
        None
    }
}

/// The next line without its end; the error says why there is none.
fn next_line(lines: &mut impl BufRead, line: &mut Vec<u8>) -> Result<(), String> {
    line.clear();
    // More than a line may have at once would be kept otherwise.
    line.shrink_to(1 << 20);
    let mut limited = lines.take(LINE_MAX as u64);
    match limited.read_until(b'\n', line) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err("the recording is cut off".to_owned())
        }
        Err(error) => Err(format!("the file is damaged ({error})")),
        Ok(_) if line.last() == Some(&b'\n') => {
            line.pop();
            Ok(())
        }
        Ok(read) if read == LINE_MAX => Err("a record is longer than any that is written".into()),
        Ok(_) => Err("the recording is cut off".to_owned()),
    }
}

/// Nothing that a terminal would obey, and not much of it.
fn printable(text: &str) -> String {
    text.chars()
        .take(60)
        .map(|c| {
            if crate::report::text::is_unprintable(c) {
                '?'
            } else {
                c
            }
        })
        .collect()
}
