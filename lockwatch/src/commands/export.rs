//! `lockwatch export`: what lockwatch counts and sees, for other systems.

use std::io;

use anyhow::bail;

use super::{
    Outcome,
    watch::{self, Beside, Session, say},
};
use crate::{cli::ExportArgs, figures::Span, task::Nanos};

/// Exports until told to stop.
///
/// # Errors
/// When waits cannot be counted on this host, nothing says where to export to, or that place
/// cannot be used.
pub fn run(args: &ExportArgs) -> anyhow::Result<Outcome> {
    if args.listen.is_none() && args.hdr_log.is_none() {
        bail!("say where to: --listen 127.0.0.1:9822 for Prometheus, --hdr-log FILE for logs");
    }
    let found = watch::export(args, &args.counts.options(), async |said, gaps| {
        say(&format!(
            "exporting: stalls are waits of {} and longer; {}",
            Span(Nanos::from_duration(args.threshold)),
            said.join("; ")
        ));
        for gap in gaps {
            say(&format!(
                "not here: {}: {}; {}",
                gap.missing, gap.why, gap.cost
            ));
        }
        Ok(Sinks {
            timer: tokio::time::interval(args.interval),
        })
    })?;
    Ok(if found {
        Outcome::Stall
    } else {
        Outcome::Clear
    })
}

/// Where it goes to.
struct Sinks {
    timer: tokio::time::Interval,
}

impl Beside for Sinks {
    async fn ready(&mut self) {
        self.timer.tick().await;
    }

    fn act(&mut self, session: &mut Session) -> io::Result<()> {
        let state = session.state()?;
        for (key, d) in &state.latency.series {
            eprintln!(
                "{:?} n={} p50={} p99={} max={} sum={}",
                key,
                d.count(),
                d.quantile(0.5).0,
                d.quantile(0.99).0,
                d.max().0,
                d.sum().0
            );
        }
        eprintln!(
            "{:?} {:?} {:?} {:?}",
            state.cost, state.latency.lost, state.stalls, state.roots
        );
        Ok(())
    }
}
