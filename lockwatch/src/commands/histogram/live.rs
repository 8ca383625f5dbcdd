//! Histograms of what happens from now on.

use crate::{
    cli::histogram::HistogramArgs,
    commands::watch,
    plan::Subject,
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
    let (snapshot, from, gaps) =
        watch::count(&args.sources, &args.counts.options(), args.duration)?;
    // Of what does not concern counts nothing is said.
    let gaps = gaps.into_iter().filter(|gap| {
        let of_holds = gap.subject == Subject::Holds && args.sources.track_holds;
        of_holds || matches!(gap.subject, Subject::WaitBegins | Subject::WaitEnds)
    });
    let degraded = gaps.map(|gap| format!("{}: {}; {}", gap.missing, gap.why, gap.cost));
    let series = snapshot.series.into_iter();
    Ok(Counted {
        source: Source::Live,
        hosts: [Host::this().hostname].into(),
        span: Some((from, jiff::Timestamp::now())),
        degraded: degraded.collect(),
        lost: snapshot.lost,
        series: series.map(|(key, times)| (Name::Key(key), times)).collect(),
    })
}
