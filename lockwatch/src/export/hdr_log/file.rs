//! The file of a log: continued, appended to as a whole or not at all, rotated.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, OFlags, flock};

/// When a log goes on in a new file, and how many old ones stay: `FILE` becomes `FILE.1`,
/// that `FILE.2`, and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// A file gets no larger than this, in bytes, unless it holds one interval only.
    pub max_bytes: u64,
    /// Old files that are kept, besides the one that is written to.
    pub keep: u32,
}

/// 320 MiB in all.
impl Default for Rotation {
    fn default() -> Self {
        Self {
            max_bytes: 64 << 20,
            keep: 4,
        }
    }
}

/// Why a log cannot be written to.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be opened, read or written.
    #[error("{path}: {error}")]
    Io {
        /// Its name.
        path: String,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// A device, a pipe, a folder.
    #[error("{0} is no regular file: a log is continued and rotated")]
    Special(String),
    /// Its first line is none of a log.
    #[error("{0} exists and is no HdrHistogram log: choose another file")]
    Foreign(String),
    /// Somebody else writes to it.
    #[error("{0} is being written to by another process: choose another file")]
    Busy(String),
}

/// The file that is written to.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    rotation: Rotation,
}

impl LogFile {
    /// Opens a file that exists, or makes it. A last line that was cut off is removed: nobody
    /// could read it, nor what is written behind it.
    pub(super) fn open(path: &Path, rotation: Rotation) -> Result<Self, OpenError> {
        let name = || path.display().to_string();
        let failed = |error| OpenError::Io {
            path: name(),
            error,
        };
        let mut file = open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(OpenError::Special(name()));
        }
        lock(&file).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => OpenError::Busy(name()),
            _ => failed(error),
        })?;
        if !begins_as_a_log(&mut file).map_err(failed)? {
            return Err(OpenError::Foreign(name()));
        }
        let whole = length_of_whole_lines(&mut file).map_err(failed)?;
        file.set_len(whole).map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            rotation,
        })
    }

    /// Writes the header: of a new file, or of a run that continues one.
    pub(super) fn begin(&mut self, header: &[u8]) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        self.write(header, length)
    }

    /// Writes `header` and `text` to a new file if what is there would become too long with
    /// `text` or is gone, else `text`; all of it or nothing.
    pub(super) fn append(&mut self, header: &[u8], text: &[u8]) -> io::Result<()> {
        self.follow()?;
        let mut length = self.file.metadata()?.len();
        if length > header.len() as u64 && length + text.len() as u64 > self.rotation.max_bytes {
            self.rotate()?;
            length = 0;
        }
        let bytes = match length {
            0 => [header, text].concat(),
            _ => text.to_vec(),
        };
        self.write(&bytes, length)
    }

    /// Appends to a file of this length, all or nothing.
    fn write(&mut self, bytes: &[u8], length: u64) -> io::Result<()> {
        self.file.write_all(bytes).inspect_err(|_| {
            // What a full disk took of it would be counted a second time. If this fails, the
            // next reader finds an interval that was cut off.
            let _ = self.file.set_len(length);
        })
    }

    /// Somebody may have moved or removed the file: what he left is no longer ours.
    fn follow(&mut self) -> io::Result<()> {
        let ours = self.file.metadata()?;
        let is_ours = match self.path.metadata() {
            Ok(found) => (found.dev(), found.ino()) == (ours.dev(), ours.ino()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        if !is_ours {
            self.reopen()?;
        }
        Ok(())
    }

    /// Each file is renamed, the oldest is replaced, and a new one is made.
    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.rotation.keep).rev() {
            match std::fs::rename(
                numbered(&self.path, number),
                numbered(&self.path, number + 1),
            ) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        match self.rotation.keep {
            0 => return self.file.set_len(0),
            _ => std::fs::rename(&self.path, numbered(&self.path, 1))?,
        }
        self.reopen()
    }

    fn reopen(&mut self) -> io::Result<()> {
        let file = open(&self.path)?;
        lock(&file)?;
        self.file = file;
        Ok(())
    }
}

/// `FILE.3`
pub(super) fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        // A pipe without a reader must not make us wait.
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
}

fn lock(file: &File) -> io::Result<()> {
    Ok(flock(file, FlockOperation::NonBlockingLockExclusive)?)
}

fn begins_as_a_log(file: &mut File) -> io::Result<bool> {
    let mut start = [0; 4];
    file.seek(SeekFrom::Start(0))?;
    let length = file.read(&mut start)?;
    // A comment, the legend, a tag, or the begin of an interval.
    let is_one = |first: u8| matches!(first, b'#' | b'"' | b'0'..=b'9');
    Ok(match start[..length].first() {
        None => true,
        Some(b'T') => &start == b"Tag=",
        Some(&first) => is_one(first),
    })
}

/// Up to the end of the last line that has one.
fn length_of_whole_lines(file: &mut File) -> io::Result<u64> {
    const PIECE: u64 = 1 << 16;
    let mut end = file.metadata()?.len();
    let mut piece = Vec::new();
    while end > 0 {
        let begin = end.saturating_sub(PIECE);
        file.seek(SeekFrom::Start(begin))?;
        piece.clear();
        file.take(end - begin).read_to_end(&mut piece)?;
        if let Some(at) = piece.iter().rposition(|&byte| byte == b'\n') {
            return Ok(begin + at as u64 + 1);
        }
        end = begin;
    }
    Ok(0)
}
