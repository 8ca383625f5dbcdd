//! Attaching a program of a test object.

use anyhow::{Context, Result, bail};
use aya::{
    Btf,
    programs::{BtfTracePoint, FEntry, FExit, Program},
};

/// Loads a program and attaches it to a function or a tracepoint.
///
/// # Errors
/// When the kernel refuses it, or it is of another kind.
pub fn attach(program: &mut Program, target: &str, btf: &Btf) -> Result<()> {
    let outcome = match program {
        Program::BtfTracePoint(program) => {
            BtfTracePoint::load(program, target, btf).and_then(|()| program.attach().map(drop))
        }
        Program::FEntry(program) => {
            FEntry::load(program, target, btf).and_then(|()| program.attach().map(drop))
        }
        Program::FExit(program) => {
            FExit::load(program, target, btf).and_then(|()| program.attach().map(drop))
        }
        _ => bail!("the program for {target} is of no kind that is expected"),
    };
    outcome.with_context(|| format!("the kernel refuses a program at {target}"))
}
