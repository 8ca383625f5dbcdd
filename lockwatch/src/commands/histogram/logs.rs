//! Histograms from logs.

use std::{
    collections::BTreeMap,
    fs::File,
    io::BufReader,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};

use crate::{
    cli::histogram::HistogramArgs,
    export::hdr_log::{self, Log, Within},
    report::histogram::{Counted, Name, Source},
};

/// What the logs hold together.
///
/// # Errors
/// When one cannot be read.
pub(super) fn counted(args: &HistogramArgs) -> anyhow::Result<Counted> {
    let counts = &args.counts;
    ensure!(
        counts.pid.is_empty() && counts.comm.is_empty() && counts.cgroup.is_empty(),
        "a log does not say whose waits they were: --pid, --comm and --cgroup are for counting"
    );
    let within = Within {
        from: args.from,
        to: args.to,
    };
    let log = read(&args.files, within)?;
    let series =
        log.series
            .into_iter()
            .map(|(tag, sum)| match tag.as_deref().and_then(hdr_log::key) {
                Some(key) => (Name::Key(key), sum.distribution(1)),
                None => (Name::Foreign(tag), sum.distribution(args.unit.ns())),
            });
    Ok(Counted {
        source: Source::Log,
        hosts: log.hosts,
        span: log.span,
        degraded: log.cut_off,
        lost: log.lost,
        series: series.collect(),
    })
}

/// All that is in these files. What is cut off is named with its file.
///
/// # Errors
/// When one cannot be read, or is given twice: its counts would be, too.
pub(super) fn read(files: &[PathBuf], within: Within) -> anyhow::Result<Log> {
    let mut log = Log::default();
    let mut seen: BTreeMap<(u64, u64), &Path> = BTreeMap::new();
    for path in files {
        let name = path.display();
        let file = File::open(path).with_context(|| format!("open {name}"))?;
        let metadata = file.metadata().with_context(|| format!("open {name}"))?;
        if metadata.is_file()
            && let Some(before) = seen.insert((metadata.dev(), metadata.ino()), path)
        {
            bail!(
                "{name} is the same file as {}: it would count twice",
                before.display()
            );
        }
        let known = log.cut_off.len();
        log.read(BufReader::new(file), within)
            .with_context(|| format!("{name}"))?;
        for line in &mut log.cut_off[known..] {
            *line = format!("{name}: {line}");
        }
    }
    Ok(log)
}
