//! What the holders of a standing stall do: from when on their times are kept, and how they
//! have spent them.

use crate::{
    commands::watch::progress::Progress,
    graph::Stall,
    kernel::symbols::Symbols,
    stream::{AsleepIn, Stream, Times, asleep_in},
    task::{Stuck, TaskName},
};

/// A holder whose times are kept for this stall.
#[derive(Clone, Debug)]
pub(super) struct WatchedHolder {
    pub(super) task: TaskName,
    /// Its times when the stall began to keep them.
    pub(super) before: Times,
    /// What the survey found it stuck in then.
    pub(super) found: Stuck,
}

/// How a holder spent its time during a stall.
#[derive(Clone, Debug)]
pub(super) struct HolderTimes {
    pub(super) task: TaskName,
    pub(super) times: Times,
    /// What it slept in, the longest first.
    pub(super) sleeps: Vec<AsleepIn>,
}

/// How the stall's holders spent their time since it began to keep them.
pub(super) fn times_of(
    stream: &Stream,
    symbols: Option<&Symbols>,
    progress: &Progress,
) -> Vec<HolderTimes> {
    let times_of = |watched: &WatchedHolder| {
        let times = stream.times(watched.task.key)?.since(&watched.before);
        Some(HolderTimes {
            task: watched.task.clone(),
            sleeps: symbols.map_or_else(Vec::new, |symbols| {
                asleep_in(&times, &watched.found, symbols)
            }),
            times,
        })
    };
    progress.watched.iter().filter_map(times_of).collect()
}

/// Begins to keep the times of those holders whose are not kept yet.
pub(super) fn watch_holders(stream: &mut Stream, stall: &Stall, progress: &mut Progress) {
    for span in &stall.holders {
        let task = &span.holder.task;
        let known = progress
            .watched
            .iter()
            .any(|watched| watched.task.key == task.key);
        if !known
            && stream.watch(task.key, span.holder.state)
            && let Some(before) = stream.times(task.key)
        {
            progress.watched.push(WatchedHolder {
                task: task.clone(),
                before,
                found: span.holder.stuck.clone(),
            });
        }
    }
}
