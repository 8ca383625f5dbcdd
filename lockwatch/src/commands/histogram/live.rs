//! Histograms of what happens from now on.

use std::time::Duration;

use anyhow::bail;

use crate::{
    cli::histogram::HistogramArgs,
    latency::Snapshot,
    report::{
        Host,
        histogram::{Counted, Name, Source},
    },
};

/// Counts in the kernel for as long as is asked for.
///
/// # Errors
/// When nothing can be counted here.
pub(super) fn count(args: &HistogramArgs) -> anyhow::Result<Counted> {
    let from = jiff::Timestamp::now();
    let snapshot = count_in_kernel(args, args.duration)?;
    let series = snapshot.series.into_iter();
    Ok(Counted {
        source: Source::Live,
        hosts: [Host::this().hostname].into(),
        span: Some((from, jiff::Timestamp::now())),
        degraded: Vec::new(),
        lost: snapshot.lost,
        series: series.map(|(key, times)| (Name::Key(key), times)).collect(),
    })
}

/// What the kernel's programs count in this time, or until we are interrupted.
fn count_in_kernel(_args: &HistogramArgs, _time: Duration) -> anyhow::Result<Snapshot> {
    bail!("live counting is not there yet")
}
