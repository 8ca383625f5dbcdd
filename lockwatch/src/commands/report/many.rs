//! Many recordings at a glance.

use std::path::Path;

use anyhow::{Context as _, bail, ensure};

use super::super::{
    Outcome,
    output::{Output, write_to},
};
use crate::{
    cli::{ReportArgs, ReportFormat},
    detect::Detectors,
    recording::{Chosen, Reader, Replayed},
    report::{
        json,
        recordings::{Recording, Recordings},
        text::recordings::write_recordings,
    },
};

/// Reads recordings one after the other and sums them up.
///
/// # Errors
/// When one is no recording, what is asked for is about a single one, or the result cannot be
/// written.
pub(super) fn run(args: &ReportArgs) -> anyhow::Result<Outcome> {
    ensure!(
        args.survey.is_none() && args.at.is_none(),
        "--survey and --at choose from one recording: give one FILE"
    );
    let is_text = match args.format {
        ReportFormat::Text => true,
        ReportFormat::Json => false,
        _ => bail!("this format shows one recording: give one FILE, or use --format text or json"),
    };
    let detectors = args.detect.detectors();
    let recordings: Vec<Recording> = args
        .files
        .iter()
        .map(|file| read(file, &detectors))
        .collect::<anyhow::Result<_>>()?;
    let outcome = match &recordings {
        all if all.iter().any(Recording::has_stall) => Outcome::Stall,
        // The stall may be in what could not be read.
        all if all.iter().any(|it| it.is_cut_off) => Outcome::Unread,
        _ => Outcome::Clear,
    };
    let recordings = Recordings::of(recordings);
    let output = args.output.as_deref().map(Output::create).transpose()?;
    write_to(output, args.look, |out, style| {
        if is_text {
            write_recordings(out, &recordings, style)
        } else {
            json::write_pretty(out, &recordings)
        }
    })?;
    Ok(outcome)
}

/// What is left of it is small: the recordings of a fleet are not in memory together.
fn read(file: &Path, detectors: &Detectors) -> anyhow::Result<Recording> {
    let name = file.display().to_string();
    let reader = Reader::open(file).with_context(|| name.clone())?;
    let replayed = Replayed::from_reader(reader, Chosen::Worst, detectors);
    if let Some(damage) = &replayed.damage {
        tracing::warn!("{name}: {damage}");
    }
    Ok(Recording::of(name, &replayed, detectors))
}
