//! Writing a recording, so that a crash costs a second of it at most.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use flate2::{Compression, write::GzEncoder};

use super::{
    End, Header, Record,
    format::{LINE_MAX, Line},
    scans::Scans,
};
use crate::report::json;

/// What is older than this is in the file.
const FLUSH: Duration = Duration::from_secs(1);

/// A recording that is being written.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: GzEncoder<W>,
    scans: Scans,
    line: Vec<u8>,
    flushed: Instant,
    records: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a recording: the header is in `out` when this returns.
    ///
    /// # Errors
    /// When `out` cannot be written to.
    pub fn new(out: W, header: &Header) -> io::Result<Self> {
        // Fast: the host that is recorded has better things to do.
        let mut out = GzEncoder::new(out, Compression::fast());
        json::write_line(&mut out, header)?;
        out.flush()?;
        Ok(Self {
            out,
            scans: Scans::default(),
            line: Vec::new(),
            flushed: Instant::now(),
            records: 0,
        })
    }

    /// Writes a record. A survey longer than any reader would take becomes
    /// [`Record::Missing`].
    ///
    /// # Errors
    /// When the file cannot be written to.
    pub fn write(&mut self, record: &Record) -> io::Result<()> {
        self.line.clear();
        json::write_line(&mut self.line, &Line::of(record, &mut self.scans))?;
        if self.line.len() > LINE_MAX {
            self.line = Vec::new();
            json::write_line(&mut self.line, &Line::Missing(1))?;
        }
        self.out.write_all(&self.line)?;
        self.records += 1;
        if self.flushed.elapsed() >= FLUSH {
            self.flush()?;
        }
        Ok(())
    }

    /// Lets everything written so far be in the file.
    ///
    /// # Errors
    /// When the file cannot be written to.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()?;
        self.flushed = Instant::now();
        Ok(())
    }

    /// Ends the recording, and gives back what it was written to.
    ///
    /// # Errors
    /// When the file cannot be written to.
    pub fn finish(mut self, at_ns: u64, waits: Option<u64>) -> io::Result<W> {
        let end = End {
            at_ns,
            waits,
            records: self.records,
        };
        self.write(&Record::End(end))?;
        let mut out = self.out.finish()?;
        out.flush()?;
        Ok(out)
    }
}
