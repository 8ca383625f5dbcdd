//! A file system's s_umount, held as in `super-read-held`, beside a `sync`.
//!
//! The `sync` has held the lock for a moment and waits for the next file
//! system now (fs/super.c, `__iterate_supers`). The first one is still in its
//! registers and stack: it looks as if it held that one.

use anyhow::Result;
use lockwatch_tests::truth::DecoyKind;

use super::{Cast, NotHere, Scenery, Standing, super_read_held as base};
use crate::{
    beside::Kind,
    fuse::{Op, ROOT, Rule, Then, Tree, Which},
    stage::{STEP, Stage},
};

const DECOY_SYNC: &str = "sync of the second file system";

pub(super) fn scenery() -> Scenery {
    let rule = Rule {
        op: Op::Syncfs,
        node: ROOT,
        which: Which::All,
        times: 1,
        then: Then::Late(DECOY_SYNC),
    };
    Scenery {
        beside: Some(Kind::Device(Tree::new(&[], &[rule]))),
        ..base::scenery()
    }
}

pub(super) fn raise(stage: &mut Stage, cast: Cast) -> Result<Standing> {
    if cast.decoys {
        raise_sync(stage)?;
    }
    base::raise_with(stage, cast, hide_owner)
}

fn raise_sync(stage: &mut Stage) -> Result<()> {
    let comm = "lab-d-sync";
    let (task, _) = stage.start(comm, nix::unistd::sync)?;
    stage
        .beside()?
        .server()?
        .wait_parked(DECOY_SYNC, STEP)
        .map_err(|_| NotHere::because("a sync does not wait for FUSE before Linux 6.18"))?;
    stage.decoy(task, comm, DecoyKind::OtherSuperBlock, |look| {
        let in_sync = look.frames.iter().any(|frame| frame.contains("sync_fs"));
        look.waits_for_fuse() && in_sync
    })
}

/// A reader that comes after the holder and goes again takes the holder's
/// name out of the lock's owner field.
fn hide_owner(stage: &mut Stage) -> Result<()> {
    let (comm, at) = ("lab-d-after", stage.mount.clone());
    let (task, _) = stage.start(comm, move || base::sync(&at))?;
    stage.gone_decoy(task, comm, DecoyKind::LeftReader)?;
    stage.owner_hidden = true;
    Ok(())
}
