//! `lockwatch check`: what this kernel and these privileges allow.

use std::io::{self, Write as _};

use anyhow::Context as _;

use super::{Outcome, allow_closed_pipe};
use crate::{
    cli::{CheckArgs, Format},
    kernel::btf::Btf,
    probes::offer,
    report::{
        check::{Check, Works},
        json, text,
    },
};

/// Asks the kernel, and says what it comes to. Attaches nothing.
///
/// # Errors
/// When the answer cannot be written.
pub fn run(args: &CheckArgs) -> anyhow::Result<Outcome> {
    // A kernel without type information is an answer, and the plan says so.
    let btf = Btf::from_sys()
        .inspect_err(|error| tracing::info!("{error}"))
        .ok();
    let check = Check::of(offer::ask(btf.as_ref()));
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    let written = match args.format {
        Format::Text => text::write_check(&mut stdout, &check, args.look.for_stdout()),
        Format::Json => json::write_check(&mut stdout, &check),
    };
    allow_closed_pipe(written.and_then(|()| stdout.flush())).context("write to standard output")?;
    Ok(match check.works {
        Works::Wholly => Outcome::Clear,
        Works::Partly => Outcome::Gaps,
        Works::Not => Outcome::Unusable,
    })
}
