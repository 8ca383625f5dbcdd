//! `lockwatch histogram merge`: many logs become one.

use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::{
    super::{Outcome, output::Output, watch::say},
    logs,
};
use crate::{
    cli::histogram::MergeArgs,
    export::hdr_log::{Header, Sum, Within, write_once},
    figures::Count,
};

/// Adds up logs.
///
/// # Errors
/// When one cannot be read, or the sum cannot be written.
pub(super) fn run(args: &MergeArgs) -> anyhow::Result<Outcome> {
    let path = args.output.display();
    ensure!(
        args.force || !args.output.exists(),
        "{path} exists: use --force to replace it"
    );
    let mut output = Output::create(&args.output)?;
    let within = Within {
        from: args.from,
        to: args.to,
    };
    let log = logs::read(&args.files, within)?;
    for line in &log.cut_off {
        tracing::warn!("{line}");
    }
    let (start, end) = log.span.context("no interval is in these logs")?;
    let header = Header {
        hosts: log.hosts.iter().cloned().collect(),
        start,
    };
    let length = Duration::try_from(end.duration_since(start)).unwrap_or_default();
    let count: u64 = log.series.values().map(Sum::total).sum();
    let series = log.series.iter();
    let series = series.map(|(tag, sum)| (tag.clone(), sum.histogram()));
    write_once(&mut output, &header, series, length, log.lost)
        .and_then(|()| std::io::Write::flush(&mut output))
        .with_context(|| format!("write {path}"))?;
    output.keep()?;
    say(&format!(
        "{path}: {} in {} from {} of {}",
        Count(count).nouns("time", "times"),
        Count::of(log.series.len()).nouns("series", "series"),
        Count::of(log.intervals()).nouns("interval", "intervals"),
        Count::of(args.files.len()).nouns("log", "logs"),
    ));
    Ok(Outcome::Clear)
}
