//! What it takes until lockwatch answers.

use std::fs;

use anyhow::{Context as _, Result};

use super::Bench;
use super::figure::{Figure, Unit};
use crate::{demo, process};

/// Part of its size by which the binary may grow: compilers differ.
const SIZE_TOLERANCE: f64 = 0.03;

/// Measures the released binary.
pub(crate) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    process::run(&mut demo::build_command(bench.workspace))?;
    let binary = bench.workspace.release_binary("lockwatch");
    let size = fs::metadata(&binary)
        .with_context(|| format!("cannot see {}", binary.display()))?
        .len();
    Ok(vec![
        Figure::new("release binary", "", size as f64, Unit::Bytes).within(SIZE_TOLERANCE),
    ])
}
