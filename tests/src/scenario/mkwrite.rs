//! Whether a write fault in `page_mkwrite` leaves the mmap_lock to others.
//!
//! From Linux 6.7 on such a fault keeps the lock of its memory area instead (mm/memory.c,
//! `do_shared_fault`). It is tried out in a process of its own, which is gone before the
//! stall is made: where the fault does keep the lock, that is a short stall by itself.

use anyhow::{Context, Result, bail};

use super::mmap;
use crate::{
    fuse::{Node, Op, ROOT, Rule, Then, Which},
    stage::{STEP, Stage},
    target::{Actor, Part},
    task::Look,
};

const FILE: u64 = 12;
const FILE_NAME: &str = "rehearsed";
const WRITE: &str = "writeback of a page of the rehearsal";

const WRITER: &str = "lab-r-writer";
const PROBE: &str = "lab-r-probe";

pub(super) const NODE: Node = Node::file(FILE, ROOT, FILE_NAME);

/// A page that is written back, and written to again meanwhile.
pub(super) const fn rule(node: u64, label: &'static str) -> Rule {
    Rule {
        op: Op::Write,
        node,
        which: Which::Page(0),
        times: 1,
        then: Then::Late(label),
    }
}

pub(super) const RULE: Rule = rule(FILE, WRITE);

pub(super) fn actors() -> Vec<Actor> {
    let file = FILE_NAME;
    let actors = [
        (WRITER, Part::WriteAgain { file }),
        (PROBE, Part::MapAndExit),
    ];
    actors
        .map(|(comm, part)| Actor {
            comm: comm.into(),
            part,
        })
        .into()
}

/// Sends a writer into `page_mkwrite`, and somebody who wants the mmap_lock after it.
pub(super) fn leaves_mmap_lock(stage: &mut Stage) -> Result<bool> {
    let mut process = stage
        .rehearsal
        .take()
        .context("the scenario has no rehearsal")?;
    process.begin(STEP)?;
    stage.server.wait_parked(WRITE, STEP)?;
    let (writer, _) = process.go(WRITER)?;
    writer.settle(WRITER, STEP, is_there)?;
    let (probe, _) = process.go(PROBE)?;
    // It exits, or it is seen queued: then it is let go before that is long enough for
    // somebody to call it a stall.
    let queued = probe.settle(PROBE, STEP, |look| mmap::MAP.is_met(look));
    let free = queued.is_err();
    if free {
        probe.gone(PROBE, STEP)?;
    }
    stage.server.release(WRITE);
    if !process.end(STEP) {
        bail!("the process of the rehearsal had to be killed");
    }
    Ok(free)
}

/// Where the writer sleeps.
pub(super) fn is_there(look: &Look) -> bool {
    look.state == 'D' && look.has("do_page_mkwrite")
}
