//! What the stall lab and the lockup lab do alike.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

/// Says an event as a line of JSON on standard output.
///
/// # Errors
/// When it cannot be written.
pub fn print(event: &impl Serialize) -> Result<()> {
    let line = serde_json::to_string(event).context("cannot write an event as JSON")?;
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .context("cannot write to standard output")
}

/// Reads a time to hold `what` for: `500ms`, `example`, or bare seconds.
///
/// # Errors
/// When it is none, or 0.
pub fn parse_hold(text: &str, what: &str, example: &str) -> Result<Duration> {
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1),
        None => (text.strip_suffix('s').unwrap_or(text), 1000),
    };
    let number: u64 = number
        .parse()
        .with_context(|| format!("`{text}` is no time: write it like 500ms or {example}"))?;
    let time = Duration::from_millis(number.saturating_mul(unit));
    if time.is_zero() {
        bail!("a {what} of no time cannot be seen: hold it for 1ms or more");
    }
    Ok(time)
}
