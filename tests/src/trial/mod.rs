//! A trial: lockwatch is run while the lab holds a stall, and its report is
//! compared with the truth.

pub mod event;
pub mod lab;
pub mod lockup;
pub mod program;
pub mod report;
pub mod summary;
pub mod touched;
pub mod verdict;

pub use lab::Lab;
pub use program::{Ended, Program};
pub use report::Report;
pub use verdict::{Span, Verdict};

use std::{env, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};

/// Runs of each scenario if `LOCKWATCH_RUNS` does not say otherwise.
const RUNS: u32 = 30;

/// How often each scenario is tried.
///
/// # Errors
/// When `LOCKWATCH_RUNS` is no number above 0.
pub fn runs() -> Result<u32> {
    match env::var("LOCKWATCH_RUNS") {
        Ok(text) => text
            .parse()
            .ok()
            .filter(|runs| *runs > 0)
            .with_context(|| format!("LOCKWATCH_RUNS is `{text}`: make it a number from 1")),
        Err(_) => Ok(RUNS),
    }
}

/// A time that must not be exceeded, on this machine: `LOCKWATCH_SLOWNESS` times as long
/// where everything is that much slower, as in an emulated one.
///
/// # Panics
/// When `LOCKWATCH_SLOWNESS` is no number from 1 to 100.
pub fn bound(time: Duration) -> Duration {
    let slowness = env::var("LOCKWATCH_SLOWNESS").map_or(Some(1), |text| text.parse().ok());
    match slowness {
        Some(slowness @ 1..=100) => time * slowness,
        _ => panic!("LOCKWATCH_SLOWNESS must be a number from 1 to 100"),
    }
}

/// `diagnose` must have ended by then, whatever is stuck.
pub const PROMISE: Duration = Duration::from_secs(2);

/// Arguments of a `diagnose` that keeps its promise on this machine.
pub fn diagnose() -> [String; 3] {
    diagnose_within(bound(PROMISE))
}

/// Arguments of a `diagnose` with this deadline.
pub fn diagnose_within(deadline: Duration) -> [String; 3] {
    let deadline = format!("{}ms", deadline.as_millis());
    ["diagnose".to_owned(), "--deadline".to_owned(), deadline]
}

/// True if the test cannot be made on this kernel. Whoever runs it must know: it fails
/// unless `LOCKWATCH_MAY_SKIP` names it.
///
/// # Panics
/// When it is not named.
pub fn is_skipped(test: &str, why: &str) -> bool {
    assert!(
        lab::is_expected(test),
        "{test} cannot be tried here: {why} (LOCKWATCH_MAY_SKIP={test} accepts that)"
    );
    eprintln!("skipped: {test}: {why}");
    true
}

/// The binary under test.
///
/// # Errors
/// When it does not exist.
pub fn lockwatch() -> Result<PathBuf> {
    binary("LOCKWATCH_BIN", "lockwatch")
}

/// The binary that makes stalls.
///
/// # Errors
/// When it does not exist.
pub fn stall_lab() -> Result<PathBuf> {
    binary("STALL_LAB_BIN", "stall-lab")
}

/// Named by the variable, or the released one in the target folder this test
/// was built in: `<target>/<profile>/deps/<test>`.
fn binary(variable: &str, name: &str) -> Result<PathBuf> {
    let path = match env::var_os(variable) {
        Some(path) => PathBuf::from(path),
        None => {
            let test = env::current_exe().context("cannot find this test's own binary")?;
            let target = test
                .ancestors()
                .nth(3)
                .with_context(|| format!("{} is in no target folder", test.display()))?;
            target.join("release").join(name)
        }
    };
    if !path.is_file() {
        bail!(
            "there is no {}: run `cargo build --release -p lockwatch -p lockwatch-tests` \
             or name the binary in {variable}",
            path.display()
        );
    }
    Ok(path)
}
