//! The incident that lockwatch is for, at full size.
//!
//! A process's mmap_lock is held for read by a page fault that waits for its page, one of
//! the process's threads queues as a writer, and everybody who looks at the process queues
//! behind it: `top`, `ps` and the like, which read its command line.

use std::time::Duration;

use anyhow::Result;

use super::{Cast, Scenery, Standing, mmap, mmap_read_held};
use crate::{crowd, stage::Stage};

/// As many as there were, the writer included.
pub(super) const WAITERS: u32 = 1469;

/// They start one after another.
const SETTLE: Duration = Duration::from_secs(5);
const SETTLE_EACH: Duration = Duration::from_millis(5);

/// One waiter is the writer, of whom `mmap-read-held` knows.
fn with_writer_only(cast: Cast) -> Cast {
    Cast { waiters: 1, ..cast }
}

pub(super) fn scenery(cast: Cast) -> Scenery {
    Scenery {
        readers: cast.waiters - 1,
        ..mmap_read_held::scenery(with_writer_only(cast))
    }
}

pub(super) fn raise(stage: &mut Stage, cast: Cast) -> Result<Standing> {
    let standing = mmap_read_held::raise(stage, with_writer_only(cast))?;
    let path = mmap::cmdline(stage)?;
    for readers in &stage.readers {
        readers.start(&path)?;
    }
    crowd::settle(
        &stage.readers,
        &mmap::CMDLINE,
        SETTLE + SETTLE_EACH * cast.waiters,
    )?;
    stage.crowd = stage.readers.iter().map(crowd::Readers::truth).collect();
    Ok(standing)
}
