//! The file of `-o FILE`: opened before the survey, whole when it appears.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, BufWriter, IsTerminal as _, Write},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use rustix::fs::{Access, OFlags, fcntl_getfl, fcntl_setfl};
use tempfile::{NamedTempFile, TempPath};

use super::allow_closed_pipe;
use crate::{
    cli::{Look, ReportFormat},
    graph::timeline::Timeline,
    report::{
        Report, dot, folded, json, perfetto,
        text::{self, Style},
    },
};

/// A file that is being written.
#[derive(Debug)]
pub(super) struct Output {
    path: PathBuf,
    file: BufWriter<File>,
    /// Where the text is until it is whole; none for what is no regular file.
    temporary: Option<TempPath>,
}

impl Output {
    /// Opens the file. What is there stays there until [`Output::keep`].
    ///
    /// # Errors
    /// When it cannot be created or opened, naming it.
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        // A link is followed: the file it names is replaced, not the link.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let create = || -> io::Result<(File, Option<TempPath>)> {
            match path.metadata() {
                // A device, a pipe: something to write to, never to be replaced.
                Ok(found) if !found.is_file() => Ok((open_special(&path)?, None)),
                found => {
                    let mode = found.map_or(0o666, |found| found.permissions().mode() & 0o777);
                    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
                    let folder = folder.unwrap_or(Path::new("."));
                    // Asked first: the temporary file's own error would name that file.
                    rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK)?;
                    let temporary: NamedTempFile = tempfile::Builder::new()
                        .prefix(".lockwatch-")
                        .permissions(Permissions::from_mode(mode))
                        .tempfile_in(folder)?;
                    let (file, temporary) = temporary.into_parts();
                    Ok((file, Some(temporary)))
                }
            }
        };
        let (file, temporary) = create().with_context(|| format!("create {}", path.display()))?;
        Ok(Self {
            path,
            file: BufWriter::new(file),
            temporary,
        })
    }

    /// Its name.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the file in its place. To be called when everything is written and flushed;
    /// dropped without it, nothing changes.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub(super) fn keep(self) -> anyhow::Result<()> {
        if let Some(temporary) = self.temporary {
            temporary
                .persist(&self.path)
                .with_context(|| format!("rename the report to {}", self.path.display()))?;
        }
        Ok(())
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes a result to the file, which appears when it is whole, or to standard output.
///
/// # Errors
/// When that fails; a closed pipe is none.
pub(super) fn write_to(
    output: Option<Output>,
    look: Look,
    write: impl FnOnce(&mut dyn Write, Style) -> io::Result<()>,
) -> anyhow::Result<()> {
    if let Some(mut output) = output {
        write(&mut output, look.for_file())
            .and_then(|()| output.flush())
            .with_context(|| format!("write {}", output.path().display()))?;
        return output.keep();
    }
    let mut stdout = BufWriter::new(io::stdout().lock());
    let written = write(&mut stdout, look.for_stdout()).and_then(|()| stdout.flush());
    allow_closed_pipe(written).context("write to standard output")
}

/// Refuses to write what is no text to a terminal.
///
/// # Errors
/// When that is where the report would go.
pub(super) fn refuse_terminal(format: ReportFormat, output: Option<&Path>) -> anyhow::Result<()> {
    let is_text = format != ReportFormat::Perfetto;
    ensure!(
        is_text || output.is_some() || !io::stdout().is_terminal(),
        "a Perfetto trace is nothing for a terminal: use -o FILE"
    );
    Ok(())
}

/// Writes a report in one of its formats.
///
/// # Errors
/// When `out` cannot be written to.
pub(super) fn write_report(
    out: &mut dyn Write,
    format: ReportFormat,
    report: &Report,
    timeline: &dyn Fn() -> Timeline,
    style: Style,
) -> io::Result<()> {
    match format {
        ReportFormat::Text => text::write_report(out, report, style),
        ReportFormat::Json => json::write_report(out, report),
        ReportFormat::Dot => dot::write_report(out, report),
        ReportFormat::Folded => folded::write_report(out, report),
        ReportFormat::Perfetto => perfetto::write_trace(out, &report.host, &timeline()),
    }
}

/// Opens what is no regular file, without waiting for somebody to read from it.
fn open_special(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)?;
    fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_file_appears_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report");
        fs::write(&path, "old").unwrap();
        let mut output = Output::create(&path).unwrap();
        output.write_all(b"new").unwrap();
        output.flush().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        output.keep().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn nothing_is_left_of_a_report_that_was_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report");
        drop(Output::create(&path).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_device_is_written_to_and_not_replaced() {
        let mut output = Output::create(Path::new("/dev/null")).unwrap();
        output.write_all(b"x").unwrap();
        output.keep().unwrap();
        assert!(!Path::new("/dev/null").metadata().unwrap().is_file());
    }

    #[test]
    fn a_folder_that_is_missing_is_named() {
        let error = Output::create(Path::new("/nonexistent/report")).unwrap_err();
        assert_eq!(error.to_string(), "create /nonexistent/report");
    }
}
