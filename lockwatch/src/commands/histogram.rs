//! `lockwatch histogram`: how long waits and holds were, live or from logs.

mod live;
mod logs;
mod merge;

use std::io::{self, Write};

use anyhow::ensure;

use super::{
    Outcome,
    output::{Output, write_to},
};
use crate::{
    cli::histogram::{HistogramArgs, HistogramCommand, HistogramFormat},
    latency::Measure,
    report::{
        histogram::{Histograms, Name, csv, hgrm, svg},
        json,
        text::{
            Style,
            histogram::{Depth, write_histograms},
        },
    },
};

/// Shows histograms, or adds up logs.
///
/// # Errors
/// When nothing can be counted, a log cannot be read, or the result cannot be written.
pub fn run(args: &HistogramArgs) -> anyhow::Result<Outcome> {
    if let Some(HistogramCommand::Merge(args)) = &args.command {
        return merge::run(args);
    }
    let output = args.output.as_deref().map(Output::create).transpose()?;
    let mut counted = if args.files.is_empty() {
        live::count(args)?
    } else {
        logs::counted(args)?
    };
    for line in &counted.degraded {
        tracing::warn!("{line}");
    }
    if args.format == HistogramFormat::Hgrm && args.measure.is_none() {
        // It holds one distribution, and most want that of waits, or of what is neither.
        let is_hold = |name: &Name| matches!(name, Name::Key(key) if key.measure == Measure::Hold);
        counted.series.retain(|(name, _)| !is_hold(name));
    }
    let histograms = Histograms::of(counted, &args.selection());
    ensure!(
        args.format != HistogramFormat::Hgrm || is_of_one_measure(&histograms),
        "--format hgrm holds one distribution, and waits and holds are two: use --measure"
    );
    write_to(output, args.look, |out, style| {
        write(out, args, &histograms, style)
    })?;
    Ok(Outcome::Clear)
}

fn is_of_one_measure(histograms: &Histograms) -> bool {
    let mut series = histograms.series.iter();
    let first = series.next().map(|series| series.label.measure);
    series.all(|series| Some(series.label.measure) == first)
}

fn write(
    out: &mut dyn Write,
    args: &HistogramArgs,
    histograms: &Histograms,
    style: Style,
) -> io::Result<()> {
    match args.format {
        HistogramFormat::Text => {
            let depth = Depth {
                callers: args.callers,
            };
            write_histograms(out, histograms, depth, style)
        }
        HistogramFormat::Hgrm => hgrm::write(out, histograms),
        HistogramFormat::Csv => csv::write(out, histograms),
        HistogramFormat::Json => json::write_pretty(out, histograms),
        HistogramFormat::Svg => svg::write(out, histograms),
    }
}
