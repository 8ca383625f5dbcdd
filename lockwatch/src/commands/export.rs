//! `lockwatch export`: what lockwatch counts and sees, for other systems.

mod log;
mod sinks;

use anyhow::{Context as _, ensure};

use self::sinks::Sinks;
use super::{
    Outcome,
    watch::{self, say},
};
use crate::{cli::ExportArgs, figures::Span, task::Nanos};

/// Exports until told to stop.
///
/// # Errors
/// When waits cannot be counted on this host, nothing says where to export to, or that place
/// cannot be used.
pub fn run(args: &ExportArgs) -> anyhow::Result<Outcome> {
    ensure!(
        args.listen.is_some() || args.hdr_log.is_some() || args.otlp.is_some(),
        "say where to: --listen 127.0.0.1:9822 for Prometheus, --otlp http://127.0.0.1:4318 for \
         OpenTelemetry, --hdr-log FILE for a log"
    );
    let found = watch::export(args, &args.counts.options(), async |said, gaps| {
        let sinks = Sinks::open(args).await.context("export")?;
        say(&format!(
            "exporting: {}; stalls are waits of {} and longer; {}",
            sinks.said().join("; "),
            Span(Nanos::from_duration(args.threshold)),
            said.join("; ")
        ));
        for gap in gaps {
            say(&format!(
                "not here: {}: {}; {}",
                gap.missing, gap.why, gap.cost
            ));
        }
        Ok(sinks)
    })?;
    Ok(if found {
        Outcome::Stall
    } else {
        Outcome::Clear
    })
}
